"""``paidonce resolve``: a person settles a step whose outcome is unknown or blocked."""

from __future__ import annotations

import click

from paidonce.cli.arguments import LAST_STEP
from paidonce.cli.clients import open_client
from paidonce.cli.output import json_option, print_json, say, tell
from paidonce.configuration.module_loading import load_modules
from paidonce.settings import load_settings
from paidonce_models.errors import InvalidInput, ModuleNotLoadable
from paidonce_models.payloads.encoding import decode_json


@click.command()
@click.argument("run", metavar="RUN")
@click.argument("step", type=click.IntRange(1, LAST_STEP), metavar="STEP")
@click.option("--succeeded", "result", metavar="JSON", help="It succeeded, with this result.")
@click.option("--kept", is_flag=True, help="It succeeded; the kept result is its result.")
@click.option("--failed", is_flag=True, help="It failed; the agent gets StepFailed.")
@click.option("--message", metavar="TEXT", help="With --failed: the error message for the agent.")
@click.option("--retry", is_flag=True, help="Execute it once more.")
@json_option
def resolve(
    run: str, step: int, result: str | None, kept: bool, failed: bool, message: str | None, retry: bool, as_json: bool
) -> None:
    """Settle STEP of RUN, whose outcome is unknown or whose result is blocked, so that the run resumes.

    A step with delivery="at_most_once" whose worker vanished or that timed out is not repeated, because it may have
    done its work. Find out, and say so here. A step whose result does not fit the code is blocked, and it was paid for:
    --kept takes the kept result, --retry pays once more. If the modules of PAIDONCE_AGENTS can be imported here, they
    check the result against the step's type first.
    """
    if sum((result is not None, kept, failed, retry)) != 1:
        raise click.UsageError("say one of --succeeded JSON, --kept, --failed and --retry")
    if message is not None and not failed:
        raise click.UsageError("--message is for --failed")
    settings = load_settings()
    value = None if result is None else _result(result)
    if result is not None or kept:
        try:
            load_modules(settings.agents)
        except ModuleNotLoadable as error:
            say(f"Warning: the result is not checked here: {error.message}")
    handle = open_client(settings).run(run)
    if result is not None:
        handle.resolve_succeeded(step, value)
    elif kept:
        handle.resolve_kept(step)
    elif failed:
        handle.resolve_failed(step, message)
    else:
        handle.resolve_retry(step)
    outcome = "succeeded" if result is not None or kept else "failed" if failed else "retry"
    if as_json:
        print_json({"run_id": handle.id, "step": step, "resolved": outcome})
    else:
        says = {"succeeded": "succeeded", "failed": "failed", "retry": "is executed again"}[outcome]
        tell(f"Step {step} of run {handle.id} {says}; the run resumes.")


def _result(text: str) -> object:
    try:
        return decode_json(text.encode("utf-8", "surrogateescape"))
    except InvalidInput as error:
        raise InvalidInput(f"--succeeded: {error.message}; quote it for the shell, as in --succeeded '42'") from None
