"""Two transactions at once: what the second reads while the first has not committed. Each test names what it guards."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection

from paidonce_models.budgets import Budget, Maxima, Period, Unit
from paidonce_models.errors import CircuitOpen
from paidonce_models.states import AttemptOutcome, RunState
from paidonce_models.store.blocking.blocked_steps import Blocking
from paidonce_models.store.budgets.budget_rules import set_budget
from paidonce_models.store.budgets.budgeted_claims import claim_within_budgets
from paidonce_models.store.budgets.spending import Spent, charge, release
from paidonce_models.store.circuits.parked_steps import (
    ParkedKey,
    Parking,
    lock_run,
    park_step,
    refuse_step,
    unpark_step,
)
from paidonce_models.store.ledger.rolling_up import roll_up
from paidonce_models.store.runs import advancing
from paidonce_models.store.steps.claims import Claim, claim_step
from paidonce_models.store.steps.completion import Acceptance, complete_alone
from paidonce_models.store.steps.ending_steps import lock_step
from paidonce_models.store.steps.leases import renew_leases
from tests.models.deadlocks import watch_deadlocks
from tests.models.stored_runs import LEASE_US, NAMESPACE, SECOND_US, Store, failure, key_of, succeeded, success
from tests.services.postgres import fresh_database
from tests.services.waiting import wait_until

RESERVED = 100
SPENT = 40
Act = Callable[[Connection], Any]


@pytest.fixture(scope="module")
def shared_postgresql(postgres_server: str) -> Iterator[Store]:
    with fresh_database(postgres_server) as url:
        store = Store(url)
        yield store
        store.database.close()


@pytest.fixture
def postgresql(shared_postgresql: Store) -> Store:
    """An empty store on the engine that has more than one writer."""
    shared_postgresql.clear()
    return shared_postgresql


@contextmanager
def while_uncommitted(
    store: Store, first: Act, second: Act, then: Act = lambda connection: None
) -> Iterator[Future[Any]]:
    """``second`` begins after ``first`` has written, which goes on with ``then`` and commits; then comes the block."""
    with ThreadPoolExecutor(1) as pool:
        with store.database.write() as connection:
            first(connection)
            after = pool.submit(store.database.transact, second)
            wait_until(lambda: after.done() or waits_for_a_lock(store), "the second waits for the first, or is done")
            then(connection)
        after.result(timeout=30)
        yield after


def waits_for_a_lock(store: Store) -> bool:
    """Whether a session of this database waits for another."""
    return bool(
        store.rows("SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")
    )


def _reserving(store: Store) -> tuple[Act, Act]:
    """An attempt that has reserved, as two acts: it spends a part of that, and it ends."""
    store.transact(set_budget, NAMESPACE, Budget(subject="all", period=Period.DAY, unit=Unit.USD, amount=10_000))
    store.maxima["module.work"] = Maxima(nanousd=RESERVED)
    claim = store.claimed(store.running())
    key: dict[str, Any] = {"run_id": claim.run_id, "position": claim.position, "attempt": claim.attempt}
    spent = Spent(**key, nanousd=SPENT, tokens=0, unpriced_calls=0)
    return lambda c: charge(c, [spent]), lambda c: release(c, **key, accepted=True)


@pytest.mark.parametrize("charged_first", [True, False])
def test_what_is_charged_while_an_attempt_ends_is_taken_once(postgresql: Store, charged_first: bool) -> None:
    """Reservations are read FOR UPDATE: else both would take the same rest from the account."""
    first, second = _reserving(postgresql) if charged_first else reversed(_reserving(postgresql))
    with while_uncommitted(postgresql, first, second):
        account = postgresql.row("SELECT spent, reserved FROM budget_accounts")
    assert tuple(account) == (SPENT, 0)


def test_an_end_that_spends_in_one_account_only_never_waits_crosswise_for_a_claim(
    postgresql: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All accounts of an attempt are locked in order at once: its end moves the tokens' after its calls the money's."""
    deadlocks = watch_deadlocks(monkeypatch)
    for unit in (Unit.TOKENS, Unit.USD):
        postgresql.transact(set_budget, NAMESPACE, Budget(subject="all", period=Period.DAY, unit=unit, amount=10_000))
    run_id = postgresql.running(steps=2)
    claim = postgresql.claimed(run_id)
    key: dict[str, Any] = {"run_id": run_id, "position": 1, "attempt": claim.attempt}
    with while_uncommitted(
        postgresql,
        lambda c: charge(c, [Spent(**key, nanousd=SPENT, tokens=0, unpriced_calls=0)]),
        lambda c: claim_within_budgets(
            c,
            namespace=NAMESPACE,
            run_id=run_id,
            position=2,
            worker="w2",
            lease_us=LEASE_US,
            expectations=postgresql.expectations,
        ),
        then=lambda c: release(c, **key, accepted=True),
    ) as claimed:
        assert isinstance(claimed.result(), Claim)
    assert deadlocks == []


