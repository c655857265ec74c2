"""Who is taken for dead, when, and what becomes of what it held."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import paidonce_workers.recovery.death_watch as death_watch_module
from paidonce import agent, step
from paidonce_models.store.messages import StepMessage
from paidonce_models.store.recovery.sweeping import lead
from paidonce_models.store.recovery.witnesses import NewWitness, WitnessRow, read_witnesses, record_witness
from paidonce_models.store.steps.claims import claim_step
from paidonce_models.store.steps.leases import LeaseKey
from paidonce_workers.recovery.death_watch import MISSING_SECONDS, DeathWatch
from paidonce_workers.recovery.marked_slices import CarefulPeriod, SliceMarks
from paidonce_workers.recovery.signs_of_life import Sign
from paidonce_workers.recovery.sweeper import Sweeper
from tests.workers.stand import LEASE_SECONDS, NAMESPACE, Stand


@step(name="watched.work", max_lost=3)
def work() -> str:
    return "done"


@agent(name="watched")
async def watched() -> str:
    return await work()


class Signs:
    """Says of the processes in the store what the test has decided."""

    def __init__(self, stand: Stand) -> None:
        self._stand = stand
        self.of: dict[str, Sign] = {}
        self.looked_everywhere = False

    def read(self, *, everywhere: bool) -> list[tuple[WitnessRow, Sign]]:
        self.looked_everywhere = everywhere
        with self._stand.database.read() as connection:
            rows = read_witnesses(connection, namespace=NAMESPACE, place="here", everywhere=True)
        return [(row, self.of[row.worker]) for row in rows]


class HandMadeClock:
    """``time.monotonic`` for the watch."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Scene:
    """One dead or living process, and another that looks."""

    def __init__(self, stand: Stand, clock: HandMadeClock) -> None:
        self.stand = stand
        self.clock = clock
        self.signs = Signs(stand)
        self.sweeper = stand.sweeper("watcher")
        self.watch = self.watcher(self.sweeper)

    def watcher(self, sweeper: Sweeper) -> DeathWatch:
        return DeathWatch(
            database=self.stand.database,
            publisher=self.stand.publisher,  # type: ignore[arg-type]  # what is used of it
            namespace=NAMESPACE,
            worker="watcher",
            signs=self.signs,  # type: ignore[arg-type]  # as above
            sweeper=sweeper,
            marks=SliceMarks(
                database=self.stand.database,
                namespace=NAMESPACE,
                worker="watcher",
                period=CarefulPeriod(),
                signs=self.signs,  # type: ignore[arg-type]  # as above
            ),
        )

    def process(self, worker: str, sign: Sign, *, member_of: str | None = None) -> None:
        """A process that has appeared."""
        self.signs.of[worker] = sign
        new = NewWitness(
            worker=worker, namespace=NAMESPACE, member_of=member_of or worker, place="here", pid=1, started=""
        )
        self.stand.database.transact(lambda connection: record_witness(connection, new))

    def claimed(self, worker: str) -> str:
        """A run whose step a process holds."""
        run_id = self.stand.submit(watched)
        self.stand.worker(watched).serve(self.stand.publisher.messages.popleft())
        self.stand.publisher.take()
        taken = self.stand.database.transact(
            lambda connection: claim_step(
                connection,
                namespace="default",
                run_id=run_id,
                position=1,
                worker=worker,
                lease_us=int(LEASE_SECONDS * 1e6),
            )
        )
        assert taken is not None
        return run_id

    def look(self, seconds: float = 0.5) -> None:
        self.clock.now += seconds
        self.watch.look()


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    clock = HandMadeClock()
    monkeypatch.setattr(death_watch_module, "time", clock)
    with Stand() as stand:
        yield Scene(stand, clock)


def test_what_a_dead_process_held_is_published_again_at_the_next_look(scene: Scene) -> None:
    scene.process("w1", Sign.DEAD)
    run_id = scene.claimed("w1")
    scene.look()
    (attempt,) = scene.stand.attempts(run_id)
    assert attempt.outcome == "lost"
    assert attempt.error is not None and "its process w1 ended" in str(attempt.error["message"])
    assert [type(message) for message in scene.stand.publisher.take()] == [StepMessage]
    with scene.stand.database.read() as connection:
        assert not read_witnesses(connection, namespace=NAMESPACE, place="here", everywhere=True)


def test_the_leader_of_the_sweeping_looks_at_the_processes_of_all_places(scene: Scene) -> None:
    scene.look()
    assert not scene.signs.looked_everywhere
    scene.sweeper.sweep()
    scene.look()
    assert scene.signs.looked_everywhere


