"""``paidonce prices``: the user's own prices, dated, on top of the price list."""

from __future__ import annotations

from datetime import datetime

import click

from paidonce.cli.arguments import read_file
from paidonce.cli.connections import OpenStore, open_checked
from paidonce.cli.documents.json_documents import Document, time_text
from paidonce.cli.documents.price_documents import listed_document, prices_table, row_document, row_text
from paidonce.cli.output import json_option, print_json, say, tell
from paidonce.cli.tables import output_console
from paidonce.cli.texts.price_texts import parse_amount, parse_moment, parse_name, parse_price_file
from paidonce_models.instants import moment_of
from paidonce_models.pricing import PriceRow
from paidonce_models.pricing.own_prices import find_row
from paidonce_models.store.ledger.prices import Addition, Change, add_price_rows, read_price_rows


@click.group()
def prices() -> None:
    """List your own prices, set one, or import a file of them.

    A call is priced by your own row that is valid when it starts, else by the list of genai-prices, else its cost is
    unknown. Rows are dated and never change, so the recorded cost of a call never changes.
    """


@prices.command("list")
@click.option("--model", "name", metavar="MODEL", help="Only prices of this model ([PROVIDER/]MODEL), the list's too.")
@click.option("--at", "at_text", metavar="DATE", help="Only prices valid at this time.")
@json_option
def list_prices(name: str | None, at_text: str | None, as_json: bool) -> None:
    """List your own prices in US dollars per million tokens; with --model also the price that applies."""
    store = open_checked()
    at = moment_of(store.database.now_us()) if at_text is None else parse_moment(at_text, "--at")
    with store.database.read() as connection:
        views = read_price_rows(connection, store.namespace)
    listed, applies = None, None
    if name is not None:
        listed, applies, asked = _listed_and_applied(name, [view.row for view in views], at)
        views = [view for view in views if view.row.matches(asked[0] or view.row.provider, asked[1])]
    shown = [
        row_document(view.row, created_at=view.created_at, at=at)
        for view in views
        if at_text is None or view.row.is_active(at)
    ]
    shown += [] if listed is None else [listed]
    if as_json:
        print_json({"at": time_text(at), "model": name, "applies": applies, "prices": shown})
        return
    if not shown:
        say("No prices of your own." if name is None else f"No price of {name}: the cost of its calls is unknown.")
        return
    output_console().print(prices_table(shown))
    if name is not None:
        tell()
        tell(f"Calls of {name} at {time_text(at)}: {applies or 'no price applies, their cost is unknown'}")


@prices.command("set")
@click.argument("name", metavar="PROVIDER/MODEL")
@click.option("--input", "input_usd", metavar="USD", required=True, help="Per million input tokens.")
@click.option("--cached-input", "cache_read_usd", metavar="USD", help="Per million cache reads.  [default: input]")
@click.option("--cache-write", "cache_write_usd", metavar="USD", help="Per million cache writes.  [default: input]")
@click.option(
    "--output", "output_usd", metavar="USD", help="Per million output tokens; without it, output is unpriced."
)
@click.option(
    "--from", "from_text", metavar="DATE", help="From when, such as 2026-12-01 or 2026-12-01T09:00Z.  [default: now]"
)
@click.option("--until", "until_text", metavar="DATE", help="Until when.  [default: open-ended]")
@click.option("--note", default="", help="Where the price comes from, for people.")
@json_option
def set_price(
    name: str,
    input_usd: str,
    cache_read_usd: str | None,
    cache_write_usd: str | None,
    output_usd: str | None,
    from_text: str | None,
    until_text: str | None,
    note: str,
    as_json: bool,
) -> None:
    """Set a model's price from a date on, in US dollars per million tokens.

    PROVIDER may be '*' for any, MODEL may end with '*'. The open-ended row ends where the new one begins; any other
    overlap is refused. Workers apply the new row within half a minute.
    """
    provider, model = parse_name(name)
    amounts = {
        "cache_read": (cache_read_usd, "--cached-input"),
        "cache_write": (cache_write_usd, "--cache-write"),
        "output": (output_usd, "--output"),
    }
    given = {key: None if text is None else parse_amount(text, option) for key, (text, option) in amounts.items()}
    input_nanousd = parse_amount(input_usd, "--input")
    begins = None if from_text is None else parse_moment(from_text, "--from")
    ends = None if until_text is None else parse_moment(until_text, "--until")
    store = open_checked()
    row = PriceRow(
        provider=provider,
        model=model,
        valid_from=begins or moment_of(store.database.now_us()),
        valid_until=ends,
        input_nanousd_per_mtok=input_nanousd,
        cache_read_nanousd_per_mtok=given["cache_read"],
        cache_write_nanousd_per_mtok=given["cache_write"],
        output_nanousd_per_mtok=given["output"],
        note=note,
    )
    (addition,) = _add(store, [row])
    if as_json:
        at = moment_of(store.database.now_us())
        print_json({"change": addition.change.value, "price": _document(addition.row, at), "ended": _ended(addition)})
        return
    _say_added(addition)


