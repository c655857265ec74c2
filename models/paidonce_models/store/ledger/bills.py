"""The bill of one run: what it cost, what was lost, and what its recoveries did not pay again.

Reads ``attempts`` and ``avoided``; never writes. A call belongs to its own run only, so the sums of a run exclude its
child runs; those of the whole tree are separate in ``Bill.tree`` and are never added to the run's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import Connection, Row, and_, bindparam, case, func, select

from paidonce_models.states import AttemptOutcome
from paidonce_models.store.columns import Attempt, Avoided, Run, col, cols, constants, rows

_ROOT_OF_TREE = select(col(Run.id)).where(col(Run.id) == bindparam("run_id")).cte("tree", recursive=True)
_IN_TREE = _ROOT_OF_TREE.union_all(
    select(col(Run.id)).select_from(rows(Run)).join(_ROOT_OF_TREE, col(Run.parent_run_id) == _ROOT_OF_TREE.c.id)
)
_TREE = select(_IN_TREE.c.id)
_IS_LOST = col(Attempt.outcome).in_(constants([AttemptOutcome.LOST, AttemptOutcome.FENCED]))
_SUMS = select(
    func.count().label("attempts"),
    func.sum(case((col(Attempt.outcome) == AttemptOutcome.ACCEPTED.value, 1), else_=0)).label("steps_paid"),
    func.sum(case((_IS_LOST, 1), else_=0)).label("attempts_lost"),
    func.sum(col(Attempt.calls)).label("calls"),
    func.sum(col(Attempt.unpriced_calls)).label("unpriced_calls"),
    func.sum(col(Attempt.input_tokens)).label("input_tokens"),
    func.sum(col(Attempt.output_tokens)).label("output_tokens"),
    func.sum(col(Attempt.cost_nanousd)).label("cost_nanousd"),
    func.sum(case((_IS_LOST, col(Attempt.cost_nanousd)))).label("lost_cost_nanousd"),
).where(col(Attempt.run_id).in_(bindparam("run_ids", expanding=True)))
_RECOVERIES = (
    select(
        *cols(Avoided.run_id, Attempt.worker, Attempt.claimed_at_us, Attempt.ended_at_us, Avoided.steps),
        *cols(Avoided.cost_nanousd),
    )
    .select_from(rows(Avoided))
    .join(
        rows(Attempt),
        and_(
            col(Attempt.run_id) == col(Avoided.run_id),
            col(Attempt.position) == col(Avoided.position),
            col(Attempt.number) == col(Avoided.attempt),
        ),
    )
    .where(col(Avoided.run_id).in_(bindparam("run_ids", expanding=True)))
    .order_by(col(Avoided.run_id), col(Attempt.worker), col(Attempt.claimed_at_us))
)
_BATCH = 500


@dataclass(frozen=True, kw_only=True, slots=True)
class Bill:
    """Sums over one run, or over a run and its child runs. Unknown is ``None``, never 0.

    ``steps_paid`` are the steps with an accepted attempt. ``attempts_lost`` counts those whose worker vanished,
    whether or not it returned as a zombie. ``steps_not_repeated`` and ``avoided_cost_nanousd`` are what a program that
    starts over after each crash would have repeated and paid again. Money covers the calls that have a price; with
    ``unpriced_calls`` a sum is a lower bound.
    """

    steps_paid: int = 0
    steps_not_repeated: int = 0
    attempts: int = 0
    attempts_lost: int = 0
    calls: int = 0
    unpriced_calls: int = 0
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost_nanousd: int | None = None
    lost_cost_nanousd: int | None = None
    avoided_cost_nanousd: int | None = None
    child_runs: int = 0
    tree: Bill | None = None

    @property
    def starting_over_cost_nanousd(self) -> int | None:
        """What the run would have cost if every crash had made it start over: spent plus avoided."""
        return _sum_of_known([self.cost_nanousd, self.avoided_cost_nanousd])


def read_bill(connection: Connection, run_id: str) -> Bill:
    """The bill of a run as it is now; all zeros and unknowns for a run without attempts."""
    ids = list(connection.execute(_TREE, {"run_id": run_id}).scalars())
    own = _bill_of(connection, [run_id])
    if len(ids) <= 1:
        return own
    return replace(own, child_runs=len(ids) - 1, tree=_bill_of(connection, ids))


def _bill_of(connection: Connection, run_ids: Sequence[str]) -> Bill:
    parts = [run_ids[start : start + _BATCH] for start in range(0, len(run_ids), _BATCH)]
    bills = [_bill_of_part(connection, part) for part in parts]
    return bills[0] if len(bills) == 1 else _total(bills)


def _bill_of_part(connection: Connection, run_ids: Sequence[str]) -> Bill:
    sums = connection.execute(_SUMS, {"run_ids": list(run_ids)}).one()
    crashes = _crashes(connection.execute(_RECOVERIES, {"run_ids": list(run_ids)}).all())
    return Bill(
        steps_paid=int(sums.steps_paid or 0),
        steps_not_repeated=sum(max(row.steps for row in crash) for crash in crashes),
        attempts=int(sums.attempts),
        attempts_lost=int(sums.attempts_lost or 0),
        calls=int(sums.calls or 0),
        unpriced_calls=int(sums.unpriced_calls or 0),
        input_tokens=_integer(sums.input_tokens),
        output_tokens=_integer(sums.output_tokens),
        cost_nanousd=_integer(sums.cost_nanousd),
        lost_cost_nanousd=_integer(sums.lost_cost_nanousd),
        avoided_cost_nanousd=_sum_of_known(
            max((row.cost_nanousd for row in crash if row.cost_nanousd is not None), default=None) for crash in crashes
        ),
    )


def _crashes(rows: Sequence[Row[tuple[object, ...]]]) -> list[list[Row[tuple[object, ...]]]]:
    """Group recoveries by the crash that caused them.

    A crash that interrupts five parallel steps leaves five entries, but starting over would have happened once. Lost
    attempts of one run and worker that ran at the same time were lost in the same crash.
    """
    crashes: list[list[Row[tuple[object, ...]]]] = []
    end_us = 0
    for row in rows:
        last = crashes[-1][-1] if crashes else None
        same_place = last is not None and (last.run_id, last.worker) == (row.run_id, row.worker)
        if same_place and row.claimed_at_us < end_us:
            crashes[-1].append(row)
            end_us = max(end_us, row.ended_at_us or 0)
        else:
            crashes.append([row])
            end_us = row.ended_at_us or 0
    return crashes


def _total(bills: Sequence[Bill]) -> Bill:
    return Bill(
        steps_paid=sum(bill.steps_paid for bill in bills),
        steps_not_repeated=sum(bill.steps_not_repeated for bill in bills),
        attempts=sum(bill.attempts for bill in bills),
        attempts_lost=sum(bill.attempts_lost for bill in bills),
        calls=sum(bill.calls for bill in bills),
        unpriced_calls=sum(bill.unpriced_calls for bill in bills),
        input_tokens=_sum_of_known(bill.input_tokens for bill in bills),
        output_tokens=_sum_of_known(bill.output_tokens for bill in bills),
        cost_nanousd=_sum_of_known(bill.cost_nanousd for bill in bills),
        lost_cost_nanousd=_sum_of_known(bill.lost_cost_nanousd for bill in bills),
        avoided_cost_nanousd=_sum_of_known(bill.avoided_cost_nanousd for bill in bills),
    )


def _integer(value: object) -> int | None:
    """PostgreSQL sums BIGINT to NUMERIC, which arrives as ``Decimal``."""
    return None if value is None else int(str(value))


def _sum_of_known(values: Iterable[int | None]) -> int | None:
    known = [int(value) for value in values if value is not None]
    return sum(known) if known else None
