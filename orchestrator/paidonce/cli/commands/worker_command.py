"""``paidonce worker``: check everything a worker needs, then become Celery's worker program.

The program is replaced, not started beside this one, so that Ctrl-C and SIGTERM reach the worker itself.
"""

from __future__ import annotations

import os
import sys

import click

from paidonce.cli.broker_checks import check_broker, check_tasks
from paidonce.cli.clients import open_client
from paidonce.cli.output import say
from paidonce.cli.worker_program import declared_queues, worker_arguments, worker_environment
from paidonce.configuration.module_loading import load_modules
from paidonce.declarations.declaration_checks import refuse_unfit
from paidonce.declarations.policy_checks import refuse_misfits
from paidonce.declarations.registry import Registry, default_registry
from paidonce.policies.file.parsing import policies_from_settings
from paidonce.settings import load_settings
from paidonce_models.errors import ConfigurationError
from paidonce_models.queues import DEFAULT_QUEUE, full_queue_name

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


@click.command()
@click.argument("modules", nargs=-1)
@click.option("--concurrency", type=click.IntRange(1, 10_000), metavar="N", help="How many steps run at once.")
@click.option("--queues", metavar="A,B", help="Only run steps of these queues.  [default: the queue `default`]")
@click.option(
    "--pool",
    type=click.Choice(["threads", "prefork"]),
    default="threads",
    show_default=True,
    help="`prefork` is for steps that compute or are not trusted.",
)
@click.option(
    "--loglevel",
    "log_level",
    type=click.Choice(LOG_LEVELS, case_sensitive=False),
    default="INFO",
    show_default=True,
    help="Logs go to standard error.",
)
@click.option("--json", "as_json", is_flag=True, help="Print an error as one JSON document on standard output.")
def worker(
    modules: tuple[str, ...],
    concurrency: int | None,
    queues: str | None,
    pool: str,
    log_level: str,
    as_json: bool,
) -> None:
    """Start a worker with the agents, steps and tools of MODULES.

    MODULES are names (shop.agents) or files (my_agents.py), found in the current folder and on PYTHONPATH; the default
    is PAIDONCE_AGENTS. On SIGTERM or Ctrl-C the worker finishes its steps or releases them.
    """
    settings = load_settings()
    names = modules or settings.agents
    if not names:
        raise ConfigurationError(
            "a worker needs code to hold: name modules, as in `paidonce worker my_agents.py`, or set PAIDONCE_AGENTS"
        )
    loaded = load_modules(names)
    _refuse_nothing(default_registry, names)
    refuse_unfit(default_registry)
    refuse_misfits(policies_from_settings(settings), list(default_registry.steps))
    chosen = _split_queues(queues)
    _warn_of_queues_left_out(default_registry, chosen)
    open_client(settings)
    check_broker(settings)
    check_tasks(settings)
    if concurrency is None and (pool == "threads" or "concurrency" in settings.model_fields_set):
        concurrency = settings.concurrency
    arguments = worker_arguments(
        name=f"paidonce-{os.getpid()}", log_level=log_level, concurrency=concurrency, pool=pool, queues=chosen
    )
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, "-m", "celery", *arguments], worker_environment(loaded))


def _refuse_nothing(registry: Registry, names: tuple[str, ...]) -> None:
    if not list(registry.agents) and not list(registry.steps):
        raise ConfigurationError(
            f"{', '.join(names)}: there is no @agent, @step or @tool in there; name the modules that hold them"
        )


def _split_queues(queues: str | None) -> list[str]:
    if queues is None:
        return []
    names = [name.strip() for name in queues.split(",") if name.strip()]
    if not names:
        raise click.BadParameter("expected names separated by commas", param_hint="--queues")
    return names


def _warn_of_queues_left_out(registry: Registry, chosen: list[str]) -> None:
    """A step on a queue that no worker consumes waits for ever; say so while somebody looks."""
    taken = {full_queue_name(name) for name in chosen} or {DEFAULT_QUEUE}
    left_out = sorted(declared_queues(registry) - taken - {DEFAULT_QUEUE})
    if left_out:
        short = [name.removeprefix("paidonce.") for name in left_out]
        say(
            f"Note: the modules also name the queues {', '.join(short)}, which this worker does not consume; start "
            f"another one with --queues {','.join(short)}, or add them here"
        )
