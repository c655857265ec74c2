"""Prices as ``paidonce prices`` prints them: one shape for own rows and for the list's, as JSON and as a table."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from paidonce.cli.documents.json_documents import Document, time_text
from paidonce.cli.tables import SafeTable
from paidonce_models.money import decimal_usd_string, usd_string
from paidonce_models.pricing.own_prices import PRICE_NAMES, PriceRow
from paidonce_models.pricing.rate_card import Bracket, RateCard


def row_document(row: PriceRow, *, created_at: datetime | None, at: datetime) -> Document:
    """An own row; ``in_force`` says whether its dates cover ``at``."""
    amounts = [getattr(row, f"{name}_nanousd_per_mtok") for name in PRICE_NAMES]
    return {
        "id": row.id,
        "source": row.label,
        "provider": row.provider or "*",
        "model": row.model,
        "valid_from": time_text(row.valid_from),
        "valid_until": time_text(row.valid_until),
        **_amounts(amounts),
        "note": row.note,
        "created_at": time_text(created_at),
        "in_force": row.is_active(at),
    }


def listed_document(name: str, card: RateCard) -> Document:
    """A price of the list, which knows the tariff's plain units only here; larger requests stand in ``note``."""
    provider, _, model = name.partition("/")
    return {
        "id": None,
        "source": card.price_source,
        "provider": provider,
        "model": model,
        "valid_from": None,
        "valid_until": None,
        **_amounts(card.brackets[0].quoted),
        "note": "; ".join(_bracket_text(bracket) for bracket in card.brackets[1:]),
        "created_at": None,
        "in_force": True,
    }


def prices_table(documents: Sequence[Document]) -> SafeTable:
    """US dollars per million tokens, a line for each row."""
    table = SafeTable("model", "from", "until", box=None, pad_edge=False)
    for title in ("input", "cache read", "cache write", "output"):
        table.add_column(title, justify="right")
    table.add_column("source")
    table.add_column("note")
    for document in documents:
        table.add_row(
            f"{document['provider']}/{document['model']}",
            _day(document["valid_from"]),
            _day(document["valid_until"]),
            *(_usd(document[f"{name}_usd_per_mtok"]) for name in PRICE_NAMES),
            str(document["source"]).partition(" ")[0] if document["id"] else str(document["source"]),
            str(document["note"]),
        )
    return table


def row_text(row: PriceRow) -> str:
    """One row's prices in a sentence's worth of words."""
    known = [(name, getattr(row, f"{name}_nanousd_per_mtok")) for name in PRICE_NAMES]
    return ", ".join(f"{name.replace('_', ' ')} {usd_string(price)}" for name, price in known if price is not None)


def _amounts(nanousd: Sequence[int | None]) -> Document:
    return {f"{name}_usd_per_mtok": decimal_usd_string(price) for name, price in zip(PRICE_NAMES, nanousd, strict=True)}


def _bracket_text(bracket: Bracket) -> str:
    prices = zip(PRICE_NAMES, bracket.quoted, strict=True)
    texts = [f"{name.replace('_', ' ')} {usd_string(price)}" for name, price in prices if price is not None]
    return f"above {bracket.start:,} input tokens: {', '.join(texts)}"


def _day(text: object) -> str:
    return "" if text is None else str(text).replace("T00:00:00.000000Z", "").replace(".000000Z", "Z")


def _usd(text: object) -> str:
    if text is None:
        return "-"
    whole, _, rest = str(text).partition(".")
    return f"{whole}.{rest.rstrip('0').ljust(2, '0')}"