def test_two_roll_ups_at_once_count_each_call_once(postgresql: Store) -> None:
    """Calls are chosen FOR UPDATE SKIP LOCKED: else the second would add what the first is about to mark."""
    run_id = postgresql.running(steps=2)
    for position in (1, 2):
        postgresql.complete(success(postgresql.claimed(run_id, position)))
    postgresql.advance(run_id, end=succeeded())
    with while_uncommitted(
        postgresql, lambda c: roll_up(c, NAMESPACE, most=1), lambda c: roll_up(c, NAMESPACE, most=1)
    ):
        kept = postgresql.row("SELECT calls FROM run_totals").calls
    assert kept == postgresql.row("SELECT count(*) AS calls FROM calls WHERE rolled_up = 1").calls == 2


def test_a_step_that_is_being_claimed_is_not_refused(postgresql: Store) -> None:
    """Whoever ends a step from outside locks its row: a claim locks nothing else."""
    run_id = postgresql.running()
    key: dict[str, Any] = {"namespace": NAMESPACE, "run_id": run_id, "position": 1}
    error = CircuitOpen.of("search", since=None, retry_at=None, reason="5 failures in a row").to_json()
    with while_uncommitted(
        postgresql,
        lambda c: claim_step(c, **key, worker="w1", lease_us=LEASE_US),
        lambda c: refuse_step(c, **key, error=error),
    ) as refused:
        assert refused.result() is None
    assert tuple(postgresql.row("SELECT state, attempt FROM steps")) == ("running", 1)
    assert postgresql.head(run_id).last_seq == 1


