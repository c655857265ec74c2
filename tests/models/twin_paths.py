"""Two ways to write the same thing on PostgreSQL, played one after the other from the same rows, and all rows compared.

The generic statements of ``completion`` and ``advancing`` are the definition; that of ``batch_statement`` is what
production executes. Each way is a savepoint that is undone, and the store's clock stands still: what they leave behind
must be equal to the microsecond.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import psycopg
from hypothesis import strategies as st
from psycopg.pq import TransactionStatus
from sqlalchemy import Connection, text

from paidonce_models.budgets import Budget, Period, Unit
from paidonce_models.payloads.payload_parts import split
from paidonce_models.states import AttemptOutcome, RunState
from paidonce_models.store.blocking.blocked_steps import Blocking
from paidonce_models.store.budgets.budget_rules import set_budget
from paidonce_models.store.circuits.parked_steps import Parking, park_step
from paidonce_models.store.commits.batch_statement import commit_items
from paidonce_models.store.commits.items import (
    Item,
    advance_item,
    completion_item,
    fits_alone,
    fits_as_advance,
    fits_together,
    together_item,
)
from paidonce_models.store.ledger.call_rows import insert_calls
from paidonce_models.store.messages import Message
from paidonce_models.store.recovery.lost_steps import reclaim_step
from paidonce_models.store.runs.advancing import NewStep, Progress, RunEnd, step_messages
from paidonce_models.store.runs.cancel_run import cancel_run
from paidonce_models.store.runs.ending_runs import fail_run
from paidonce_models.store.runs.runs_head import RunHead
from paidonce_models.store.steps.claims import Claim, Claimant
from paidonce_models.store.steps.completion import (
    Acceptance,
    Completion,
    LogGap,
    advance_and_claim,
    complete_alone,
    complete_with_progress,
    record_refused,
)
from paidonce_models.store.steps.leases import mark_unknown, release_step
from paidonce_models.tables import METADATA
from paidonce_models.usage import CallKind, CallRecord, CallStatus, UsageSource
from tests.models.stored_runs import LEASE_US, NAMESPACE, START_US, Store, failure, key_of, new_step, succeeded, success

STANDING_STILL = f"""
CREATE OR REPLACE FUNCTION paidonce_now() RETURNS bigint LANGUAGE sql VOLATILE AS $$ SELECT {START_US}::bigint $$
"""
PARKING = Parking(circuit="search", retry_in_us=1_000_000, most_us=9_000_000)
BLOCKING = Blocking(reason="result_not_storable", form="encoded", kept=split(b'"kept"'), shape="shape", code="code")
AHEAD = Claimant(namespace=NAMESPACE, worker="w3", lease_us=LEASE_US)

Rows = list[tuple[str, str]]
_ALL_ROWS = text(
    " UNION ALL ".join(
        f"SELECT '{name}' AS source, CAST(each AS text) AS content FROM {name} AS each" for name in METADATA.tables
    )
)
EMPTY = text(f"DO $$ BEGIN {' '.join(f'DELETE FROM {name};' for name in METADATA.tables)} END $$")
Disturbance = Callable[[Store, Claim], object]


def _lose(store: Store, claim: Claim) -> None:
    store.transact(reclaim_step, key_of(claim), why="dead", alone=True, anyway=True)


def _lose_and_try_again(store: Store, claim: Claim) -> Claim:
    _lose(store, claim)
    return store.claimed(claim.run_id, worker="w2")


def _lose_and_finish(store: Store, claim: Claim) -> None:
    store.complete(success(_lose_and_try_again(store, claim), "fresh"))


def _release_and_try_again(store: Store, claim: Claim) -> None:
    store.transact(release_step, key_of(claim), reason="stopping")
    store.claimed(claim.run_id, worker="w2")


def _retry_and_try_again(store: Store, claim: Claim) -> None:
    store.complete(failure(claim, retry_after_us=0))
    store.claimed(claim.run_id, worker="w2")


def _advance(store: Store, claim: Claim) -> None:
    store.complete(success(store.claimed(claim.run_id, 2)))
    store.advance(claim.run_id)


DISTURBANCES: dict[str, Disturbance] = {
    "nothing": lambda store, claim: None,
    "its attempt is lost": _lose,
    "attempt 2 runs": _lose_and_try_again,
    "attempt 2 was accepted": _lose_and_finish,
    "attempt 2 is parked": lambda store, claim: store.complete(
        replace(failure(_lose_and_try_again(store, claim)), parking=PARKING)
    ),
    "it was released": lambda store, claim: store.transact(release_step, key_of(claim), reason="stopping"),
    "it was released and attempt 2 runs": _release_and_try_again,
    "its failure was recorded and attempt 2 runs": _retry_and_try_again,
    "it was accepted": lambda store, claim: store.complete(success(claim)),
    "its outcome became unknown": lambda store, claim: store.transact(mark_unknown, key_of(claim), error={}),
    "its step was cancelled": lambda store, claim: store.advance(claim.run_id, cancelled=(1,)),
    "its run was cancelled": lambda store, claim: store.transact(
        cancel_run, NAMESPACE, claim.run_id, grace_seconds=1.0
    ),
    "its run has ended": lambda store, claim: store.advance(claim.run_id, end=succeeded()),
    "its run was failed from outside": lambda store, claim: store.transact(
        fail_run, NAMESPACE, claim.run_id, {"type": "Stopped"}, grace_seconds=1.0
    ),
    "another step was completed": lambda store, claim: store.complete(success(store.claimed(claim.run_id, 2))),
    "the run was advanced": _advance,
    "another step is parked": lambda store, claim: store.transact(
        park_step, namespace=NAMESPACE, run_id=claim.run_id, position=2, parking=PARKING
    ),
    "a budget was set": lambda store, claim: store.transact(set_budget, NAMESPACE, BUDGET),
}
"""What happens between an attempt's claim and its completion."""

