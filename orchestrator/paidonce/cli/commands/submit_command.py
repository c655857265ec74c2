"""``paidonce submit``: create a run, or find the one with the same key, and optionally wait for it."""

from __future__ import annotations

import difflib

import click
from click.core import ParameterSource

from paidonce.cli.arguments import parse_input, parse_tags, submission_options
from paidonce.cli.bulk_submit import submit_from
from paidonce.cli.clients import open_client
from paidonce.cli.documents.json_documents import value_of
from paidonce.cli.live_workers import held_agents, workers_alive
from paidonce.cli.output import error_document, json_option, print_json, say, say_error
from paidonce.cli.submission_lines import Defaults
from paidonce.client import Client
from paidonce.configuration.module_loading import load_modules
from paidonce.declarations.registry import default_registry
from paidonce.run_handle import RunHandle
from paidonce.settings import load_settings
from paidonce_models.errors import ModuleNotLoadable, ResultTimeout, RunEnded


@click.command()
@click.argument("agent")
@submission_options
@click.option("--priority", type=click.IntRange(0, 9), default=5, show_default=True, help="9 goes first.")
@click.option("--wait", is_flag=True, help="Wait for the run to end and print its result.")
@click.option(
    "--timeout", type=click.FloatRange(0, 10**9), metavar="SECONDS", help="How long to wait; the run continues."
)
@click.option(
    "--from",
    "file",
    metavar="FILE",
    help="Submit a run for each line of this file, - for standard input: a JSON object with input, and where you like "
    "key, tags, priority and queue.",
)
@json_option
@click.pass_context
def submit(
    context: click.Context,
    agent: str,
    given_input: str,
    key: str | None,
    given_tags: tuple[str, ...],
    priority: int,
    wait: bool,
    timeout: float | None,
    file: str | None,
    as_json: bool,
) -> int:
    """Submit a run of AGENT and print its id.

    The run is stored when this returns, even while the broker or all workers are down. If the modules of
    PAIDONCE_AGENTS can be imported here, they check the input first; otherwise the worker checks it.

    With --from, runs are submitted in chunks of 500. --tag and --priority apply to lines that do not set them
    themselves. It stops at the first line that is refused; those before it are submitted. Repeated after an error or a
    crash it submits no line with a key twice. It prints how many runs were submitted, with --json one line for each.
    """
    if file is not None:
        _refuse_options_of_one_run(context)
    if timeout is not None and not wait:
        raise click.UsageError("--timeout is for --wait")
    arguments, tags = {} if file is not None else parse_input(given_input), parse_tags(given_tags)
    settings = load_settings()
    try:
        load_modules(settings.agents)
    except ModuleNotLoadable as error:
        say(f"Warning: the input is not checked here: {error.message}")
    client = open_client(settings)
    if file is not None:
        _warn_if_nobody_holds(client, agent)
        submit_from(client, agent, file, Defaults(tags=tags, priority=priority), as_json=as_json)
        return 0
    handle = client.submit(agent, arguments, key=key, tags=tags, priority=priority)
    _warn_if_nobody_holds(client, agent)
    if wait:
        return _wait(handle, timeout, as_json)
    print_json({"run_id": handle.id})
    return 0


def _refuse_options_of_one_run(context: click.Context) -> None:
    for name in ("given_input", "key", "wait"):
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            option = "--input" if name == "given_input" else f"--{name}"
            raise click.UsageError(f"{option} is for a single run; with --from each line has its own")


def _warn_if_nobody_holds(client: Client, agent: str) -> None:
    """A misspelled name is no error, because a worker that holds it may start; but it is worth a warning.

    If no worker is up, the modules of PAIDONCE_AGENTS say what one will hold.
    """
    workers = workers_alive(client.database, client.settings)
    held = sorted(held_agents(workers) if workers else {known.name for known in default_registry.agents})
    if agent in held or not (workers or held):
        return
    near = difflib.get_close_matches(agent, held, n=1)
    holders = "live worker holds" if workers else "module of PAIDONCE_AGENTS holds"
    say(
        f"Warning: no {holders} agent {agent!r}{f', did you mean {near[0]!r}?' if near else '.'} "
        f"{'The live workers' if workers else 'They'} hold: {', '.join(held) or 'no agent'}. The run waits; without a "
        f"worker for it within {client.settings.no_worker_seconds:g} s it is blocked until one comes: "
        "`paidonce worker MODULE`"
    )


def _wait(handle: RunHandle, timeout: float | None, as_json: bool) -> int:
    say(f"Submitted run {handle.id}.")
    try:
        handle.result(timeout)
    except (RunEnded, ResultTimeout) as error:
        if as_json:
            print_json(error_document(error, {"run_id": handle.id, "state": handle.state}))
        say_error(error.message)
        return error.exit_code
    view = handle.view()
    print_json({"run_id": handle.id, "state": view.state.value, "result": value_of(view.result)})
    return 0
