"""Costs for people: a table with a bar for each row's share."""

from __future__ import annotations

import click

from paidonce.cli.output import shortened
from paidonce.cli.tables import SafeTable, output_console
from paidonce_models.money import NANOUSD_PER_USD, usd_string
from paidonce_models.store.ledger.cost_queries import CostRow, CostTable
from paidonce_models.store.ledger.cost_views import ViewRows

BAR_CELLS = 12
_EIGHTHS = " ▏▎▍▌▋▊▉█"
CENT_NANOUSD = NANOUSD_PER_USD // 100


def print_cost_table(table: CostTable) -> None:
    """The rows, what a limit left out, the total, and what may have been billed on top."""
    shown = SafeTable(box=None, pad_edge=False)
    for name in table.by:
        shown.add_column(name, overflow="fold")
    for heading in ("calls", "input", "output", "money"):
        shown.add_column(heading, justify="right", no_wrap=True)
    shown.add_column("share", no_wrap=True)
    spent = table.total.cost_nanousd
    for row in table.rows:
        shown.add_row(*(shortened(row.names[name] or "-") for name in table.by), *_measures(row), _share(row, spent))
    if table.by and table.others is not None:
        label = f"{table.others_rows:,} more"
        shown.add_row(label, *[""] * (len(table.by) - 1), *_measures(table.others), _share(table.others, spent))
    if table.by:
        shown.add_section()
        shown.add_row("total", *[""] * (len(table.by) - 1), *_measures(table.total), "")
    output_console().print(shown)
    for line in _remarks(table.total):
        click.echo(line)


def print_view(found: ViewRows) -> None:
    """A view with its money in US dollars and its headings without the unit."""
    if not found.rows:
        click.echo("No rows.")
        return
    table = SafeTable(box=None, pad_edge=False)
    for number, name in enumerate(found.columns):
        is_number = any(not isinstance(row[number], str | None) for row in found.rows)
        heading = name.removesuffix("_nanousd").replace("_", " ")
        table.add_column(heading, justify="right" if is_number else "left", overflow="fold")
    for row in found.rows:
        values = dict(zip(found.columns, row, strict=True))
        unpriced = values.get("unpriced_calls")
        unpriced = unpriced if isinstance(unpriced, int) else 0
        table.add_row(*(_shown(name, value, unpriced) for name, value in values.items()))
    output_console().print(table)


def _shown(name: str, value: object, unpriced_calls: int) -> str:
    if value is None:
        return "unknown" if name.endswith(("_nanousd", "_tokens")) else "-"
    if name.endswith("_nanousd") and isinstance(value, int):
        return short_usd(value, unpriced_calls=unpriced_calls)
    if isinstance(value, float):
        return f"{value:.1f} %"
    return f"{value:,}" if isinstance(value, int) else shortened(str(value))


def short_usd(nanousd: int | None, *, unpriced_calls: int = 0) -> str:
    """US dollars in a column: cents from a dollar on, else four significant digits."""
    if nanousd is None:
        return "unknown"
    if nanousd >= NANOUSD_PER_USD:
        nanousd = round(nanousd / CENT_NANOUSD) * CENT_NANOUSD
    elif nanousd > 0:
        step = 10 ** max(0, len(str(nanousd)) - 4)
        nanousd = round(nanousd / step) * step
    return usd_string(nanousd, unpriced_calls=unpriced_calls)


def _measures(row: CostRow) -> tuple[str, ...]:
    if row.calls == 0:
        return "0", "", "", ""
    return (
        f"{row.calls:,}",
        _tokens(row.input_tokens),
        _tokens(row.output_tokens),
        short_usd(row.cost_nanousd, unpriced_calls=row.unpriced_calls),
    )


def _tokens(tokens: int | None) -> str:
    return "unknown" if tokens is None else f"{tokens:,}"


def _share(row: CostRow, spent: int | None) -> str:
    """The share of the known money; empty if there is none."""
    if not spent or row.cost_nanousd is None:
        return ""
    share = row.cost_nanousd / spent
    eighths = round(share * BAR_CELLS * 8)
    bar = "█" * (eighths // 8) + (_EIGHTHS[eighths % 8] if eighths % 8 else "")
    return f"{bar:<{BAR_CELLS}} {share:6.1%}"


def _remarks(total: CostRow) -> list[str]:
    remarks = []
    if total.calls == 0 and total.lost_attempts == 0:
        return ["No calls recorded."]
    if total.unpriced_calls:
        remarks.append(f"Calls without a price: {total.unpriced_calls:,}. The money is a lower bound.")
    if total.lost_attempts:
        estimate = short_usd(total.possibly_billed_nanousd, unpriced_calls=total.lost_without_estimate)
        remarks.append(
            f"May also have been billed: {estimate}. Lost attempts: {total.lost_attempts:,}, estimated as the mean of "
            "the last accepted attempts of their step minus what was recorded"
            + (f", {total.lost_without_estimate:,} of them without a basis." if total.lost_without_estimate else ".")
        )
    return remarks
