"""Eight threads on the same few families of runs: nobody waits for somebody who waits for him."""

from __future__ import annotations

import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from paidonce_models import database as database_module
from paidonce_models.errors import StatementRefused
from paidonce_models.store.cancel_run import cancel_run
from paidonce_models.store.leases import hand_back, renew_leases
from paidonce_models.store.sweeping import due_timers, expired_leases, fire_timer, take_back, take_due
from tests.models.stored_runs import LEASE_US, NAMESPACE, Store, failure, key_of, succeeded, success

THREADS = 8
SECONDS = 5.0
FAMILIES = 4
STEPS = 4


class Contention:
    """What one thread does to the families, at random."""

    def __init__(self, store: Store, seed: int, roots: list[str]) -> None:
        self._store = store
        self._random = random.Random(seed)
        self._roots = roots
        self._worker = f"w{seed}"
        self.done: Counter[str] = Counter()

    def run(self, stop: threading.Event) -> Counter[str]:
        """Act until told to stop."""
        acts = [self._work, self._work, self._work, self._advance, self._sweep, self._cancel_child, self._end_child]
        while not stop.is_set():
            act = self._random.choice(acts)
            act()
            self.done[act.__name__] += 1
        return self.done

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
        run_id, store = self._some_run(), self._store
        for position in range(1, STEPS + 1):
            claim = store.claim(run_id, position, self._worker)
            if claim is None:
                continue
            match self._random.randrange(6):
                case 0:
                    store.transact(take_back, key_of(claim), why="dead", alone=True, anyway=True)
                case 1:
                    store.transact(hand_back, key_of(claim), reason="stopping")
                case 2:
                    store.complete(failure(claim, retry_after_us=1))
                case _:
                    store.transact(renew_leases, worker=self._worker, held=[key_of(claim)], lease_us=LEASE_US)
            store.complete(success(claim, self._random.random()))

    def _advance(self) -> None:
        try:
            self._store.advance(self._some_run(), steps=1, children=self._random.randrange(2))
        except StatementRefused as error:
            # The test numbers the steps itself, so two advances may want the same number.
            assert "steps" in error.message, error

    def _end_child(self) -> None:
        children = [run_id for run_id, parent in self._runs() if parent is not None]
        if children:
            self._store.advance(self._random.choice(children), end=succeeded())

    def _cancel_child(self) -> None:
        children = [run_id for run_id, parent in self._runs() if parent is not None]
        if children and self._random.randrange(3) == 0:
            self._store.transact(cancel_run, NAMESPACE, self._random.choice(children), grace_seconds=1.0)

    def _sweep(self) -> None:
        store = self._store
        store.transact(take_due, namespace=NAMESPACE, shard=0)
        for timer in store.read(due_timers, namespace=NAMESPACE, shard=0):
            store.transact(fire_timer, timer.run_id)
        for key in store.read(expired_leases, namespace=NAMESPACE, shard=0):
            store.transact(take_back, key, why="dead", alone=True)


@pytest.mark.slow
def test_threads_that_do_everything_at_once_never_deadlock(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    deadlocks: list[str] = []
    is_passing = database_module.is_passing

    def watched(error: Exception) -> bool:
        if getattr(getattr(error, "orig", None), "sqlstate", None) == "40P01":
            deadlocks.append(str(error))
        return is_passing(error)

    monkeypatch.setattr(database_module, "is_passing", watched)
    roots = [store.running(steps=STEPS) for _ in range(FAMILIES)]
    for root in roots:
        store.complete(success(store.claimed(root, 1)))
        store.advance(root, children=3)
    stop = threading.Event()
    threads = [Contention(store, seed, roots) for seed in range(THREADS)]
    with ThreadPoolExecutor(THREADS) as pool:
        running = [pool.submit(each.run, stop) for each in threads]
        stop.wait(SECONDS)
        stop.set()
        done: Counter[str] = Counter()
        for each in running:
            done += each.result()
    assert not deadlocks, f"{len(deadlocks)} deadlocks, the first: {deadlocks[0]}"
    assert len(done) == 5 and sum(done.values()) > THREADS, done
    assert not store.rows(
        "SELECT run_id, position FROM attempts WHERE outcome = 'accepted' GROUP BY run_id, position HAVING count(*) > 1"
    )
    gaps = store.rows(
        "SELECT r.id FROM runs r JOIN run_events e ON e.run_id = r.id GROUP BY r.id, r.last_seq "
        "HAVING count(*) <> r.last_seq"
    )
    assert not gaps
