"""Runs and steps put into a real store without any agent: what the tests of the store's statements stand on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlalchemy import Connection, delete, text

from paidonce_models.budgets import Maxima, Unit
from paidonce_models.database.schema import upgrade
from paidonce_models.database.transactions import Database
from paidonce_models.payloads.encoding import canonical_sha256
from paidonce_models.payloads.payload_parts import split
from paidonce_models.states import AttemptOutcome, RunState
from paidonce_models.store.budgets.budgeted_claims import Expectations, claim_within_budgets
from paidonce_models.store.messages import Message
from paidonce_models.store.runs.advancing import NewStep, Progress, RunEnd, write_progress
from paidonce_models.store.runs.runs_head import RunHead, namespace_of, read_head
from paidonce_models.store.runs.submission import NewRun, Submitted, submit_run
from paidonce_models.store.steps.claims import Claim, claim_step
from paidonce_models.store.steps.completion import Acceptance, Completion, LogGap, complete_alone, record_refused
from paidonce_models.store.steps.leases import LeaseKey
from paidonce_models.tables import METADATA
from paidonce_models.usage import CallKind, CallRecord, UsageSource

T = TypeVar("T")

NAMESPACE = "tests"
QUEUE = "paidonce.default"
START_US = 1_700_000_000_000_000
LEASE_US = 10_000_000
SECOND_US = 1_000_000
"""What tests stay away from a limit: on PostgreSQL an injected clock goes on while a test runs."""
PRICE_NANOUSD = 2_500


@dataclass
class Clock:
    """The store's clock: goes on by the hand of the test."""

    now_us: int = START_US

    def __call__(self) -> int:
        return self.now_us

    def move(self, microseconds: int) -> None:
        """Let time pass."""
        self.now_us += microseconds


def new_run(value: object = 1, **options: Any) -> NewRun:
    """A run of agent ``count`` with this input."""
    given = {"value": value}
    return NewRun(
        **{
            "namespace": NAMESPACE,
            "agent": "count",
            "input": split(json.dumps(given).encode()),
            "input_sha256": canonical_sha256(given),
            "queue": QUEUE,
            **options,
        }
    )


@dataclass
class Store:
    """A store with a clock of its own, and the acts that tests put together."""

    url: str
    clock: Clock = field(default_factory=Clock)
    database: Database = field(init=False)
    maxima: dict[str, Maxima] = field(default_factory=dict)
    """What an attempt costs at most, by step."""
    guesses: dict[Unit, int] = field(default_factory=lambda: dict.fromkeys(Unit, 1))

    def __post_init__(self) -> None:
        self.database = Database(self.url, clock_us=self.clock)
        upgrade(self.database)

    @property
    def expectations(self) -> Expectations:
        """How a claim estimates what an attempt costs."""
        return Expectations(maxima=lambda step: self.maxima.get(step, Maxima()), guesses=self.guesses)

    def clear(self) -> None:
        """Delete every row and set the clock back."""
        self.clock.now_us = START_US
        self.maxima.clear()
        self.guesses = dict.fromkeys(Unit, 1)
        with self.database.write() as connection:
            if not self.database.is_sqlite:
                connection.exec_driver_sql("; ".join(f"DELETE FROM {name}" for name in METADATA.tables))
                return
            for table in METADATA.tables.values():
                connection.execute(delete(table))

    def transact(self, work: Callable[..., T], *args: Any, **options: Any) -> T:
        """Call one of the store's functions in a transaction of its own."""
        return self.database.transact(lambda connection: work(connection, *args, **options))

    def read(self, work: Callable[..., T], *args: Any, **options: Any) -> T:
        """Call one of the store's reading functions."""
        with self.database.read() as connection:
            return work(connection, *args, **options)

    def rows(self, query: str, **parameters: object) -> list[Any]:
        """What a query finds."""
        return self.read(lambda connection: list(connection.execute(text(query), parameters).all()))

    def row(self, query: str, **parameters: object) -> Any:
        """The one row that a query finds."""
        (row,) = self.rows(query, **parameters)
        return row

    def submit(self, value: object = 1, **options: Any) -> Submitted:
        """Submit a run."""
        return self.transact(submit_run, new_run(value, **options))

    def namespace_of(self, run_id: str) -> str:
        """Whose run it is; the tests' own where there is none."""
        return self.read(namespace_of, run_id) or NAMESPACE

    def head(self, run_id: str) -> RunHead:
        """Where a run stands."""
        head = self.read(read_head, self.namespace_of(run_id), run_id)
        assert head is not None
        return head

    def advance(
        self,
        run_id: str,
        *,
        steps: int = 0,
        children: int = 0,
        end: RunEnd | None = None,
        cancelled: tuple[int, ...] = (),
        **options: Any,
    ) -> list[Message] | None:
        """Consume all events of a run as if its agent had asked for so much; ``None`` where somebody else did."""
        head = self.head(run_id)
        (first,) = self.row("SELECT coalesce(max(position), 0) + 1 FROM steps WHERE run_id = :run_id", run_id=run_id)
        wanted = ["step"] * steps + ["agent"] * children
        progress = Progress(
            from_seq=head.consumed_seq,
            to_seq=head.last_seq,
            state=RunState.RUNNING if end is None else end.state,
            state_reason=None,
            wake_at_us=None,
            agent_version="1",
            python_minor="3.11",
            new_steps=[new_step(first + index, kind, head.last_seq, **options) for index, kind in enumerate(wanted)],
            cancelled_positions=cancelled,
            end=end,
        )
        try:
            return self.transact(_write_or_roll_back, head, progress)
        except _Overtaken:
            return None

    def running(self, *, steps: int = 1, **options: Any) -> str:
        """A run that waits for so many steps."""
        run_id = self.submit().run_id
        self.advance(run_id, steps=steps, **options)
        return run_id

    def claim(self, run_id: str, position: int = 1, worker: str = "w1") -> Claim | None:
        """Claim a step; where budgets apply, reserve what ``expectations`` say. ``None`` if it is held, too."""
        key: dict[str, Any] = {"namespace": self.namespace_of(run_id), "run_id": run_id, "position": position}
        key |= {"worker": worker, "lease_us": LEASE_US}
        claim = self.transact(claim_step, **key)
        if claim is not None:
            return claim
        answer = self.transact(claim_within_budgets, **key, expectations=self.expectations)
        return answer if isinstance(answer, Claim) else None

    def claimed(self, run_id: str, position: int = 1, worker: str = "w1") -> Claim:
        """Claim a step that is there to be claimed."""
        claim = self.claim(run_id, position, worker)
        assert claim is not None
        return claim

    def complete(self, completion: Completion) -> Acceptance:
        """Complete an attempt without its agent, as a worker without agents does."""
        try:
            return self.transact(complete_alone, completion)
        except LogGap:
            return self.transact(record_refused, completion)


