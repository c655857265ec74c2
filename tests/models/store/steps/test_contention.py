"""Eight threads on the same few families of runs: nobody waits for somebody who waits for him."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import pytest

from paidonce_models.budgets import Budget, Period, Unit
from paidonce_models.errors import InvalidInput, StatementRefused
from paidonce_models.store.budgets.budget_rules import set_budget
from paidonce_models.store.budgets.held_steps import let_go, steps_with_room
from paidonce_models.store.circuits.parked_steps import Parking, oldest_parked, park_step, unpark_step
from paidonce_models.store.ledger.rolling_up import roll_up
from paidonce_models.store.recovery.lost_steps import expired_leases, reclaim_step
from paidonce_models.store.recovery.sweeping import due_timers, fire_timer, take_due
from paidonce_models.store.runs.cancel_run import cancel_run
from paidonce_models.store.steps.leases import mark_unknown, release_step, renew_leases
from paidonce_models.store.steps.resolving import resolve_by_retry
from tests.models.deadlocks import watch_deadlocks
from tests.models.stored_runs import LEASE_US, NAMESPACE, PRICE_NANOUSD, Store, failure, key_of, succeeded, success

THREADS = 8
SECONDS = 5.0
MAX_LOST = 2
PARKING = Parking(circuit="search", retry_in_us=1, most_us=10**12)
BUDGETS = [
    Budget(subject="all", period=Period.DAY, unit=Unit.USD, amount=50 * PRICE_NANOUSD),
    Budget(subject="agent=count", period=Period.MONTH, unit=Unit.USD, amount=80 * PRICE_NANOUSD),
    Budget(subject="agent=count", period=Period.DAY, unit=Unit.TOKENS, amount=10**9),
]
FAMILIES = 4
STEPS = 4


class Contention:
    """What one thread does to the families, at random."""

    def __init__(self, store: Store, seed: int, roots: list[str], resolved: set[tuple[str, int]]) -> None:
        self._store = store
        self._random = random.Random(seed)
        self._roots = roots
        self._resolved = resolved
        self._worker = f"w{seed}"
        self.done: Counter[str] = Counter()

    def run(self, stop: threading.Event) -> Counter[str]:
        """Act until told to stop, and each act once in any case."""
        acts = [self._work, self._work, self._work, self._advance, self._sweep, self._cancel_child, self._end_child]
        acts += [self._park, self._unpark, self._make_room, self._resolve, self._roll_up, self._end_root]
        self._random.shuffle(acts)
        for act in acts:
            self._do(act)
        while not stop.is_set():
            self._do(self._random.choice(acts))
        return self.done

    def _do(self, act: Callable[[], None]) -> None:
        act()
        self.done[act.__name__] += 1

    def _runs(self) -> list[tuple[str, str | None]]:
        rows = self._store.rows(
            "SELECT id, parent_run_id FROM runs WHERE state NOT IN ('succeeded', 'failed', 'cancelled') "
            "ORDER BY depth, id LIMIT 60"
        )
        return [(row.id, row.parent_run_id) for row in rows]

    def _some_run(self) -> str:
        runs = self._runs()
        return self._random.choice(runs)[0] if runs else self._random.choice(self._roots)

    def _work(self) -> None:
        store = self._store
        for row in store.rows(
            "SELECT run_id, position FROM steps WHERE state IN ('scheduled', 'retrying') AND kind <> 'agent' "
            "ORDER BY random() LIMIT 4"
        ):
            claim = store.claim(row.run_id, row.position, self._worker)
            if claim is None:
                continue
            match self._random.randrange(8):
                case 0:
                    store.transact(reclaim_step, key_of(claim), why="dead", alone=True, anyway=True)
                case 1:
                    store.transact(release_step, key_of(claim), reason="stopping")
                case 2:
                    store.complete(failure(claim, retry_after_us=1))
                case 3:
                    store.complete(replace(failure(claim), parking=PARKING))
                case 4:
                    store.transact(mark_unknown, key_of(claim), error={})
                case _:
                    store.transact(renew_leases, worker=self._worker, held=[key_of(claim)], lease_us=LEASE_US)
            if self._random.randrange(3):  # else it never reports
                store.complete(success(claim, self._random.random()))

    def _advance(self) -> None:
        try:
            delivery = self._random.choice(["at_least_once", "at_most_once"])
            children = self._random.randrange(2)
            self._store.advance(self._some_run(), steps=1, children=children, delivery=delivery, max_lost=MAX_LOST)
        except StatementRefused as error:
            # The test numbers the steps itself, so two advances may want the same number.
            assert "steps" in error.message, error

    def _end_child(self) -> None:
        children = [run_id for run_id, parent in self._runs() if parent is not None]
        if children:
            self._store.advance(self._random.choice(children), end=succeeded())

    def _end_root(self) -> None:
        if self._random.randrange(4) == 0:
            self._store.advance(self._random.choice(self._roots), end=succeeded())
            self._roots.append(family(self._store))

    def _cancel_child(self) -> None:
        children = [run_id for run_id, parent in self._runs() if parent is not None]
        if children and self._random.randrange(3) == 0:
            self._store.transact(cancel_run, NAMESPACE, self._random.choice(children), grace_seconds=1.0)

    def _park(self) -> None:
        key = {"namespace": NAMESPACE, "run_id": self._some_run(), "position": 1 + self._random.randrange(STEPS)}
        self._store.transact(park_step, **key, parking=PARKING)

    def _unpark(self) -> None:
        place = {"namespace": NAMESPACE, "shard": 0, "circuit": PARKING.circuit, "most": 3, "due_only": False}
        for key in self._store.read(oldest_parked, **place):
            self._store.transact(unpark_step, key)

    def _make_room(self) -> None:
        store = self._store
        amount = self._random.randrange(1, 200) * PRICE_NANOUSD
        store.transact(set_budget, NAMESPACE, replace(self._random.choice(BUDGETS), amount=amount))
        for key in store.read(steps_with_room, namespace=NAMESPACE, shard=0, most=5):
            store.transact(let_go, key)

    def _resolve(self) -> None:
        for row in self._store.rows("SELECT run_id, position FROM steps WHERE state = 'unknown' LIMIT 5"):
            with suppress(InvalidInput):  # another thread was quicker
                key = {"namespace": NAMESPACE, "run_id": row.run_id, "position": row.position}
                self._resolved.add((row.run_id, row.position))
                self._store.transact(resolve_by_retry, **key)

    def _roll_up(self) -> None:
        self._store.transact(roll_up, NAMESPACE, most=20)

    def _sweep(self) -> None:
        store = self._store
        store.transact(take_due, namespace=NAMESPACE, shard=0)
        for timer in store.read(due_timers, namespace=NAMESPACE, shard=0):
            store.transact(fire_timer, timer.run_id)
        for key in store.read(expired_leases, namespace=NAMESPACE, shard=0):
            store.transact(reclaim_step, key, why="dead", alone=True)


def family(store: Store) -> str:
    """A run that waits for three child runs and some steps."""
    root = store.submit().run_id
    store.advance(root, steps=STEPS, max_lost=MAX_LOST, delivery="at_most_once")
    with suppress(StatementRefused):  # as another thread's advance
        store.advance(root, steps=STEPS, children=3, max_lost=MAX_LOST)
    return root


@pytest.mark.slow
def test_threads_that_do_everything_at_once_never_deadlock(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    deadlocks = watch_deadlocks(monkeypatch)
    store.guesses[Unit.USD] = PRICE_NANOUSD
    for budget in BUDGETS:
        store.transact(set_budget, NAMESPACE, budget)
    roots = [family(store) for _ in range(FAMILIES)]
    resolved: set[tuple[str, int]] = set()
    stop = threading.Event()
    threads = [Contention(store, seed, roots, resolved) for seed in range(THREADS)]
    with ThreadPoolExecutor(THREADS) as pool:
        running = [pool.submit(each.run, stop) for each in threads]
        stop.wait(SECONDS)
        stop.set()
        done: Counter[str] = Counter()
        for each in running:
            done += each.result()
    assert not deadlocks, f"{len(deadlocks)} deadlocks, the first: {deadlocks[0]}"
    assert len(done) == 11 and sum(done.values()) > THREADS, done
    assert not store.rows(
        "SELECT run_id, position FROM attempts WHERE outcome = 'accepted' GROUP BY run_id, position HAVING count(*) > 1"
    )
    gaps = store.rows(
        "SELECT r.id FROM runs r JOIN run_events e ON e.run_id = r.id GROUP BY r.id, r.last_seq "
        "HAVING count(*) <> r.last_seq"
    )
    assert not gaps
    assert not store.rows(
        "SELECT 1 FROM steps WHERE delivery = 'at_least_once' "
        "AND (blamed > max_lost OR blamed = max_lost AND state <> 'failed')"
    )
    assert not store.rows(
        "SELECT run_id, position FROM attempts WHERE outcome IS NULL GROUP BY run_id, position HAVING count(*) > 1"
    )
    again = store.rows(
        "SELECT a.run_id, a.position FROM attempts a JOIN steps s ON s.run_id = a.run_id AND s.position = a.position "
        "JOIN attempts next ON next.run_id = a.run_id AND next.position = a.position AND next.number = a.number + 1 "
        "WHERE s.delivery = 'at_most_once' AND a.outcome IN ('lost', 'timed_out')"
    )
    assert {(row.run_id, row.position) for row in again} <= resolved
    _check_money(store)


def _check_money(store: Store) -> None:
    """Accounts hold what their reservations say, and the sums what the calls say."""
    held = store.rows(
        "SELECT a.key, a.spent, a.reserved, sum(r.spent) AS used, sum(r.remaining) AS remaining FROM budget_accounts a "
        "JOIN reservations r ON r.namespace = a.namespace AND r.account = a.key GROUP BY a.key, a.spent, a.reserved"
    )
    assert held
    assert not store.rows(
        "SELECT 1 FROM reservations r JOIN attempts a ON a.run_id = r.run_id AND a.position = r.position "
        "AND a.number = r.attempt WHERE a.outcome IS NOT NULL AND r.remaining <> 0"
    )
    assert [(row.key, row.reserved) for row in held] == [(row.key, row.remaining) for row in held]
    assert all(row.spent >= row.used for row in held), "what was spent before the account was opened is in it too"
    kept = store.row("SELECT coalesce(sum(calls), 0) AS calls FROM run_totals").calls
    assert kept == store.row("SELECT count(*) AS calls FROM calls WHERE rolled_up = 1").calls
    assert store.row("SELECT sum(calls) AS calls FROM attempts").calls == store.row("SELECT count(*) AS c FROM calls").c
