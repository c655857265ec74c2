"""Price rows of one's own in the store: reading them, and adding to them without ever rewriting one.

Owns how a new row is fitted between those that are there. A row that holds
until further notice is ended where the new one begins; that is the only change
a row ever sees, guarded by its end being open still. Everything else that
would overlap is refused, so that the price of a past call cannot change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import Connection, text

from paidonce_models.errors import InvalidInput
from paidonce_models.ids import uuid7
from paidonce_models.instants import microseconds_of, moment_of
from paidonce_models.pricing.rows import PRICE_NAMES, PriceRow

ANY_PROVIDER: Final = "*"
_ADVISORY_LOCK: Final = 0x9A1D0CF

_LOCK = text("SELECT pg_advisory_xact_lock(hashtextextended(current_schema(), :key))")
_READ = text(
    "SELECT id, provider, model, valid_from_us, valid_until_us, input_nanousd_per_mtok, cache_read_nanousd_per_mtok, "
    "cache_write_nanousd_per_mtok, output_nanousd_per_mtok, note, created_at_us FROM price_rows "
    "WHERE namespace = :namespace ORDER BY provider, model, valid_from_us"
)
_END = text(
    "UPDATE price_rows SET valid_until_us = :valid_until_us "
    "WHERE namespace = :namespace AND id = :id AND valid_until_us IS NULL"
)
_INSERT = text(
    "INSERT INTO price_rows (id, namespace, provider, model, valid_from_us, valid_until_us, input_nanousd_per_mtok, "
    "cache_read_nanousd_per_mtok, cache_write_nanousd_per_mtok, output_nanousd_per_mtok, note, created_at_us) "
    "VALUES (:id, :namespace, :provider, :model, :valid_from_us, :valid_until_us, :input_nanousd_per_mtok, "
    ":cache_read_nanousd_per_mtok, :cache_write_nanousd_per_mtok, :output_nanousd_per_mtok, :note, paidonce_now())"
)


class Change(StrEnum):
    """What adding a row came to; ``unchanged``: a row of that start and those prices was there already."""

    ADDED = "added"
    UNCHANGED = "unchanged"


@dataclass(frozen=True, kw_only=True, slots=True)
class Addition:
    """A row as it is stored now, and the one that was ended for it."""

    row: PriceRow
    change: Change
    ended: PriceRow | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class PriceRowView:
    """A stored row and when it was written."""

    row: PriceRow
    created_at: datetime


def read_price_rows(connection: Connection, namespace: str) -> list[PriceRowView]:
    """All own rows of a namespace, those that have ended too, by name and start."""
    rows = connection.execute(_READ, {"namespace": namespace}).mappings()
    return [PriceRowView(row=_row_of(row), created_at=moment_of(row["created_at_us"])) for row in rows]


def add_price_rows(connection: Connection, namespace: str, rows: Sequence[PriceRow]) -> list[Addition]:
    """Add rows, by their start, all of them or none; a row that is there already is left as it is.

    A row of the same name that is open and began before is ended where the new
    one begins. Any other overlap raises ``InvalidInput``, which names both rows.
    Needs a write transaction; writers of prices wait for each other in it.
    """
    if connection.dialect.name == "postgresql":
        # Two that read the same rows would both find room; on SQLite there is one writer at a time anyway.
        connection.execute(_LOCK, {"key": _ADVISORY_LOCK})
    stored: dict[str, list[PriceRow]] = {}
    for view in read_price_rows(connection, namespace):
        stored.setdefault(view.row.name, []).append(view.row)
    additions = []
    for row in sorted(rows, key=lambda row: row.valid_from):
        beside = stored.setdefault(row.name, [])
        addition = fit(row, beside)
        additions.append(addition)
        if addition.change is Change.UNCHANGED:
            continue
        if addition.ended is not None:
            ended = addition.ended
            beside[:] = [ended if each.id == ended.id else each for each in beside]
            until_us = microseconds_of(row.valid_from)
            connection.execute(_END, {"namespace": namespace, "id": ended.id, "valid_until_us": until_us})
        beside.append(addition.row)
        connection.execute(_INSERT, {"namespace": namespace, **_columns_of(addition.row)})
    return additions


def fit(row: PriceRow, beside: Sequence[PriceRow]) -> Addition:
    """What adding a row to those of the same name comes to. Raises ``InvalidInput`` where dates overlap."""
    row = replace(row, id=row.id or uuid7())
    for each in beside:
        if each.valid_from == row.valid_from and is_same(each, row):
            return Addition(row=each, change=Change.UNCHANGED)
    ended = None
    for each in beside:
        if not each.overlaps(row):
            continue
        if each.valid_until is None and each.valid_from < row.valid_from:
            ended = replace(each, valid_until=row.valid_from)
            continue
        new = replace(row, id=None)
        raise InvalidInput(
            f"price rows overlap: {each.label} holds from {each.dates}, the new row {new.name} from {new.dates}; "
            f"{remedy(each, row)}; nothing was changed"
        )
    return Addition(row=row, change=Change.ADDED, ended=ended)


def is_same(stored: PriceRow, row: PriceRow) -> bool:
    """Whether a stored row says what a new one of the same start says; its end may have been set since."""
    names = [f"{name}_nanousd_per_mtok" for name in PRICE_NAMES]
    same_prices = all(getattr(stored, name) == getattr(row, name) for name in names)
    return same_prices and row.valid_until in (None, stored.valid_until)


def remedy(stored: PriceRow, row: PriceRow) -> str:
    """How a row that does not fit can be made to."""
    if row.valid_from < stored.valid_from:
        return f"end the new row at {stored.valid_from.isoformat()} or before"
    if stored.valid_until is None:
        return "rows are never rewritten; let the new one begin later"
    return f"let the new row begin at {stored.valid_until.isoformat()} or after"


def _row_of(row: Mapping[Any, Any]) -> PriceRow:
    until = row["valid_until_us"]
    return PriceRow(
        id=row["id"],
        provider=row["provider"],
        model=row["model"],
        valid_from=moment_of(row["valid_from_us"]),
        valid_until=None if until is None else moment_of(until),
        input_nanousd_per_mtok=row["input_nanousd_per_mtok"],
        cache_read_nanousd_per_mtok=row["cache_read_nanousd_per_mtok"],
        cache_write_nanousd_per_mtok=row["cache_write_nanousd_per_mtok"],
        output_nanousd_per_mtok=row["output_nanousd_per_mtok"],
        note=row["note"],
    )


def _columns_of(row: PriceRow) -> dict[str, object]:
    return {
        "id": row.id,
        "provider": row.provider or ANY_PROVIDER,
        "model": row.model,
        "valid_from_us": microseconds_of(row.valid_from),
        "valid_until_us": None if row.valid_until is None else microseconds_of(row.valid_until),
        "input_nanousd_per_mtok": row.input_nanousd_per_mtok,
        "cache_read_nanousd_per_mtok": row.cache_read_nanousd_per_mtok,
        "cache_write_nanousd_per_mtok": row.cache_write_nanousd_per_mtok,
        "output_nanousd_per_mtok": row.output_nanousd_per_mtok,
        "note": row.note,
    }