@prices.command("import")
@click.argument("file", metavar="FILE")
@json_option
def import_prices(file: str, as_json: bool) -> None:
    """Add the prices in FILE (JSON or CSV, - reads standard input): all of them or none.

    Rows that exist already are skipped, so a file can be imported again after rows were added to it. The
    columns are provider, model, valid_from, valid_until, input_usd_per_mtok, cache_read_usd_per_mtok,
    cache_write_usd_per_mtok, output_usd_per_mtok, note.
    """
    rows = parse_price_file(*_read(file))
    store = open_checked()
    additions = _add(store, rows)
    added = [addition for addition in additions if addition.change is Change.ADDED]
    if as_json:
        at = moment_of(store.database.now_us())
        print_json(
            {
                "added": len(added),
                "unchanged": len(additions) - len(added),
                "prices": [_document(addition.row, at) for addition in additions],
            }
        )
        return
    for addition in added:
        _say_added(addition)
    tell(f"{len(added)} added, {len(additions) - len(added)} there already.")


def _listed_and_applied(
    name: str, rows: list[PriceRow], at: datetime
) -> tuple[Document | None, str | None, tuple[str | None, str]]:
    """The list's price of a model, the source that prices its calls, and the provider and model as found."""
    from paidonce_models.pricing.catalogue import find_listed_price  # noqa: PLC0415 - takes 0.2 s, other commands do not

    provider, model = parse_name(name) if "/" in name else (None, name)
    listed = find_listed_price(provider, model, at, {})
    if provider is None and listed is not None:
        provider = listed.name.partition("/")[0]
    row = find_row(rows, provider, model, at)
    document = None if listed is None or listed.card is None else listed_document(listed.name, listed.card)
    source = row.label if row is not None else None if document is None else str(document["source"])
    return document, source, (provider, model)


def _add(store: OpenStore, rows: list[PriceRow]) -> list[Addition]:
    return store.database.transact(lambda connection: add_price_rows(connection, store.namespace, rows))


def _document(row: PriceRow, at: datetime) -> Document:
    document = row_document(row, created_at=None, at=at)
    del document["created_at"]
    return document


def _ended(addition: Addition) -> Document | None:
    if addition.ended is None:
        return None
    return {"id": addition.ended.id, "valid_until": time_text(addition.row.valid_from)}


def _say_added(addition: Addition) -> None:
    row = addition.row
    if addition.change is Change.UNCHANGED:
        tell(f"{row.name}: {row.label} says so already.")
        return
    until = "" if row.valid_until is None else f" until {time_text(row.valid_until)}"
    tell(f"{row.name}: {row_text(row)} per million tokens from {time_text(row.valid_from)}{until} (own:{row.id}).")
    if addition.ended is not None:
        tell(f"  The row own:{addition.ended.id} ends there.")


def _read(file: str) -> tuple[bytes, str]:
    where = "standard input" if file == "-" else file
    return read_file(file, where), where
