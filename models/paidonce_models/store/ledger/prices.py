"""Your own price rows in the store: reading them, and adding rows without ever rewriting one.

Owns how a new row is fitted between the existing ones. An open-ended row is ended where
the new one begins; that is the only change a row ever sees, guarded by its end still
being open. Every other overlap is refused, so that the price of a past call cannot
change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Final

from sqlalchemy import Connection, bindparam, select, text

from paidonce_models.errors import InvalidInput
from paidonce_models.ids import uuid7
from paidonce_models.instants import microseconds_of, moment_of
from paidonce_models.pricing.own_prices import PRICE_NAMES, PriceRow
from paidonce_models.store.columns import StoredPriceRow, col, cols, rows_of

ANY_PROVIDER: Final = "*"
_ADVISORY_LOCK: Final = 0x9A1D0CF

_LOCK = text("SELECT pg_advisory_xact_lock(hashtextextended(current_schema(), :key))")
_READ = (
    select(
        *cols(StoredPriceRow.id, StoredPriceRow.provider, StoredPriceRow.model, StoredPriceRow.valid_from_us),
        *cols(StoredPriceRow.valid_until_us, StoredPriceRow.input_nanousd_per_mtok),
        *cols(StoredPriceRow.cache_read_nanousd_per_mtok, StoredPriceRow.cache_write_nanousd_per_mtok),
        *cols(StoredPriceRow.output_nanousd_per_mtok, StoredPriceRow.note, StoredPriceRow.created_at_us),
    )
    .where(col(StoredPriceRow.namespace) == bindparam("namespace"))
    .order_by(*cols(StoredPriceRow.provider, StoredPriceRow.model, StoredPriceRow.valid_from_us))
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
    """The result of adding a row; ``unchanged``: a row with that start and those prices existed already."""

    ADDED = "added"
    UNCHANGED = "unchanged"


@dataclass(frozen=True, kw_only=True, slots=True)
class Addition:
    """A row as it is stored now, and the row that was ended for it."""

    row: PriceRow
    change: Change
    ended: PriceRow | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class PriceRowView:
    """A stored row and when it was written."""

    row: PriceRow
    created_at: datetime


def read_price_rows(connection: Connection, namespace: str) -> list[PriceRowView]:
    """All own rows of a namespace, including those that have ended, by name and start."""
    found = rows_of(StoredPriceRow, connection.execute(_READ, {"namespace": namespace}))
    return [PriceRowView(row=_row_of(row), created_at=moment_of(row.created_at_us)) for row in found]


def add_price_rows(connection: Connection, namespace: str, rows: Sequence[PriceRow]) -> list[Addition]:
    """Add rows, by their start, all of them or none; a row that exists already is left as it is.

    An open row of the same name that began before is ended where the new one begins. Any
    other overlap raises ``InvalidInput``, which names both rows. Needs a write
    transaction, in which writers of prices wait for each other.
    """
    if connection.dialect.name == "postgresql":
        # Two writers that read the same rows would both find room; SQLite has one writer at a time anyway.
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
    """The result of adding a row to those of the same name. Raises ``InvalidInput`` if dates overlap."""
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
    """Whether a stored row has the same content as a new one of the same start; its end may have been set since."""
    names = [f"{name}_nanousd_per_mtok" for name in PRICE_NAMES]
    same_prices = all(getattr(stored, name) == getattr(row, name) for name in names)
    return same_prices and row.valid_until in (None, stored.valid_until)


def remedy(stored: PriceRow, row: PriceRow) -> str:
    """How to correct a row that does not fit."""
    if row.valid_from < stored.valid_from:
        return f"end the new row at {stored.valid_from.isoformat()} or before"
    if stored.valid_until is None:
        return "rows are never rewritten; let the new one begin later"
    return f"let the new row begin at {stored.valid_until.isoformat()} or after"


def _row_of(row: StoredPriceRow) -> PriceRow:
    until = row.valid_until_us
    return PriceRow(
        id=row.id,
        provider=row.provider,
        model=row.model,
        valid_from=moment_of(row.valid_from_us),
        valid_until=None if until is None else moment_of(until),
        input_nanousd_per_mtok=row.input_nanousd_per_mtok,
        cache_read_nanousd_per_mtok=row.cache_read_nanousd_per_mtok,
        cache_write_nanousd_per_mtok=row.cache_write_nanousd_per_mtok,
        output_nanousd_per_mtok=row.output_nanousd_per_mtok,
        note=row.note,
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
