"""Two committers, their heartbeats and a saboteur on the same runs: nothing is lost, repeated or written in half.

``TEST_SHARE`` sets how many of ten thousand items the slow form commits.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import psycopg
import pytest
from sqlalchemy import Connection, text
from sqlalchemy.engine import make_url

from paidonce_models.database.transactions import Database
from paidonce_models.errors import StoreUnreachable
from paidonce_models.states import RunState
from paidonce_models.store.commits import committer as committing
from paidonce_models.store.commits.committer import Committer
from paidonce_models.store.commits.items import advance_item, completion_item, together_item
from paidonce_models.store.recovery.lost_steps import reclaim_step
from paidonce_models.store.runs.advancing import Progress
from paidonce_models.store.runs.events import EventKind, allocate_seq, insert_event
from paidonce_models.store.runs.runs_head import RunHead, read_head
from paidonce_models.store.steps.claims import Claim, Claimant, claim_step, find_claims
from paidonce_models.store.steps.completion import Acceptance, LogGap, complete_alone, record_refused
from paidonce_models.store.steps.leases import LeaseKey, renew_leases
from tests.long_proofs import share_of
from tests.models.stored_runs import LEASE_US, NAMESPACE, Store, failure, key_of, new_step, succeeded, success
from tests.services.postgres import fresh_database

MANY = share_of(10_000)
RUNS = 24
THREADS = 5
T = TypeVar("T")


@pytest.fixture
def store(postgres_server: str) -> Iterator[Store]:
    with fresh_database(postgres_server) as url:
        store = Store(url)
        yield store
        store.database.close()


def patiently(act: Callable[[], T]) -> T:
    """As workers do."""
    while True:
        try:
            return act()
        except StoreUnreachable:
            continue


@dataclass
class Process:
    """What stands for a worker process: a pool, a committer, and what its threads hold."""

    url: str
    name: str
    goal: int
    committed: Counter[str] = field(default_factory=Counter)
    held: dict[LeaseKey, Claim] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.database = Database(self.url, pool_size=THREADS + 1)
        self.committer = Committer(self.database)
        self.claimant = Claimant(namespace=NAMESPACE, worker=self.name, lease_us=LEASE_US)

    def read(self, work: Callable[[Connection], T]) -> T:
        def act() -> T:
            with self.database.read() as connection:
                return work(connection)

        return patiently(act)

    def is_over(self) -> bool:
        return sum(self.committed.values()) >= self.goal

    # -- its threads ---------------------------------------------------------------

    def work(self, seed: int, runs: list[str]) -> None:
        chosen = random.Random(f"{self.name}{seed}")
        claim: Claim | None = None
        while not self.is_over():
            run_id = chosen.choice(runs) if claim is None else claim.run_id
            if claim is None:
                claim = self._claim(run_id)
            if claim is None:
                self._advance(run_id, chosen)
            else:
                claim = self._complete(claim, chosen)

    def _claim(self, run_id: str) -> Claim | None:
        waiting = self.read(
            lambda c: c.execute(
                text("SELECT position FROM steps WHERE run_id = :run_id AND state = 'scheduled' LIMIT 1"),
                {"run_id": run_id},
            ).first()
        )
        if waiting is None:
            return None
        key: dict[str, Any] = {"namespace": NAMESPACE, "run_id": run_id, "position": waiting.position}
        claim = patiently(
            lambda: self.database.transact(
                lambda c: claim_step(c, **key, worker=self.name, lease_us=LEASE_US), single=True
            )
        )
        if claim is not None:
            self.held[key_of(claim)] = claim
        return claim

    def _stands(self, run_id: str, chosen: random.Random, read: int) -> tuple[RunHead, Progress]:
        """The run's head, and what an agent may ask for that has read so many events more."""
        head = self.read(lambda c: read_head(c, NAMESPACE, run_id))
        assert head is not None
        last = self.read(lambda c: c.execute(text("SELECT max(position) FROM steps WHERE run_id = :r"), {"r": run_id}))
        first = (last.scalar_one() or 0) + 1
        to_seq = head.consumed_seq + 1 if read else head.last_seq
        wanted = chosen.choice([0, 1, 1, 1, 2])
        ends = read == 1 and chosen.randrange(60) == 0
        return head, Progress(
            from_seq=head.consumed_seq,
            to_seq=to_seq,
            state=RunState.SUCCEEDED if ends else RunState.RUNNING,
            state_reason=None,
            wake_at_us=None,
            agent_version="1",
            python_minor="3.11",
            new_steps=[] if ends else [new_step(first + each, "step", to_seq) for each in range(wanted)],
            end=succeeded() if ends else None,
        )

    def _complete(self, claim: Claim, chosen: random.Random) -> Claim | None:
        """Complete it, with an advance if the run stands so; returns the step that this has claimed."""
        completion = failure(claim) if chosen.randrange(10) == 0 else success(claim, chosen.randrange(3))
        if chosen.randrange(3):
            completion = replace(completion, calls=())
        head, progress = self._stands(claim.run_id, chosen, read=1)
        taken = progress.new_steps[0] if progress.new_steps and chosen.randrange(4) else None
        together = chosen.randrange(4) > 0 and not head.has_stopped_steps
        if together:
            item = together_item(completion, head, progress, claim.claimed_at_us, taken=taken, claimant=self.claimant)
        else:
            item = completion_item(completion)
        key = key_of(claim)
        kind = "together" if together else "alone"
        try:
            is_committed = self.committer.commit(item)
        except StoreUnreachable:
            is_committed = self._outcome(key) in ("accepted", "failed")
            self.committed["in doubt"] += 1
            if is_committed and together and taken is not None:
                return self._find(claim.run_id, taken.position)
        else:
            found = self._outcome(key)
            if is_committed is not (found == completion.outcome.value):
                self.wrong.append(f"{kind} {key}: {is_committed}, but the attempt is {found}")
        self.committed[f"{kind} {is_committed}"] += 1
        self.held.pop(key, None)
        if not is_committed:
            self._complete_alone(completion)
            return None
        return self._find(claim.run_id, taken.position) if together and taken is not None else None

    def _find(self, run_id: str, position: int) -> Claim | None:
        found = self.read(lambda c: find_claims(c, run_id=run_id, worker=self.name))
        for claim in found:
            if (claim.position, claim.attempt) == (position, 1):  # a later attempt is another thread's
                self.held[key_of(claim)] = claim
                return claim
        return None  # the saboteur has reclaimed it

    def _complete_alone(self, completion: Any) -> None:
        def act() -> Acceptance:
            try:
                return self.database.transact(lambda c: complete_alone(c, completion))
            except LogGap:
                return self.database.transact(lambda c: record_refused(c, completion))

        patiently(act)

    def _outcome(self, key: LeaseKey) -> str | None:
        found: str | None = self.read(
            lambda c: c.execute(
                text("SELECT outcome FROM attempts WHERE run_id = :r AND position = :p AND number = :n"),
                {"r": key.run_id, "p": key.position, "n": key.attempt},
            ).scalar_one()
        )
        return found

    def _advance(self, run_id: str, chosen: random.Random) -> None:
        head, progress = self._stands(run_id, chosen, read=0)
        if head.state.is_terminal:
            return
        if progress.to_seq == progress.from_seq:  # an agent is fed something before it asks for more
            patiently(lambda: self.database.transact(lambda c: _append(c, run_id)))
            return
        if not progress.new_steps:
            progress = replace(progress, new_steps=[new_step(_next(progress, self, run_id), "step", progress.to_seq)])
        try:
            self.committed[f"advance {self.committer.commit(advance_item(head, progress))}"] += 1
        except StoreUnreachable:
            self.committed["in doubt"] += 1

    def beat(self, stop: threading.Event) -> None:
        """Renew all leases, often; none that is still this process's own may be called lost."""
        while not stop.wait(0.003):
            held = list(self.held.copy())
            states = patiently(
                lambda held=held: self.database.transact(  # type: ignore[misc]
                    lambda c: renew_leases(c, worker=self.name, held=held, lease_us=LEASE_US)
                )
            )
            for key in set(held) - set(states):
                row = self.read(
                    lambda c, key=key: c.execute(  # type: ignore[misc]
                        text(
                            "SELECT 1 FROM steps WHERE run_id = :r AND position = :p AND attempt = :n "
                            "AND state = 'running' AND lease_owner = :w"
                        ),
                        {"r": key.run_id, "p": key.position, "n": key.attempt, "w": self.name},
                    ).first()
                )
                if row is not None:
                    self.wrong.append(f"the heartbeat called {key} lost")