BUDGET = Budget(subject="agent=count", period=Period.RUN, unit=Unit.USD, amount=10**15)


@dataclass(frozen=True, kw_only=True)
class Twin:
    """One thing to be written: an attempt's end, what its agent asks for then, and how the run stands."""

    completed: Callable[[Claim], Completion]
    early_calls: int = 0
    """How many of the completion's calls a heartbeat has written before."""
    has_parent: bool = False
    has_child: bool = False
    has_budget: bool = False
    head_is_stale: bool = False
    """Whether the worker has read the run before the disturbance, as one that keeps it ready has."""
    parks_at_last: bool = False
    """Whether a circuit opens for the other step after the worker has read the run."""
    new_steps: int = 0
    asks_for_child: bool = False
    takes_on: bool = False
    cancels: bool = False
    state: RunState = RunState.RUNNING
    end: RunEnd | None = None
    wake_at_us: int | None = None


_rarely = st.sampled_from([False, False, False, False, True])
calls = st.builds(
    CallRecord,
    id=st.uuids().map(str),
    kind=st.sampled_from(CallKind),
    started_at_us=st.integers(0, 3).map(lambda days: START_US + days * 86_400_000_000),
    usage_source=st.sampled_from(UsageSource),
    status=st.sampled_from(CallStatus),
    model_billed=st.none() | st.just("model"),
    input_tokens=st.none() | st.integers(0, 1000),
    output_tokens=st.none() | st.integers(0, 1000),
    cost_nanousd=st.none() | st.integers(0, 10**12),
)
_results = st.none() | st.integers() | st.text(max_size=5) | st.lists(st.text(min_size=300, max_size=300), max_size=30)
_errors = st.fixed_dictionaries({"type": st.just("ValueError"), "message": st.text(max_size=5)})


