"""``paidonce costs``: what was spent, grouped as the user likes."""

from __future__ import annotations

import re
from collections.abc import Iterable

import click

from paidonce.cli.arguments import MOST_ROWS
from paidonce.cli.connections import OpenStore, open_checked
from paidonce.cli.documents.cost_documents import cost_table_csv, cost_table_document, view_csv, view_document
from paidonce.cli.output import json_option, print_exact, print_json, say
from paidonce.cli.texts.cost_text import print_cost_table, print_view
from paidonce.costs import LONG_LIST_LIMIT, answer, cost_question, costs_sql
from paidonce_models.errors import InvalidInput
from paidonce_models.store.ledger.cost_views import VIEWS, read_view, view_sql


@click.command()
@click.option(
    "--by",
    "given_by",
    metavar="NAMES",
    multiple=True,
    help="Any of agent, step, tool, model, run, cause, day, tag:NAME, separated by commas; a comma in a tag's "
    "name is written \\,.  [default: agent]",
)
@click.option("--since", metavar="SPAN|DAY", help="A span of UTC days that ends today (7d, 4w), or the first day.")
@click.option("--agent", help="Only this agent.")
@click.option(
    "--view",
    "view_name",
    metavar="NAME",
    type=click.Choice(tuple(VIEWS)),
    help="Show one of the views that docs/reference/costs.md lists, instead of a grouping.",
)
@click.option(
    "--limit",
    type=click.IntRange(1, MOST_ROWS),
    help="The most rows to show; the rest is one line.  [default: 100 with run, a tag or a view, else all]",
)
@json_option
@click.option("--csv", "as_csv", is_flag=True, help="Print the rows as CSV.")
@click.option("--sql", "as_sql", is_flag=True, help="Print SQL that recomputes the figures from the ledger's rows.")
def costs(
    given_by: tuple[str, ...],
    since: str | None,
    agent: str | None,
    view_name: str | None,
    limit: int | None,
    as_json: bool,
    as_csv: bool,
    as_sql: bool,
) -> None:
    """Show what was spent. The rows add up to the total exactly.

    A sum with unknown parts is a lower bound (≥), and unknown is not 0. What providers may have billed for lost
    attempts is an estimate and is not part of the money. A call belongs to its own run, never to its parent's.
    """
    if as_json + as_csv + as_sql > 1:
        raise InvalidInput("--json, --csv and --sql exclude each other; give one of them")
    store = open_checked()
    if view_name is not None:
        if since is not None or agent is not None or given_by:
            raise InvalidInput(
                f"--view {view_name} has its own grouping and covers all days and agents; leave out --by, --since "
                "and --agent"
            )
        _show_view(store, view_name, LONG_LIST_LIMIT if limit is None else limit, (as_json, as_csv, as_sql))
        return
    question = cost_question(
        namespace=store.namespace,
        by=_names(given_by or ("agent",)),
        since=since,
        agent=agent,
        limit=limit,
    )
    if as_sql:
        print_exact(f"{costs_sql(store.database, question)};\n")
        return
    table = answer(store.database, question)
    if as_json:
        print_json(cost_table_document(table))
    elif as_csv:
        print_exact(cost_table_csv(table))
        if table.others_rows:
            say(f"{table.others_rows:,} more rows are left out, with {table.others_calls:,} calls; --limit shows more.")
    else:
        print_cost_table(table)


def _names(given: Iterable[str]) -> list[str]:
    """The names between the commas, in order; the backslash before a comma keeps it in a tag's name."""
    parts = [part.replace("\\,", ",").strip() for names in given for part in re.split(r"(?<!\\),", names)]
    return [part for part in parts if part]


def _show_view(store: OpenStore, name: str, limit: int, form: tuple[bool, bool, bool]) -> None:
    as_json, as_csv, as_sql = form
    namespace = store.namespace
    if as_sql:
        print_exact(f"{view_sql(name, namespace, limit=limit)};\n")
        return
    with store.database.read_at_once() as connection:
        found = read_view(connection, name, namespace, limit=limit)
    if as_json:
        print_json(view_document(found))
    elif as_csv:
        print_exact(view_csv(found))
    else:
        print_view(found)
    if not found.is_complete:
        say(f"Only the first {limit:,} rows; more rows are left out, --limit shows them.")