def _next(progress: Progress, process: Process, run_id: str) -> int:
    found = process.read(
        lambda c: c.execute(text("SELECT coalesce(max(position), 0) FROM steps WHERE run_id = :r"), {"r": run_id})
    )
    return int(found.scalar_one()) + 1


def sabotage(store: Store, processes: list[Process], runs: list[str], stop: threading.Event) -> None:
    """Reclaims steps, appends events that nobody expects, locks rows crosswise, and cuts the committers' sessions."""
    chosen = random.Random(7)
    plain = make_url(store.url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain) as other:
        while not stop.wait(0.002):
            run_id = chosen.choice(runs)
            act = chosen.randrange(30)
            if act < 5:
                rows = store.rows("SELECT run_id, position, attempt FROM steps WHERE state = 'running' LIMIT 20")
                if rows:
                    row = chosen.choice(rows)
                    key = LeaseKey(row.run_id, row.position, row.attempt)
                    store.transact(reclaim_step, key, why="sabotage", alone=False, anyway=True)
            elif act < 12:
                store.transact(_append, run_id)
            elif act < 20:
                pair = [run_id, chosen.choice(runs)]
                table = chosen.choice(["runs WHERE id", "attempts WHERE run_id", "steps WHERE run_id"])
                try:
                    for each in pair:
                        other.execute(f"SELECT 1 FROM {table} = '{each}' FOR UPDATE")
                    stop.wait(0.005)
                except psycopg.OperationalError:
                    pass
                other.rollback()
            elif act == 20:
                dedicated = chosen.choice(processes).database._dedicated
                connection = None if dedicated is None else dedicated._connection
                if connection is not None and not connection.closed:
                    other.execute("SELECT pg_terminate_backend(%s)", [connection.info.backend_pid])
                other.rollback()


