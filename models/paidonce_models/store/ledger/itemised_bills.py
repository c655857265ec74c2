"""One run's bill down to its calls: run, steps, attempts, calls, each with the sum of what is below it.

Sums are computed from the calls themselves, so that the top equals the bottom. A child run is a step here that names
it; its calls are its own (see ``Bill.tree`` for the sum of the family).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, select

from paidonce_models.causes import Cause, cause_of
from paidonce_models.errors import NotFound
from paidonce_models.states import AttemptOutcome, RunState
from paidonce_models.store.columns import STORE_NOW, Attempt, Run, Step, alias, col, cols, row_of, rows, rows_of
from paidonce_models.store.ledger.bills import Bill, read_bill
from paidonce_models.store.ledger.ledger_views import LedgerCall, LedgerCallRow, PossiblyBilled

_ROOT = alias(Run, "root")
_RUN = (
    select(
        *cols(Run.id, Run.agent, Run.state, Run.root_run_id, Run.created_at_us, Run.started_at_us, Run.finished_at_us),
        col(_ROOT.state).label("root_state"),
        STORE_NOW.label("now_us"),
    )
    .select_from(rows(Run))
    .join(rows(_ROOT), col(_ROOT.id) == col(Run.root_run_id))
    .where(col(Run.id) == bindparam("run_id"))
)
_STEPS = (
    select(
        *cols(Step.position, Step.name, Step.kind, Step.state, Step.child_run_id, Step.started_at_us),
        *cols(Step.finished_at_us),
    )
    .where(col(Step.run_id) == bindparam("run_id"))
    .order_by(col(Step.position))
)
_ATTEMPTS = (
    select(
        *cols(Attempt.position, Attempt.number, Attempt.worker, Attempt.outcome, Attempt.claimed_at_us),
        *cols(Attempt.ended_at_us),
    )
    .where(col(Attempt.run_id) == bindparam("run_id"))
    .order_by(col(Attempt.position), col(Attempt.number))
)
_CALLS = (
    select(
        *cols(LedgerCall.id, LedgerCall.position, LedgerCall.attempt, LedgerCall.tool, LedgerCall.kind),
        *cols(LedgerCall.provider, LedgerCall.model, LedgerCall.status, LedgerCall.usage_source),
        *cols(LedgerCall.http_retry, LedgerCall.provider_request_id, LedgerCall.started_at_us, LedgerCall.duration_us),
        *cols(LedgerCall.input_tokens, LedgerCall.cache_read_tokens, LedgerCall.cache_write_tokens),
        *cols(LedgerCall.output_tokens, LedgerCall.reasoning_tokens, LedgerCall.cost_nanousd),
        *cols(LedgerCall.price_source, LedgerCall.unpriced_calls),
    )
    .where(col(LedgerCall.run_id) == bindparam("run_id"))
    .order_by(*cols(LedgerCall.position, LedgerCall.attempt, LedgerCall.started_at_us, LedgerCall.id))
)
_POSSIBLY_BILLED = select(
    col(PossiblyBilled.position),
    col(PossiblyBilled.attempt),
    col(PossiblyBilled.estimate_nanousd),
    col(PossiblyBilled.basis_nanousd),
).where(col(PossiblyBilled.run_id) == bindparam("run_id"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Spent:
    """The sum of some calls. ``None`` is unknown, never 0; with ``unpriced_calls`` the cost is a lower bound."""

    calls: int = 0
    unpriced_calls: int = 0
    input_tokens: int | None = None
    cache_read_tokens: int | None = None
    cache_write_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None
    cost_nanousd: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class BilledCall:
    """One request."""

    call_id: str
    kind: str
    tool: str | None
    provider: str | None
    model: str | None
    status: str
    usage_source: str
    http_retry: int
    provider_request_id: str | None
    price_source: str | None
    started_at_us: int
    duration_us: int | None
    spent: Spent


@dataclass(frozen=True, kw_only=True, slots=True)
class BilledAttempt:
    """One execution. ``outcome`` is ``None`` while it is running.

    ``possibly_billed_nanousd`` is the estimated unknown rest of a lost attempt, ``basis_nanousd`` the mean cost of the
    step from which it was estimated; both are ``None`` for other attempts and if the step has no history.
    """

    number: int
    worker: str
    outcome: str | None
    cause: Cause
    duration_us: int | None
    possibly_billed_nanousd: int | None
    basis_nanousd: int | None
    spent: Spent
    calls: tuple[BilledCall, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class BilledStep:
    """One thing that the agent requested; ``child_run_id`` names the run that has its own bill."""

    position: int
    name: str
    kind: str
    state: str
    child_run_id: str | None
    duration_us: int | None
    spent: Spent
    attempts: tuple[BilledAttempt, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ItemisedBill:
    """A run with all its steps. ``by_cause`` has the causes that occur, each with its spend."""

    run_id: str
    agent: str
    state: RunState
    root_run_id: str
    duration_us: int | None
    spent: Spent
    by_cause: tuple[tuple[Cause, Spent], ...]
    possibly_billed_nanousd: int | None
    lost_attempts: int
    lost_without_estimate: int
    bill: Bill
    steps: tuple[BilledStep, ...]


def read_itemised_bill(connection: Connection, run_id: str) -> ItemisedBill:
    """The bill of a run as it is now, read in the caller's snapshot. Raises ``NotFound``."""
    found = connection.execute(_RUN, {"run_id": run_id}).first()
    if found is None:
        raise NotFound(f"there is no run {run_id!r}; `paidonce runs` lists them")
    run, root_state, now_us = row_of(Run, found), RunState(found.root_state), int(found.now_us)
    calls: dict[tuple[int, int], list[BilledCall]] = defaultdict(list)
    for call in rows_of(LedgerCallRow, connection.execute(_CALLS, {"run_id": run_id})):
        calls[call.position, call.attempt].append(_call(call))
    rests = {
        (position, number): (estimate, basis)
        for position, number, estimate, basis in connection.execute(_POSSIBLY_BILLED, {"run_id": run_id})
    }
    attempts: dict[int, list[BilledAttempt]] = defaultdict(list)
    for row in rows_of(Attempt, connection.execute(_ATTEMPTS, {"run_id": run_id})):
        made = tuple(calls[row.position, row.number])
        estimate, basis = rests.get((row.position, row.number), (None, None))
        outcome = None if row.outcome is None else AttemptOutcome(row.outcome)
        attempts[row.position].append(
            BilledAttempt(
                number=row.number,
                worker=row.worker,
                outcome=row.outcome,
                cause=cause_of(outcome, root_state),
                duration_us=_lasted(row.claimed_at_us, row.ended_at_us, now_us),
                possibly_billed_nanousd=estimate,
                basis_nanousd=basis,
                spent=add_up(call.spent for call in made),
                calls=made,
            )
        )
    steps = tuple(
        _step(row, tuple(attempts[row.position]), now_us)
        for row in rows_of(Step, connection.execute(_STEPS, {"run_id": run_id}))
    )
    everything = [attempt for step in steps for attempt in step.attempts]
    causes = [cause for cause in Cause if any(each.cause is cause and each.calls for each in everything)]
    estimates = [estimate for estimate, _ in rests.values() if estimate is not None]
    return ItemisedBill(
        run_id=run.id,
        agent=run.agent,
        state=RunState(run.state),
        root_run_id=run.root_run_id,
        duration_us=_lasted(run.created_at_us, run.finished_at_us, now_us),
        spent=add_up(step.spent for step in steps),
        by_cause=tuple((cause, add_up(each.spent for each in everything if each.cause is cause)) for cause in causes),
        possibly_billed_nanousd=sum(estimates) if estimates or not rests else None,
        lost_attempts=len(rests),
        lost_without_estimate=len(rests) - len(estimates),
        bill=read_bill(connection, run_id),
        steps=steps,
    )