@st.composite
def _completions(draw: st.DrawFn) -> Callable[[Claim], Completion]:
    outcome = draw(st.sampled_from([AttemptOutcome.ACCEPTED, AttemptOutcome.ACCEPTED, *AttemptOutcome]))
    options: dict[str, Any] = {"calls": draw(st.lists(calls, max_size=3, unique_by=lambda call: call.id))}
    options["refused_calls"] = draw(_rarely) * 2
    if outcome in (AttemptOutcome.LOST, AttemptOutcome.FENCED):  # no worker reports these
        outcome = AttemptOutcome.FAILED
    if outcome is AttemptOutcome.ACCEPTED:
        data = json.dumps(draw(_results)).encode()
        options |= {"result": split(data), "result_json": data}
    else:
        options |= {"error": draw(_errors), "traceback": draw(st.none() | st.text("ab\n", max_size=9))}
        options["counts_as_failure"] = draw(st.booleans())
        again = draw(st.sampled_from(["", "", "", "", "retry", "parking"]))
        if outcome is AttemptOutcome.BLOCKED:
            options["blocking"] = BLOCKING
        elif again == "retry":
            options["retry_after_us"] = draw(st.integers(0, 10**9))
        elif again == "parking":
            options["parking"] = PARKING
    return lambda claim: Completion(claim=claim, worker="w1", outcome=outcome, **options)


_ends = st.builds(
    RunEnd,
    state=st.sampled_from([RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED]),
    result=st.none() | _results.map(lambda value: split(json.dumps(value).encode())),
    error=st.none() | _errors,
)
twins = st.builds(
    Twin,
    completed=_completions(),
    early_calls=st.sampled_from([0, 0, 1, 3]),
    has_parent=_rarely,
    has_child=_rarely,
    has_budget=_rarely,
    head_is_stale=st.booleans(),
    parks_at_last=_rarely,
    new_steps=st.sampled_from([0, 0, 1, 3]),
    asks_for_child=_rarely,
    takes_on=st.booleans(),
    cancels=_rarely,
    state=st.sampled_from([RunState.RUNNING, RunState.WAITING, RunState.BLOCKED]),
    end=st.none() | _ends,
    wake_at_us=st.none() | st.just(START_US + 5),
)


def _success_with_tokens(claim: Claim) -> Completion:
    known: dict[str, Any] = {"kind": CallKind.LLM, "started_at_us": START_US, "usage_source": UsageSource.PROVIDER}
    plain = success(claim)
    return replace(plain, calls=[*plain.calls, CallRecord(**known, input_tokens=7, output_tokens=5)])


_ALONE: dict[str, Any] = {"completed": _success_with_tokens}
USUAL = [
    *(
        Twin(**_ALONE, head_is_stale=head_is_stale, **options)
        for head_is_stale in (False, True)
        for options in ({}, {"new_steps": 1, "takes_on": True}, {"new_steps": 2}, {"end": succeeded()})
    ),
    Twin(completed=failure),
    Twin(**_ALONE, has_budget=True),
    Twin(**_ALONE, parks_at_last=True),
    Twin(**_ALONE, cancels=True),
    Twin(**_ALONE, cancels=True, end=succeeded()),
    Twin(**_ALONE, asks_for_child=True),
    Twin(**_ALONE, has_child=True, end=succeeded()),
    Twin(**_ALONE, has_parent=True, end=succeeded()),
]
"""What most commits of a sequence are, and one of each kind that the single statements leave to the others."""


@dataclass
class Outcome:
    """What one way has led to; ``messages`` count only if it was accepted. ``rows`` are those of every table."""

    acceptance: object
    messages: Sequence[Message]
    rows: Rows = field(repr=False, default_factory=list)