@pytest.mark.parametrize("sign", [Sign.ALIVE, Sign.UNKNOWN])
def test_who_is_not_known_to_be_dead_is_left_to_its_leases(scene: Scene, sign: Sign) -> None:
    scene.process("w1", sign)
    run_id = scene.claimed("w1")
    for _ in range(20):
        scene.look()
    assert scene.stand.attempts(run_id)[0].outcome is None


def test_a_lock_must_be_missing_for_a_while_without_interruption(scene: Scene) -> None:
    scene.process("w1", Sign.MISSING)
    run_id = scene.claimed("w1")
    for _ in range(3):
        scene.look()
    scene.signs.of["w1"] = Sign.ALIVE
    scene.look()
    scene.signs.of["w1"] = Sign.MISSING
    for _ in range(int(MISSING_SECONDS / 0.5)):
        scene.look()
        assert scene.stand.attempts(run_id)[0].outcome is None
    scene.look()
    assert scene.stand.attempts(run_id)[0].outcome == "lost"


def test_who_was_cut_off_itself_concludes_nothing_from_missing_locks(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.process("w1", Sign.MISSING)
    run_id = scene.claimed("w1")
    for _ in range(3):
        scene.look()
    scene.look(MISSING_SECONDS + 1)
    assert scene.stand.attempts(run_id)[0].outcome is None, "the watch stood still"
    monkeypatch.setattr(scene.sweeper, "is_careful", lambda: True)
    for _ in range(20):
        scene.look()
    assert scene.stand.attempts(run_id)[0].outcome is None, "the store was away"


def test_a_process_that_is_certainly_dead_is_reclaimed_from_also_after_an_outage(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.process("w1", Sign.DEAD)
    run_id = scene.claimed("w1")
    monkeypatch.setattr(scene.sweeper, "is_careful", lambda: True)
    scene.look()
    assert scene.stand.attempts(run_id)[0].outcome == "lost"


def test_nobody_reclaims_from_itself(scene: Scene) -> None:
    scene.process("watcher", Sign.DEAD)
    run_id = scene.claimed("watcher")
    scene.look()
    assert scene.stand.attempts(run_id)[0].outcome is None


def test_after_the_leaders_death_another_leads_at_once(scene: Scene) -> None:
    scene.process("leader", Sign.DEAD)
    for leader in ("leader", "watcher"):
        leads = scene.stand.database.transact(
            lambda connection, leader=leader: lead(  # type: ignore[misc]
                connection, namespace=NAMESPACE, shard=0, leader=leader, lease_us=10**9
            )
        )
        assert leads == (leader == "leader")
    scene.look()
    assert scene.stand.database.transact(
        lambda connection: lead(connection, namespace=NAMESPACE, shard=0, leader="watcher", lease_us=10**9)
    )


def test_several_who_see_a_death_at_once_reclaim_each_step_once(scene: Scene) -> None:
    scene.process("w1", Sign.DEAD)
    runs = [scene.claimed("w1") for _ in range(3)]
    other = scene.watcher(scene.stand.sweeper("other"))
    scene.look()
    other.look()
    assert len(scene.stand.publisher.take()) == 3
    assert [LeaseKey(run, 1, attempt.number) for run in runs for attempt in scene.stand.attempts(run)] == [
        LeaseKey(run, 1, 1) for run in runs
    ]


def blamed(scene: Scene, run_id: str) -> tuple[int, int]:
    """How often the step was lost, and how often that counts against it."""
    return scene.stand.column("steps", "lost", run_id), scene.stand.column("steps", "blamed", run_id)


def test_a_loss_counts_against_a_step_that_was_all_its_process_held(scene: Scene) -> None:
    scene.process("w1", Sign.DEAD)
    scene.process("w2", Sign.DEAD)
    alone, *company = scene.claimed("w1"), scene.claimed("w2"), scene.claimed("w2")
    scene.look()
    assert blamed(scene, alone) == (1, 1)
    assert [blamed(scene, run_id) for run_id in company] == [(1, 0), (1, 0)]


@pytest.mark.parametrize("parent", [Sign.ALIVE, Sign.DEAD])
def test_a_child_that_dies_with_its_worker_has_killed_nobody(scene: Scene, parent: Sign) -> None:
    scene.process("parent", parent)
    scene.process("child", Sign.DEAD, member_of="parent")
    run_id = scene.claimed("child")
    scene.look()
    assert blamed(scene, run_id) == (1, 1 if parent is Sign.ALIVE else 0)
