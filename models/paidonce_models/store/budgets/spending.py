"""What attempts spend and release in the accounts of their budgets.

Called by whatever writes calls (``charge``) and by whatever ends an attempt (``release``), in that transaction. Spend
is taken from the attempt's reservation while that lasts, so that ``spent + reserved`` changes only by the error of the
estimate. An attempt without reservations costs one indexed read.

Locks: the attempt's reservations, then accounts by key; nothing after them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, text

from paidonce_models.budgets import Unit

# A heartbeat charges while the attempt ends and releases. Both lock its reservations first and read what remains
# after that, so that nothing is given back twice; by account, so that they cannot deadlock.
_HELD = (
    "SELECT namespace, account, unit, remaining FROM reservations "
    "WHERE run_id = :run_id AND position = :position AND attempt = :attempt{condition} ORDER BY account{lock}"
)


def _dialected(condition: str) -> dict[str, Any]:
    return {
        "postgresql": text(_HELD.format(condition=condition, lock=" FOR UPDATE")),
        "sqlite": text(_HELD.format(condition=condition, lock="")),
    }


_ALL = _dialected("")
_UNENDED = _dialected(" AND ended_at_us IS NULL")
# Under the locks of the reservations; accounts are moved last, by what changed, in the order of their keys.
_TAKE = text(
    "UPDATE reservations SET spent = spent + :used, remaining = remaining - :taken, "
    "unpriced_calls = unpriced_calls + :unpriced WHERE run_id = :run_id AND position = :position "
    "AND attempt = :attempt AND account = :account"
)
_END = text(
    "UPDATE reservations SET remaining = 0, ended_at_us = paidonce_now(), "
    "sample = CASE WHEN CAST(:sample AS INTEGER) = 1 AND unpriced_calls = 0 THEN 1 ELSE 0 END "
    "WHERE run_id = :run_id AND position = :position AND attempt = :attempt AND account = :account"
)
_MOVE = text(
    "UPDATE budget_accounts SET spent = spent + :used, reserved = reserved - :taken, "
    "unpriced_calls = unpriced_calls + :unpriced WHERE namespace = :namespace AND key = :account"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Spent:
    """What an attempt has just spent: known money and tokens, and calls whose price is unknown."""

    run_id: str
    position: int
    attempt: int
    nanousd: int
    tokens: int
    unpriced_calls: int


def charge(connection: Connection, spending: Sequence[Spent]) -> None:
    """Add what attempts have spent to their accounts; does nothing for attempts without budgets."""
    moves = _Moves()
    for spent in spending:
        key = {"run_id": spent.run_id, "position": spent.position, "attempt": spent.attempt}
        for row in connection.execute(_ALL[connection.dialect.name], key).all():
            used = spent.nanousd if row.unit == Unit.USD else spent.tokens
            unpriced = spent.unpriced_calls if row.unit == Unit.USD else 0
            taken = min(used, int(row.remaining))
            connection.execute(
                _TAKE, {**key, "account": row.account, "used": used, "taken": taken, "unpriced": unpriced}
            )
            moves.add(row, used=used, taken=taken, unpriced=unpriced)
    moves.write(connection)


def release(connection: Connection, *, run_id: str, position: int, attempt: int, accepted: bool) -> None:
    """The attempt has ended: release what it has reserved and not spent. Does nothing the second time.

    The spend of an ``accepted`` attempt is the expected cost of the next one of its step.
    """
    key = {"run_id": run_id, "position": position, "attempt": attempt}
    moves = _Moves()
    units: set[str] = set()
    for row in connection.execute(_UNENDED[connection.dialect.name], key).all():
        sample = accepted and row.unit not in units
        units.add(row.unit)
        connection.execute(_END, {**key, "account": row.account, "sample": int(sample)})
        moves.add(row, used=0, taken=int(row.remaining), unpriced=0)
    moves.write(connection)


class _Moves:
    """The changes of the accounts, written in the order of their keys."""

    def __init__(self) -> None:
        self._used: Counter[tuple[str, str]] = Counter()
        self._taken: Counter[tuple[str, str]] = Counter()
        self._unpriced: Counter[tuple[str, str]] = Counter()

    def add(self, row: Row[Any], *, used: int, taken: int, unpriced: int) -> None:
        account = (row.namespace, row.account)
        self._used[account] += used
        self._taken[account] += taken
        self._unpriced[account] += unpriced

    def write(self, connection: Connection) -> None:
        if not any(any(moves.values()) for moves in (self._used, self._taken, self._unpriced)):
            return
        # An unchanged account is locked in its turn too: the attempt's end may change it later in this transaction,
        # when accounts after it are locked already, and a claim that goes through them in order would deadlock with it.
        for account in sorted(self._used):
            moved = {
                "used": self._used[account],
                "taken": self._taken[account],
                "unpriced": self._unpriced[account],
            }
            connection.execute(_MOVE, {**moved, "namespace": account[0], "account": account[1]})