class Scene:
    """A run with a claimed step, disturbed, and whoever comes to write the end of that step's attempt."""

    def __init__(self, store: Store, twin: Twin, disturb: Disturbance, *, beside_others: bool = False) -> None:
        if not beside_others:
            store.transact(lambda connection: connection.execute(EMPTY))
        run_id = self._run(store, twin)
        store.advance(run_id, steps=2, children=int(twin.has_child), delivery="at_least_once")
        if twin.has_budget:
            store.transact(set_budget, NAMESPACE, BUDGET)
        claim = store.claimed(run_id)
        self.completion = twin.completed(claim)
        if twin.early_calls:
            store.transact(insert_calls, claim=claim, records=list(self.completion.calls)[: twin.early_calls])
        before = store.head(run_id)
        disturb(store, claim)
        self.head = before if twin.head_is_stale else store.head(run_id)
        if twin.parks_at_last:
            DISTURBANCES["another step is parked"](store, claim)
        self.progress = self._progress(twin, self.head)
        steps = [step for step in self.progress.new_steps if step.kind != "agent"]
        self.taken = steps[0] if twin.takes_on and steps else None
        self._ends_with_child = twin.end is not None and twin.has_child
        self._store = store

    def _run(self, store: Store, twin: Twin) -> str:
        run_id = store.submit().run_id
        if not twin.has_parent:
            return run_id
        store.advance(run_id, children=1)
        child: str = store.row("SELECT child_run_id FROM steps WHERE run_id = :run_id", run_id=run_id).child_run_id
        return child

    def _progress(self, twin: Twin, head: RunHead) -> Progress:
        following: list[NewStep] = []
        if twin.end is None:
            kinds = ["step"] * twin.new_steps + ["agent"] * twin.asks_for_child
            following = [new_step(4 + number, kind, head.consumed_seq + 1) for number, kind in enumerate(kinds)]
        return Progress(
            from_seq=head.consumed_seq,
            to_seq=head.consumed_seq + 1,
            state=twin.state if twin.end is None else twin.end.state,
            state_reason="deadlock" if twin.state is RunState.BLOCKED and twin.end is None else None,
            wake_at_us=twin.wake_at_us if twin.end is None else None,
            agent_version="2",
            python_minor="3.12",
            new_steps=following,
            cancelled_positions=(2,) if twin.cancels else (),
            end=twin.end,
            error={"type": "Deadlock"} if twin.state is RunState.BLOCKED and twin.end is None else None,
        )

    @property
    def is_left_to_generic(self) -> bool:
        """Whether a batch leaves it to the generic statements though these may write it.

        A step that stands still, or was given up as unknown, has a part in its run's state; an end cancels child runs.
        """
        rows = self._store.rows("SELECT state FROM steps WHERE run_id = :run_id", run_id=self.head.id)
        states = {row.state for row in rows}
        return not states.isdisjoint({"held", "parked", "blocked", "unknown"}) or self._ends_with_child

    def fits_alone(self) -> bool:
        return fits_alone(self.completion)

    def fits_together(self) -> bool:
        return self.completion.is_final and fits_together(self.completion, self.head, self.progress)

    def fits_as_advance(self) -> bool:
        return fits_as_advance(self.head, self.progress)

    def alone(self) -> Outcome:
        return self._undone(self._complete_alone)

    def together(self) -> Outcome:
        return self._undone(self._together)

    def advanced(self) -> Outcome:
        return self._undone(self._advance)

    def alone_in_batch(self) -> Outcome:
        return self._in_batch(completion_item(self.completion), [])

    def together_in_batch(self) -> Outcome:
        return self._in_batch(self._together_item(), [s for s in self.progress.new_steps if s is not self.taken])

    def advanced_in_batch(self) -> Outcome:
        item = advance_item(self.head, self._read_progress(), **self._given)
        return self._in_batch(item, [step for step in self.progress.new_steps if step is not self.taken])

    def item(self) -> tuple[Item, Callable[[Connection], bool]] | None:
        """What this run hands to a committer, and the generic way of writing the same; ``None``: it is not for one."""
        if self.fits_together():
            return self._together_item(), lambda c: self._together(c)[0] is Acceptance.ACCEPTED
        if self.fits_alone():
            return completion_item(self.completion), self._is_completed
        if self.fits_as_advance():
            item = advance_item(self.head, self._read_progress(), **self._given)
            return item, lambda c: self._advance(c)[0]
        return None

    @property
    def _given(self) -> dict[str, Any]:
        return {} if self.taken is None else {"taken": self.taken, "claimant": AHEAD}

    def _together_item(self) -> Item:
        return together_item(self.completion, self.head, self.progress, START_US + 7, **self._given)

    def _is_completed(self, connection: Connection) -> bool:
        before = all_rows(connection)
        return self._complete_alone(connection)[0] is Acceptance.ACCEPTED and all_rows(connection) != before

    def _read_progress(self) -> Progress:
        return replace(self.progress, to_seq=min(self.progress.to_seq, self.head.last_seq))

    def _in_batch(self, item: Item, sent: Sequence[NewStep]) -> Outcome:
        return self._undone(lambda c: (bool(commit_in(c, [item])), step_messages(self.head, sent)))

    def _complete_alone(self, connection: Connection) -> tuple[Acceptance, list[Message]]:
        try:
            with connection.begin_nested():
                return complete_alone(connection, self.completion), []
        except LogGap:
            return record_refused(connection, self.completion), []

    def _together(self, connection: Connection) -> tuple[Acceptance, list[Message]]:
        acceptance, messages = complete_with_progress(
            connection, self.completion, self.head, self.progress, START_US + 7, **self._given
        )
        return acceptance, list(messages)

    def _advance(self, connection: Connection) -> tuple[bool, list[Message]]:
        messages, _ = advance_and_claim(connection, self.head, self._read_progress(), **self._given)
        return messages is not None, list(messages or ())

    def _undone(self, act: Callable[[Connection], tuple[object, Sequence[Message]]]) -> Outcome:
        with self._store.database.write() as connection:
            savepoint = connection.begin_nested()
            acceptance, messages = act(connection)
            raw = connection.connection.dbapi_connection
            if isinstance(raw, psycopg.Connection) and raw.info.transaction_status is TransactionStatus.INERROR:
                savepoint.rollback()  # it divided by zero, which undoes the whole
                return Outcome(acceptance, messages, all_rows(connection))
            rows = all_rows(connection)
            savepoint.rollback()
            return Outcome(acceptance, messages, rows)


