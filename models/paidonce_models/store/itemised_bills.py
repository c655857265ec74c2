"""One run's bill down to its calls: run, steps, attempts, calls, each with what is below it added up.

Sums are made from the calls themselves, so that what stands at the top is what stands at the bottom. A child run is
a step here that names it; its calls are its own (see ``Bill.tree`` for the sum of the family).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, Row, text

from paidonce_models.causes import Cause, cause_of
from paidonce_models.errors import NotFound
from paidonce_models.states import AttemptOutcome, RunState
from paidonce_models.store.bills import Bill, read_bill

_RUN = text(
    "SELECT r.id, r.agent, r.state, r.root_run_id, r.created_at_us, r.started_at_us, r.finished_at_us, "
    "root.state AS root_state, paidonce_now() AS now_us FROM runs r JOIN runs root ON root.id = r.root_run_id "
    "WHERE r.id = :run_id"
)
_STEPS = text(
    "SELECT position, name, kind, state, child_run_id, started_at_us, finished_at_us FROM steps "
    "WHERE run_id = :run_id ORDER BY position"
)
_ATTEMPTS = text(
    "SELECT position, number, worker, outcome, claimed_at_us, ended_at_us FROM attempts WHERE run_id = :run_id "
    "ORDER BY position, number"
)
_CALLS = text(
    "SELECT id, position, attempt, tool, kind, provider, model, status, usage_source, http_retry, "
    "provider_request_id, started_at_us, duration_us, input_tokens, cache_read_tokens, cache_write_tokens, "
    "output_tokens, reasoning_tokens, cost_nanousd, price_source, unpriced_calls FROM ledger_calls "
    "WHERE run_id = :run_id ORDER BY position, attempt, started_at_us, id"
)
_POSSIBLY_BILLED = text(
    "SELECT position, attempt, basis_nanousd, estimate_nanousd FROM possibly_billed WHERE run_id = :run_id"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Spent:
    """What some calls add up to. ``None`` is unknown, never 0; with ``unpriced_calls`` the cost is a lower bound."""

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
    """One execution. ``outcome`` is ``None`` while it is under way.

    ``possibly_billed_nanousd`` is the estimated unknown rest of a lost attempt, ``basis_nanousd`` the mean cost of the
    same step it was estimated from; both are ``None`` for other attempts and where the step has no history.
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
    """One thing the agent asked for; ``child_run_id`` names the run that has a bill of its own."""

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
    """A run with all its steps. ``by_cause`` holds the causes that occur, each with what it spent."""

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
    run = connection.execute(_RUN, {"run_id": run_id}).first()
    if run is None:
        raise NotFound(f"there is no run {run_id!r}; `paidonce runs` lists them")
    calls: dict[tuple[int, int], list[BilledCall]] = defaultdict(list)
    for row in connection.execute(_CALLS, {"run_id": run_id}):
        calls[row.position, row.attempt].append(_call(row))
    rests = {
        (row.position, row.attempt): (row.estimate_nanousd, row.basis_nanousd)
        for row in connection.execute(_POSSIBLY_BILLED, {"run_id": run_id})
    }
    attempts: dict[int, list[BilledAttempt]] = defaultdict(list)
    for row in connection.execute(_ATTEMPTS, {"run_id": run_id}):
        made = tuple(calls[row.position, row.number])
        estimate, basis = rests.get((row.position, row.number), (None, None))
        outcome = None if row.outcome is None else AttemptOutcome(row.outcome)
        attempts[row.position].append(
            BilledAttempt(
                number=row.number,
                worker=row.worker,
                outcome=row.outcome,
                cause=cause_of(outcome, RunState(run.root_state)),
                duration_us=_lasted(row.claimed_at_us, row.ended_at_us, run.now_us),
                possibly_billed_nanousd=estimate,
                basis_nanousd=basis,
                spent=add_up(call.spent for call in made),
                calls=made,
            )
        )
    steps = tuple(
        _step(row, tuple(attempts[row.position]), run.now_us) for row in connection.execute(_STEPS, {"run_id": run_id})
    )
    everything = [attempt for step in steps for attempt in step.attempts]
    causes = [cause for cause in Cause if any(each.cause is cause and each.calls for each in everything)]
    estimates = [estimate for estimate, _ in rests.values() if estimate is not None]
    return ItemisedBill(
        run_id=run.id,
        agent=run.agent,
        state=RunState(run.state),
        root_run_id=run.root_run_id,
        duration_us=_lasted(run.created_at_us, run.finished_at_us, run.now_us),
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


def _step(row: Row[tuple[object, ...]], attempts: tuple[BilledAttempt, ...], now_us: int) -> BilledStep:
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


def _call(row: Row[tuple[object, ...]]) -> BilledCall:
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
    """Until now for what is under way; ``None`` for what has not begun."""
    return None if from_us is None else max(0, (now_us if to_us is None else to_us) - from_us)
