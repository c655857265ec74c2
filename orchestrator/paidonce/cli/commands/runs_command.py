"""``paidonce runs``: the newest runs of this namespace."""

from __future__ import annotations

import click

from paidonce.cli.arguments import MOST_ROWS
from paidonce.cli.connections import open_checked
from paidonce.cli.documents.json_documents import run_line, time_text
from paidonce.cli.output import json_option, print_json, say, tags_text
from paidonce.cli.tables import SafeTable, output_console
from paidonce_models.states import RunState
from paidonce_models.store.queries import list_runs


@click.command()
@click.option("--state", type=click.Choice([state.value for state in RunState]), help="Only runs in this state.")
@click.option("--agent", help="Only runs of this agent.")
@click.option("--limit", type=click.IntRange(1, MOST_ROWS), default=100, show_default=True, help="The most runs shown.")
@json_option
def runs(state: str | None, agent: str | None, limit: int, as_json: bool) -> None:
    """List runs, newest first."""
    store = open_checked()
    with store.database.read() as connection:
        found = list_runs(connection, store.namespace, state=state, agent=agent, most=limit)
    if as_json:
        print_json([run_line(run) for run in found])
        return
    if not found:
        say("No runs.")
        return
    table = SafeTable("run", "agent", "state", "key", "created", "tags", box=None, pad_edge=False)
    for run in found:
        why = f" ({run.state_reason})" if run.state_reason else ""
        table.add_row(
            run.run_id, run.agent, f"{run.state}{why}", run.key or "", time_text(run.created_at), tags_text(run.tags)
        )
    output_console().print(table)
