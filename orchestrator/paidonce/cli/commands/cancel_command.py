"""``paidonce cancel``: cancel a run."""

from __future__ import annotations

import click

from paidonce.cli.clients import open_client
from paidonce.cli.output import json_option, print_json, tell
from paidonce_models.states import RunState


@click.command()
@click.argument("run", metavar="RUN")
@json_option
def cancel(run: str, as_json: bool) -> None:
    """Cancel RUN (its id or an alias) and its child runs.

    The `finally` blocks of its agent may still await steps for a while. Does nothing to a run that has ended. What was
    spent stays recorded.
    """
    client = open_client()
    handle = client.run(run)
    before = RunState(handle.state)
    handle.cancel()
    state = RunState(handle.state)
    requested = not before.is_terminal
    if as_json:
        print_json({"run_id": handle.id, "state": state.value, "cancel_requested": requested})
    elif not requested:
        tell(f"Run {handle.id} had already ended: {state}.")
    elif state is RunState.CANCELLED:
        tell(f"Run {handle.id} is cancelled.")
    else:
        tell(f"Run {handle.id} is being cancelled; it is {state} until its agent has ended.")
