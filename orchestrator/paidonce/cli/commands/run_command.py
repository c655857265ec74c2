"""``paidonce run``: one agent from start to end in the foreground; starts a worker if none is up.

The run is an ordinary durable run: if this command is interrupted, the run keeps its finished steps and resumes on the
next worker that holds its code.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import click

from paidonce.cli.arguments import parse_input, parse_tags, submission_options
from paidonce.cli.background_worker import BackgroundWorker
from paidonce.cli.broker_checks import check_broker, check_tasks
from paidonce.cli.clients import open_client
from paidonce.cli.documents.json_documents import bill_document, value_of
from paidonce.cli.exit_codes import EXIT_INTERRUPTED, EXIT_TERMINATED
from paidonce.cli.output import error_document, interruption_document, json_option, print_json, say, say_error
from paidonce.cli.progress import progress_for_this_terminal
from paidonce.cli.texts.bill_text import bill_text
from paidonce.cli.waiting import RunWatch
from paidonce.cli.worker_program import declared_queues
from paidonce.configuration.module_loading import load_modules
from paidonce.declarations.declaration_checks import refuse_unfit
from paidonce.declarations.registry import AnyAgent, default_registry
from paidonce.run_handle import RunHandle
from paidonce_models.errors import InvalidInput, PaidonceError, RunEnded, UnknownAgent
from paidonce_models.store.ledger.bills import Bill, read_bill


class Terminated(BaseException):
    """SIGTERM reached this command; a ``BaseException`` so that no handler takes it for an error."""


@click.command()
@click.argument("target", metavar="MODULE:AGENT")
@submission_options
@json_option
def run(target: str, given_input: str, key: str | None, given_tags: tuple[str, ...], as_json: bool) -> int:
    """Run an agent and print its result and its bill.

    MODULE is a name (shop.agents) or a file (my_agents.py). The steps are shown on standard error as they happen. If no
    live worker holds the agent, this command starts one. The run is durable: if you interrupt it, it keeps its finished
    steps, and the same --key resumes it.
    """
    module, agent = _load_target(target)
    arguments, tags = parse_input(given_input), parse_tags(given_tags)
    client = open_client()
    check_broker(client.settings)
    check_tasks(client.settings)
    handle = client.submit(agent, arguments, key=key, tags=tags)
    say(f"Run {handle.id}")
    queues = sorted(declared_queues(default_registry))
    worker = BackgroundWorker(client.settings, [module], queues)
    watch = RunWatch(client=client, run_id=handle.id, agent=agent, worker=worker)
    try:
        with _sigterm_raises():
            try:
                with progress_for_this_terminal() as progress:
                    watch.wait(progress)
            finally:
                worker.stop()
    except (KeyboardInterrupt, Terminated) as interruption:
        say(
            f"The run keeps its finished steps and resumes on a worker: `paidonce worker {module.__name__}`; "
            f"`paidonce cancel {handle.id}` ends it."
        )
        if as_json:
            print_json({**interruption_document(interruption), "run_id": handle.id})
        return EXIT_INTERRUPTED if isinstance(interruption, KeyboardInterrupt) else EXIT_TERMINATED
    with client.database.read() as connection:
        bill = read_bill(connection, handle.id)
    code = _report(handle, bill, as_json)
    if code == 0:
        worker.forget_log()
    return code


def _load_target(target: str) -> tuple[ModuleType, AnyAgent]:
    """The module and the agent behind ``MODULE:AGENT``. Raises ``InvalidInput`` or ``ModuleNotLoadable``."""
    module_name, separator, name = target.rpartition(":")
    if not separator:
        raise InvalidInput(f"{target!r}: expected MODULE:AGENT, as in `paidonce run my_agents.py:research`")
    if not module_name or not name:
        raise InvalidInput(f"{target!r}: the part {'before' if name else 'after'} the colon is missing: MODULE:AGENT")
    (module,) = load_modules([module_name])
    refuse_unfit(default_registry)
    found = default_registry.agent(name)
    if found is not None:
        return module, found
    for agent in default_registry.agents:  # named otherwise than its function
        if getattr(module, name, None) is agent:
            return module, agent
    known = ", ".join(sorted(agent.name for agent in default_registry.agents)) or "none"
    raise UnknownAgent(f"no agent is named {name!r}; module {module.__name__!r} and what it imports hold: {known}")


def _report(handle: RunHandle, bill: Bill, as_json: bool) -> int:
    """Print the result and the bill, or why there is no result; return the exit code."""
    failure = _failure(handle)
    view = handle.view()
    if as_json:
        told = {"run_id": handle.id, "state": view.state.value}
        if failure is None:
            print_json({**told, "result": value_of(view.result), "bill": bill_document(bill)})
        else:
            print_json(error_document(failure, {**told, "bill": bill_document(bill)}))
    elif failure is None:
        print_json(value_of(view.result))
        click.echo(f"\n{bill_text(bill)}")
    else:
        click.echo(bill_text(bill))
    if failure is None:
        return 0
    say_error(f"{failure.message}; `paidonce show {handle.id}` shows its steps")
    return failure.exit_code


def _failure(handle: RunHandle) -> PaidonceError | None:
    try:
        handle.result(timeout=0)
    except RunEnded as error:
        return error
    return None


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """While waiting, SIGTERM ends the command cleanly: it stops the worker and leaves nothing behind."""

    def terminate(number: int, frame: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
