"""``paidonce bill``: one run's costs as a tree of steps, attempts and calls."""

from __future__ import annotations

import click

from paidonce.cli.connections import open_checked
from paidonce.cli.documents.cost_documents import itemised_bill_document
from paidonce.cli.output import json_option, print_exact, print_json, tell_lines
from paidonce.cli.tables import SafeTable, output_console
from paidonce.cli.texts.bill_text import bill_text
from paidonce.cli.texts.cost_text import short_usd
from paidonce_models.errors import InvalidInput
from paidonce_models.money import usd_string
from paidonce_models.store.ledger.bill_statements import recomputing_statements
from paidonce_models.store.ledger.itemised_bills import (
    BilledAttempt,
    ItemisedBill,
    Spent,
    read_itemised_bill,
)
from paidonce_models.store.queries import resolve_run


@click.command()
@click.argument("run", metavar="RUN")
@json_option
@click.option("--sql", "as_sql", is_flag=True, help="Print SQL that recomputes the figures from the ledger's rows.")
def bill(run: str, as_json: bool, as_sql: bool) -> None:
    """Show what RUN (its id or an alias) cost: its steps, their attempts, their calls.

    Each line is the sum of the lines below it. A child run is a step that names it, with a separate bill. What
    providers may have billed for lost attempts is an estimate and is not part of the money.
    """
    if as_json and as_sql:
        raise InvalidInput("--json and --sql exclude each other; give one of them")
    store = open_checked()
    with store.database.read_at_once() as connection:
        found = read_itemised_bill(connection, resolve_run(connection, store.namespace, run))
    if as_sql:
        print_exact("\n\n".join(f"{statement};" for statement in recomputing_statements(found.run_id)) + "\n")
    elif as_json:
        print_json(itemised_bill_document(found))
    else:
        _print_tree(found)
        click.echo(f"\n{bill_text(found.bill)}")
        for line in _remarks(found):
            tell_lines(line)


def _print_tree(found: ItemisedBill) -> None:
    table = SafeTable(box=None, pad_edge=False)
    table.add_column("run", overflow="fold")
    table.add_column("cause")
    for heading in ("duration", "input", "output", "money"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("request", overflow="fold")
    table.add_row(f"{found.agent} {found.run_id}", found.state.value, *_measures(found.duration_us, found.spent), "")
    for step in found.steps:
        name = step.name if step.child_run_id is None else f"{step.name} (run {step.child_run_id})"
        table.add_row(f"  {step.position} {name}", step.state, *_measures(step.duration_us, step.spent), "")
        for attempt in step.attempts:
            label = f"    attempt {attempt.number}" + ("" if attempt.outcome is None else f" {attempt.outcome}")
            table.add_row(label, attempt.cause.value, *_measures(attempt.duration_us, attempt.spent), "")
            for call in attempt.calls:
                what = call.tool or call.model or call.kind
                retry = f" retry {call.http_retry}" if call.http_retry else ""
                status = "" if call.status == "ok" else f" {call.status}"
                table.add_row(
                    f"      {what}{retry}{status}",
                    "",
                    *_measures(call.duration_us, call.spent),
                    call.provider_request_id or "",
                )
    output_console().print(table)


def _measures(duration_us: int | None, spent: Spent) -> tuple[str, str, str, str]:
    lasted = "" if duration_us is None else f"{duration_us / 1e6:,.3f} s"
    if spent.calls == 0:
        return lasted, "", "", ""
    if spent.cost_nanousd is None and spent.unpriced_calls == 0:
        return lasted, _tokens(spent.input_tokens), _tokens(spent.output_tokens), "not billed"
    money = short_usd(spent.cost_nanousd, unpriced_calls=spent.unpriced_calls)
    return lasted, _tokens(spent.input_tokens), _tokens(spent.output_tokens), money


def _tokens(tokens: int | None) -> str:
    return "unknown" if tokens is None else f"{tokens:,}"


def _remarks(found: ItemisedBill) -> list[str]:
    lines = [
        f"  {cause.value:<12}  {usd_string(spent.cost_nanousd, unpriced_calls=spent.unpriced_calls)}"
        for cause, spent in found.by_cause
    ]
    if lines:
        lines.insert(0, "\nBy cause")
    if found.lost_attempts:
        estimate = usd_string(found.possibly_billed_nanousd, unpriced_calls=found.lost_without_estimate)
        lines.append(f"\nMay also have been billed  {estimate}")
        for step in found.steps:
            for attempt in step.attempts:
                if attempt.outcome == "lost":
                    lines.append(f"  step {step.position} attempt {attempt.number}: {_basis(attempt)}")
    return lines


def _basis(attempt: BilledAttempt) -> str:
    if attempt.possibly_billed_nanousd is None:
        return "unknown, no accepted attempt of this step has a price"
    return (
        f"{usd_string(attempt.possibly_billed_nanousd)}, from {usd_string(attempt.basis_nanousd)} that accepted "
        "attempts of this step cost on average"
    )
