"""The bill at the end of the demo, beside the model server's own count."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from examples.demo.observation import SeenRequest, SeenStep
from examples.demo.verdict import Verdict
from paidonce_models.database.transactions import Database
from paidonce_models.money import usd_string
from paidonce_models.store.ledger.bills import read_bill

Line = tuple[str, str]


def bill_of(database: Database, run_id: str, steps: Sequence[SeenStep]) -> list[Line]:
    """Paidonce's own bill of a run, in words."""
    with database.read() as connection:
        bill = read_bill(connection, run_id)
    model_calls = sum(step.is_paid and step.is_finished for step in steps)
    unpriced = bill.unpriced_calls
    return [
        ("steps paid", f"{bill.steps_paid} ({model_calls} model calls, {bill.steps_paid - model_calls} tool calls)"),
        ("steps not paid again", f"{bill.steps_not_repeated}, worth {usd_string(bill.avoided_cost_nanousd)}"),
        ("lost attempts", f"{bill.attempts_lost} (cut off by the kill; the provider may still bill it)"),
        ("tokens", f"{_number(bill.input_tokens)} in, {_number(bill.output_tokens)} out"),
        ("money", usd_string(bill.cost_nanousd, unpriced_calls=unpriced)),
        ("starting over would have cost", usd_string(bill.starting_over_cost_nanousd, unpriced_calls=unpriced)),
    ]


def _number(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"


def print_bill(console: Console, lines: Sequence[Line]) -> None:
    """Two columns, the second aligned."""
    table = Table(title="The bill", show_header=False, title_justify="left", expand=False)
    table.add_column(style="bold")
    table.add_column()
    for name, value in lines:
        table.add_row(name, value)
    console.print(table)


def server_lines(requests: Sequence[SeenRequest], verdict: Verdict) -> list[Line]:
    """The model server's own count."""
    unread = [request for request in requests if not request.delivered]
    tokens = sum(request.tokens for request in unread)
    counted = f"{verdict.requests} requests"
    if unread:
        counted += f", {len(unread)} of them without a reader ({tokens:,} tokens that may be billed)"
    return [
        ("the model server counted", counted),
        ("finished steps requested again", str(len(verdict.repeated))),
    ]