@contextmanager
def undone(store: Store) -> Iterator[Connection]:
    """A transaction of which nothing stays."""
    with store.database.write() as connection:
        savepoint = connection.begin_nested()
        yield connection
        savepoint.rollback()


def commit_in(connection: Connection, items: Sequence[Item]) -> set[str]:
    """Commit a batch inside of this transaction; empty if the statement undid itself."""
    raw = connection.connection.dbapi_connection
    assert isinstance(raw, psycopg.Connection)
    cursor = psycopg.RawCursor(raw)
    try:
        return commit_items(lambda statement, parameters: cursor.execute(statement, parameters).fetchall(), items)
    except psycopg.errors.DivisionByZero:
        return set()


def rows_of(store: Store) -> Rows:
    """Every row there is."""
    return store.read(all_rows)


def all_rows(connection: Connection) -> Rows:
    """Every row of every table as PostgreSQL writes it, in the order of their text."""
    return sorted((row.source, row.content) for row in connection.execute(_ALL_ROWS))


def stop_the_clock(store: Store) -> None:
    """From now on it is always ``START_US`` in this database. Nor does a commit wait for the disk."""
    with store.database.write() as connection:
        connection.execute(text(STANDING_STILL))
        name = connection.execute(text("SELECT current_database()")).scalar_one()
        connection.execute(text(f'ALTER DATABASE "{name}" SET synchronous_commit TO off'))
    store.database.engine.dispose()
