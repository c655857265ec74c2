"""Writes calls to the ledger, their sums to the attempt that made them, and their cost to its budgets."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from typing import Final

from sqlalchemy import Connection, text

from paidonce_models.store.budgets.spending import Spent, charge
from paidonce_models.store.steps.claims import Claim
from paidonce_models.tables import Call
from paidonce_models.usage import CallRecord, UsageSource


@dataclass(frozen=True, kw_only=True, slots=True)
class Sums:
    """The sums of a list of calls; ``None`` where nothing is known."""

    calls: int
    unpriced_calls: int
    input_tokens: int | None
    output_tokens: int | None
    cost_nanousd: int | None


def add_up(records: Sequence[CallRecord]) -> Sums:
    """Sum up what is known in these calls."""
    return Sums(
        calls=len(records),
        unpriced_calls=sum(1 for record in records if record.is_unpriced),
        input_tokens=_sum([record.input_tokens for record in records]),
        output_tokens=_sum([record.output_tokens for record in records]),
        cost_nanousd=_sum([record.cost_nanousd for record in records]),
    )


def _sum(values: list[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


_USAGE_CAME_LATER: Final = uuid.UUID("6a0b4f2e-4a39-5f0e-9a51-3c1d1f0e7b58")
_COLUMNS = [column.name for column in Call.__table__.columns]  # type: ignore[attr-defined]  # SQLModel's table
_FROM_RUN = {"run_id": "id", "tags": "tags", "namespace": "namespace", "root_run_id": "root_run_id", "agent": "agent"}
_OF_THE_CALL = [field.name for field in fields(CallRecord)]
_INSERT = text(
    f"INSERT INTO calls ({', '.join(_COLUMNS)}) SELECT "
    + ", ".join(f"runs.{_FROM_RUN[name]}" if name in _FROM_RUN else f":{name}" for name in _COLUMNS)
    + " FROM runs WHERE runs.id = :of_run"
)
_WRITTEN = text(
    "SELECT id, usage_source FROM calls WHERE run_id = :run_id AND position = :position AND attempt = :attempt"
)
# Relative to what is there: heartbeats and the completion add to the same attempt.
_ADD_SUMS = text(
    "UPDATE attempts SET calls = calls + :calls, unpriced_calls = unpriced_calls + :unpriced_calls, "
    + ", ".join(
        f"{name} = coalesce({name} + coalesce(CAST(:{name} AS BIGINT), 0), CAST(:{name} AS BIGINT))"
        for name in ("input_tokens", "output_tokens", "cost_nanousd")
    )
    + " "
    "WHERE run_id = :run_id AND position = :position AND number = :number"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class NewCalls:
    """Calls of one attempt that the store does not have yet."""

    run_id: str
    position: int
    attempt: int
    step: str
    records: Sequence[CallRecord]


def insert_calls(connection: Connection, claim: Claim, records: Sequence[CallRecord]) -> None:
    """``insert_calls_of`` for the attempt of one claim."""
    new = NewCalls(
        run_id=claim.run_id, position=claim.position, attempt=claim.attempt, step=claim.name, records=records
    )
    insert_calls_of(connection, [new])


def insert_calls_of(connection: Connection, attempts: Sequence[NewCalls]) -> None:
    """Append calls of attempts, add them to the attempts' sums, and charge the attempts' budgets.

    Rows are never changed afterwards. A call's id is drawn when it is recorded, so that a transaction that is retried
    after a lost acknowledgement cannot write it twice.
    """
    spending = []
    for new in sorted(attempts, key=lambda each: (each.run_id, each.position, each.attempt)):
        spent = _insert(connection, new)
        if spent is not None:
            spending.append(spent)
    charge(connection, spending)


def call_columns(record: CallRecord) -> dict[str, object]:
    """The columns that come from the call itself; the rest comes from its attempt and its run."""
    columns: dict[str, object] = {name: getattr(record, name) for name in _OF_THE_CALL}
    columns["day"] = datetime.fromtimestamp(record.started_at_us / 1e6, tz=UTC).strftime("%Y-%m-%d")
    return columns


def _insert(connection: Connection, new: NewCalls) -> Spent | None:
    """Insert the new calls and return their spend; ``None`` if none was new."""
    if not new.records:
        return None
    key = {"run_id": new.run_id, "position": new.position, "attempt": new.attempt}
    written = {str(row.id): str(row.usage_source) for row in connection.execute(_WRITTEN, key)}
    records = _unwritten(new.records, written)
    if not records:
        return None
    of_attempt = {
        "of_run": new.run_id,
        "position": new.position,
        "attempt": new.attempt,
        "step": new.step,
        "rolled_up": 0,
    }
    connection.execute(_INSERT, [call_columns(record) | of_attempt for record in records])
    sums = add_up(records)
    connection.execute(
        _ADD_SUMS,
        {
            "run_id": new.run_id,
            "position": new.position,
            "number": new.attempt,
            "calls": sums.calls,
            "unpriced_calls": sums.unpriced_calls,
            "input_tokens": sums.input_tokens,
            "output_tokens": sums.output_tokens,
            "cost_nanousd": sums.cost_nanousd,
        },
    )
    return Spent(
        run_id=new.run_id,
        position=new.position,
        attempt=new.attempt,
        nanousd=0 if sums.cost_nanousd is None else sums.cost_nanousd,
        tokens=(sums.input_tokens or 0) + (sums.output_tokens or 0),
        unpriced_calls=sums.unpriced_calls,
    )


def _unwritten(records: Sequence[CallRecord], written: Mapping[str, str]) -> list[CallRecord]:
    """The calls that the store does not have; ``written`` maps the id of each stored call to its usage source.

    A lost attempt that returns may know the usage of a call that was written as unknown. Rows are not changed, so the
    call is written again under an id derived from the first: it too is written only once.
    """
    new = []
    for record in records:
        source = written.get(record.id)
        if source == UsageSource.MISSING and record.usage_source is not UsageSource.MISSING:
            record = replace(record, id=str(uuid.uuid5(_USAGE_CAME_LATER, record.id)))
            source = written.get(record.id)
        if source is None:
            new.append(record)
    return new
