"""``paidonce submit``: create a run, or find that of the same key, and perhaps wait for it."""

from __future__ import annotations

import difflib

import click

from paidonce.cli.arguments import parse_input, parse_tags, submission_options
from paidonce.cli.connections import held_agents, open_client, workers_alive
from paidonce.cli.documents import value_of
from paidonce.cli.output import error_document, json_option, print_json, say, say_error
from paidonce.client import Client, RunHandle
from paidonce.module_loading import load_modules
from paidonce.registry import default_registry
from paidonce.settings import load_settings
from paidonce_models.errors import ModuleNotLoadable, ResultTimeout, RunEnded


@click.command()
@click.argument("agent")
@submission_options
@click.option("--priority", type=click.IntRange(0, 9), default=5, show_default=True, help="9 goes first.")
@click.option("--wait", is_flag=True, help="Wait for the run's end and print its result.")
@click.option(
    "--timeout", type=click.FloatRange(0, 10**9), metavar="SECONDS", help="How long to wait; the run goes on."
)
@json_option
def submit(
    agent: str,
    given_input: str,
    key: str | None,
    given_tags: tuple[str, ...],
    priority: int,
    wait: bool,
    timeout: float | None,
    as_json: bool,
) -> int:
    """Submit a run of AGENT and print its id.

    The run is stored when this returns, also while the broker or all workers are down. Where the modules of
    PAIDONCE_AGENTS are at hand, the input is checked against them first; otherwise the worker checks it.
    """
    if timeout is not None and not wait:
        raise click.UsageError("--timeout is for --wait")
    arguments, tags = parse_input(given_input), parse_tags(given_tags)
    settings = load_settings()
    try:
        load_modules(settings.agents)
    except ModuleNotLoadable as error:
        say(f"Warning: the input is not checked here: {error.message}")
    client = open_client(settings)
    handle = client.submit(agent, arguments, key=key, tags=tags, priority=priority)
    _warn_if_nobody_holds(client, agent)
    if wait:
        return _wait(handle, timeout, as_json)
    print_json({"run_id": handle.id})
    return 0


def _warn_if_nobody_holds(client: Client, agent: str) -> None:
    """A misspelled name is no error, a worker that holds it may come; but it is worth a word.

    Where no worker is up, the modules of PAIDONCE_AGENTS say what one will hold.
    """
    workers = workers_alive(client)
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