def add_up(parts: Iterable[Spent]) -> Spent:
    """The sum of what is known."""
    listed = list(parts)

    def known(name: str) -> int | None:
        values = [value for part in listed if (value := getattr(part, name)) is not None]
        return sum(values) if values else None

    return Spent(
        calls=sum(part.calls for part in listed),
        unpriced_calls=sum(part.unpriced_calls for part in listed),
        input_tokens=known("input_tokens"),
        cache_read_tokens=known("cache_read_tokens"),
        cache_write_tokens=known("cache_write_tokens"),
        output_tokens=known("output_tokens"),
        reasoning_tokens=known("reasoning_tokens"),
        cost_nanousd=known("cost_nanousd"),
    )


def _step(row: Step, attempts: tuple[BilledAttempt, ...], now_us: int) -> BilledStep:
    return BilledStep(
        position=row.position,
        name=row.name,
        kind=row.kind,
        state=row.state,
        child_run_id=row.child_run_id,
        duration_us=_lasted(row.started_at_us, row.finished_at_us, now_us),
        spent=add_up(attempt.spent for attempt in attempts),
        attempts=attempts,
    )


def _call(row: LedgerCallRow) -> BilledCall:
    return BilledCall(
        call_id=row.id,
        kind=row.kind,
        tool=row.tool,
        provider=row.provider,
        model=row.model,
        status=row.status,
        usage_source=row.usage_source,
        http_retry=row.http_retry,
        provider_request_id=row.provider_request_id,
        price_source=row.price_source,
        started_at_us=row.started_at_us,
        duration_us=row.duration_us,
        spent=Spent(
            calls=1,
            unpriced_calls=row.unpriced_calls,
            input_tokens=row.input_tokens,
            cache_read_tokens=row.cache_read_tokens,
            cache_write_tokens=row.cache_write_tokens,
            output_tokens=row.output_tokens,
            reasoning_tokens=row.reasoning_tokens,
            cost_nanousd=row.cost_nanousd,
        ),
    )


def _lasted(from_us: int | None, to_us: int | None, now_us: int) -> int | None:
    """Until now if it is running; ``None`` if it has not started."""
    return None if from_us is None else max(0, (now_us if to_us is None else to_us) - from_us)