class _Overtaken(Exception):
    """Somebody else advanced the run."""


def _write_or_roll_back(connection: Connection, head: RunHead, progress: Progress) -> list[Message]:
    messages = write_progress(connection, head, progress)
    if messages is None:
        raise _Overtaken
    return messages


def new_step(position: int, kind: str, created_seq: int, **options: Any) -> NewStep:
    """A step, or a child run of agent ``count``."""
    given = {"value": position}
    return NewStep(
        **{
            "position": position,
            "created_seq": created_seq,
            "kind": kind,
            "name": "count" if kind == "agent" else "module.work",
            "queue": QUEUE,
            "arguments": split(json.dumps(given).encode()),
            "input_sha256": canonical_sha256(given) if kind == "agent" else "",
            **options,
        }
    )


def success(claim: Claim, value: object = 1) -> Completion:
    """An attempt that succeeded, with one call of a known price."""
    data = json.dumps(value).encode()
    return Completion(
        claim=claim,
        worker="w1",
        outcome=AttemptOutcome.ACCEPTED,
        result=split(data),
        result_json=data,
        calls=[paid_call(claim)],
    )


def failure(claim: Claim, *, retry_after_us: int | None = None) -> Completion:
    """An attempt that failed, with one call of a known price."""
    return Completion(
        claim=claim,
        worker="w1",
        outcome=AttemptOutcome.FAILED,
        error={"type": "ValueError", "message": "no"},
        retry_after_us=retry_after_us,
        calls=[paid_call(claim)],
    )


def paid_call(claim: Claim) -> CallRecord:
    """A call that cost ``PRICE_NANOUSD``."""
    return CallRecord(
        kind=CallKind.TOOL,
        started_at_us=claim.claimed_at_us,
        usage_source=UsageSource.EXPLICIT,
        cost_nanousd=PRICE_NANOUSD,
        other_cost_nanousd=PRICE_NANOUSD,
    )


def key_of(claim: Claim) -> LeaseKey:
    """The lease of a claim."""
    return LeaseKey(claim.run_id, claim.position, claim.attempt)


def succeeded(value: object = 1) -> RunEnd:
    """A run's end with a result."""
    return RunEnd(state=RunState.SUCCEEDED, result=split(json.dumps(value).encode()))