def _append(connection: Connection, run_id: str) -> None:
    seq = allocate_seq(connection, run_id)
    if seq is not None:
        insert_event(connection, namespace=NAMESPACE, run_id=run_id, seq=seq, kind=EventKind.TIMER)


def rivals(store: Store, items: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: Counter[int] = Counter()
    commit_items = committing.commit_items

    def counted(execute: Any, batch: Any) -> set[str]:
        if isinstance(execute, partial):  # alone, after a batch had not taken it
            return commit_items(execute, batch)
        sizes[len(batch)] += 1
        if max(sizes) == 1:  # until others have queued, on any machine: the next batch holds several
            (committer,) = (each.committer for each in processes if each.database is execute.__self__)
            latest = time.monotonic() + 1
            while len(committer._waiting) < len(batch) + 2 and time.monotonic() < latest and not stop.wait(0.002):
                pass
        return commit_items(execute, batch)

    stop = threading.Event()
    monkeypatch.setattr(committing, "commit_items", counted)
    runs = [store.running(steps=2) for _ in range(RUNS)]
    processes = [Process(store.url, name, items // 2) for name in ("w1", "w2")]
    with ThreadPoolExecutor(2 * THREADS + 3) as pool:
        others = [pool.submit(each.beat, stop) for each in processes]
        others.append(pool.submit(sabotage, store, processes, runs, stop))
        threads = [pool.submit(each.work, seed, runs) for each in processes for seed in range(THREADS)]
        try:
            for thread in threads:
                thread.result(600)
        finally:
            for each in processes:
                each.goal = 0
            stop.set()
        for thread in others:
            thread.result(60)
    for each in processes:
        each.database.close()
        assert each.wrong == []
    check(store)
    assert max(sizes) > 1, sizes
    done = processes[0].committed + processes[1].committed
    assert {"together True", "alone True", "advance True"} <= done.keys(), done


def check(store: Store) -> None:
    """What holds whatever happened."""
    gaps = "SELECT r.id FROM runs r JOIN run_events e ON e.run_id = r.id GROUP BY r.id HAVING count(*) <> r.last_seq"
    assert store.rows(gaps) == []
    assert store.rows("SELECT id FROM runs WHERE consumed_seq > last_seq") == []
    twice = "SELECT run_id FROM attempts WHERE outcome = 'accepted' GROUP BY run_id, position HAVING count(*) > 1"
    assert store.rows(twice) == []
    half = (
        "SELECT s.run_id, s.position, s.state FROM steps s LEFT JOIN attempts a ON a.run_id = s.run_id "
        "AND a.position = s.position AND a.number = s.attempt WHERE s.state = 'running' AND (a.number IS NULL "
        "OR a.outcome IS NOT NULL) OR s.state = 'succeeded' AND a.outcome IS DISTINCT FROM 'accepted'"
    )
    assert store.rows(half) == []
    silent = (
        "SELECT s.run_id, s.position FROM steps s WHERE s.state IN ('succeeded', 'failed') AND (SELECT count(*) "
        "FROM run_events e WHERE e.run_id = s.run_id AND e.position = s.position) <> 1"
    )
    assert store.rows(silent) == []
    lost = (
        "SELECT id FROM (SELECT args_id AS id FROM steps UNION SELECT result_id FROM steps) AS x WHERE id IS NOT NULL "
        "AND NOT EXISTS (SELECT 1 FROM payloads WHERE payloads.id = x.id)"
    )
    assert store.rows(lost) == []
    money = (
        "SELECT a.run_id FROM attempts a WHERE a.calls <> (SELECT count(*) FROM calls c WHERE c.run_id = a.run_id "
        "AND c.position = a.position AND c.attempt = a.number)"
    )
    assert store.rows(money) == []


def test_two_committers_and_their_heartbeats_lose_and_repeat_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    rivals(store, 100, monkeypatch)


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_two_committers_and_their_heartbeats_lose_and_repeat_nothing_in_many_scenarios(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    rivals(store, MANY, monkeypatch)