@pytest.mark.parametrize("end", ["parked", "blocked"])
def test_an_attempt_that_stops_its_step_never_waits_crosswise_for_who_ends_it(
    postgresql: Store, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """Both lock the run first: a completion that began with its step would want the run next, for its state."""
    deadlocks = watch_deadlocks(monkeypatch)
    run_id = postgresql.running()
    failed = failure(postgresql.claimed(run_id))
    if end == "parked":
        parking = Parking(circuit="search", retry_in_us=SECOND_US, most_us=60 * SECOND_US)
        stopped = replace(failed, outcome=AttemptOutcome.SHORT_CIRCUITED, parking=parking)
    else:
        stopped = replace(failed, outcome=AttemptOutcome.BLOCKED, blocking=Blocking(reason="step_does_not_fit"))
    with while_uncommitted(
        postgresql,
        lambda c: lock_run(c, run_id),
        lambda c: complete_alone(c, stopped),
        then=lambda c: lock_step(c, NAMESPACE, run_id, 1),
    ) as completed:
        assert completed.result() is Acceptance.ACCEPTED
    assert deadlocks == []


def test_a_step_that_is_let_go_never_waits_crosswise_for_who_ends_it(
    postgresql: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As above: the run's state follows from the step's."""
    deadlocks = watch_deadlocks(monkeypatch)
    run_id = postgresql.running()
    parking = Parking(circuit="search", retry_in_us=SECOND_US, most_us=60 * SECOND_US)
    assert postgresql.transact(park_step, namespace=NAMESPACE, run_id=run_id, position=1, parking=parking)
    with while_uncommitted(
        postgresql,
        lambda c: lock_run(c, run_id),
        lambda c: unpark_step(c, ParkedKey(run_id, 1)),
        then=lambda c: lock_step(c, NAMESPACE, run_id, 1),
    ) as let_go:
        assert let_go.result() is not None
    assert deadlocks == []


def test_a_root_ends_while_its_child_does_and_neither_waits_for_the_other(
    postgresql: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both lock the parent first: a child that locked itself first would hold what the end of its root wants next."""
    deadlocks = watch_deadlocks(monkeypatch)
    root = postgresql.submit().run_id
    postgresql.advance(root, children=1)
    child: str = postgresql.row("SELECT child_run_id FROM steps").child_run_id
    postgresql.advance(child, steps=1)
    cancel_open_steps = advancing.cancel_open_steps
    ended: list[Future[Any]] = []

    def in_the_middle(connection: Connection, run_id: str, **options: Any) -> Any:
        if run_id == root:
            ended.append(pool.submit(postgresql.advance, child, end=succeeded()))
            wait_until(lambda: ended[0].done() or waits_for_a_lock(postgresql), "the child's end waits for the root's")
        return cancel_open_steps(connection, run_id, **options)

    monkeypatch.setattr(advancing, "cancel_open_steps", in_the_middle)
    with ThreadPoolExecutor(1) as pool:
        assert postgresql.advance(root, end=succeeded()) is not None
        ended[0].result(timeout=30)
    assert deadlocks == []
    assert {row.state for row in postgresql.rows("SELECT state FROM runs WHERE depth = 0")} == {RunState.SUCCEEDED}
    assert postgresql.head(root).last_seq == 1, "an ended run is told nothing"
    gaps = "SELECT r.id FROM runs r JOIN run_events e ON e.run_id = r.id GROUP BY r.id HAVING count(*) <> r.last_seq"
    assert postgresql.rows(gaps) == []


_CLAIM_ALL = """
import sys
from paidonce_models.budgets import Maxima
from paidonce_models.database.transactions import Database
from paidonce_models.store.budgets.budgeted_claims import Expectations, claim_within_budgets
from paidonce_models.store.steps.claims import Claim

NOTHING = Expectations(maxima=lambda step: Maxima(), guesses={})
url, run_id, worker, steps = sys.argv[1:]
database = Database(url)
sys.stdin.readline()
claimed = 0
for position in range(1, int(steps) + 1):
    key = {"namespace": "tests", "run_id": run_id, "position": position, "worker": worker, "lease_us": 10**7}
    with database.write() as connection:  # nothing tries again
        claimed += isinstance(claim_within_budgets(connection, **key, expectations=NOTHING), Claim)
print(claimed)
"""


@pytest.mark.slow
def test_two_processes_on_one_sqlite_file_claim_each_step_once(tmp_path: Path) -> None:
    """A write begins with BEGIN IMMEDIATE: one that has read first cannot become a writer beside another."""
    url, steps = f"sqlite:///{tmp_path / 'paidonce.sqlite3'}", 150
    store = Store(url)
    run_id = store.running(steps=steps)
    store.database.close()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _CLAIM_ALL, url, run_id, worker, str(steps)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for worker in ("w1", "w2")
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=50) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert sum(int(claimed) for claimed, _ in outputs) == steps
    store = Store(url)
    assert store.row("SELECT count(*) AS attempts FROM attempts WHERE number = 1").attempts == steps
    store.database.close()


def test_a_heartbeat_waits_for_nobody_and_takes_what_is_being_written_for_held(postgresql: Store) -> None:
    """A step whose row is locked is being completed: it is neither lost nor cancelled, and the others are renewed."""
    run_id = postgresql.running(steps=3)
    claims = [postgresql.claimed(run_id, position) for position in (1, 2, 3)]
    held = [key_of(claim) for claim in claims]
    postgresql.clock.move(SECOND_US)
    with postgresql.database.write() as connection:
        complete_alone(connection, success(claims[1]))
        states = postgresql.transact(renew_leases, worker="w1", held=held, lease_us=LEASE_US)
    assert states == dict.fromkeys(held, "running")
    expiries = [row.expiry for row in postgresql.rows("SELECT lease_expires_at_us AS expiry FROM steps ORDER BY 1")]
    assert expiries[0] > claims[0].claimed_at_us + LEASE_US and expiries[2] is None
    after = postgresql.transact(renew_leases, worker="w1", held=held, lease_us=LEASE_US)
    assert after == dict.fromkeys([held[0], held[2]], "running")
