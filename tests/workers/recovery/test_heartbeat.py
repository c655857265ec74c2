"""The heartbeat: renews what is held, writes what is known to be spent, stops what is no longer granted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest

from paidonce import agent, record_usage, step
from paidonce.usage.call_recorder import CallRecorder, current_recorder, recording_into
from paidonce_models.errors import StoreUnreachable
from paidonce_models.store.recovery.lost_steps import reclaim_step
from paidonce_models.store.steps.leases import LeaseKey
from paidonce_workers.execution.held_leases import HeldLease
from tests.workers.stand import LEASE_SECONDS, Stand, StandWorker

during: list[Callable[[], object]] = []


@step(name="beaten.work")
def work() -> str:
    for each in during:
        each()
    return "done"


@agent(name="beats")
async def beats() -> str:
    return await work()


@pytest.fixture
def stand() -> Iterator[Stand]:
    during.clear()
    with Stand() as made:
        yield made


def run_with(stand: Stand, *acts: Callable[[StandWorker, str], object]) -> tuple[StandWorker, str]:
    """Run the agent; the acts happen while its step's body runs."""
    worker = stand.worker(beats, work)
    run_id = stand.submit(beats)
    during.extend(lambda act=act: act(worker, run_id) for act in acts)  # type: ignore[misc]
    stand.serve(worker)
    return worker, run_id


def spend(*_: object) -> None:
    record_usage(None, provider="p", model="m", input_tokens=100, output_tokens=10, cost_usd="0.001")


def beat(worker: StandWorker, *_: object) -> None:
    worker.heartbeat.beat()


def test_a_lease_is_renewed_for_as_long_as_the_body_runs(stand: Stand) -> None:
    expiries: list[int] = []

    def pass_and_beat(worker: StandWorker, run_id: str) -> None:
        stand.pass_time(8)
        worker.heartbeat.beat()
        expiries.append(stand.column("steps", "lease_expires_at_us", run_id) - stand.clock.now_us())

    worker, run_id = run_with(stand, *[pass_and_beat] * 450)  # an hour
    assert set(expiries) == {int(LEASE_SECONDS * 1e6)}
    (attempt,) = stand.attempts(run_id)
    assert attempt.outcome == "accepted"
    assert worker.held.all() == []
    assert stand.column("steps", "lease_expires_at_us", run_id) is None


def test_finished_calls_travel_with_the_heartbeat_once(stand: Stand) -> None:
    seen: list[tuple[int, int | None]] = []

    def look(_: StandWorker, run_id: str) -> None:
        (attempt,) = stand.attempts(run_id)
        seen.append((attempt.calls, attempt.cost_nanousd))

    _, run_id = run_with(stand, spend, beat, look, beat, look, spend, spend, beat, look, spend)
    assert seen == [(1, 1_000_000), (1, 1_000_000), (3, 3_000_000)]
    (attempt,) = stand.attempts(run_id)
    assert (attempt.calls, attempt.cost_nanousd, attempt.input_tokens) == (4, 4_000_000, 400)


@contextmanager
def store_away(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def away(*_: Any, **__: Any) -> None:
        raise StoreUnreachable("away")

    with monkeypatch.context() as patched:
        patched.setattr(stand.database, "transact", away)
        yield


def test_calls_that_could_not_be_written_are_kept_for_the_next_beat(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    def beat_in_vain(worker: StandWorker, _: str) -> None:
        with store_away(stand, monkeypatch), pytest.raises(StoreUnreachable):
            worker.heartbeat.beat()

    _, run_id = run_with(stand, spend, beat_in_vain, spend, beat_in_vain, beat)
    (attempt,) = stand.attempts(run_id)
    assert (attempt.calls, attempt.cost_nanousd) == (2, 2_000_000)


def test_a_commit_whose_answer_was_lost_writes_no_call_twice(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    def beat_and_lose_the_answer(worker: StandWorker, _: str) -> None:
        transact = stand.database.transact

        def lost(*args: Any, **options: Any) -> None:
            transact(*args, **options)
            raise StoreUnreachable("the answer was lost")

        with monkeypatch.context() as patched:
            patched.setattr(stand.database, "transact", lost)
            with pytest.raises(StoreUnreachable):
                worker.heartbeat.beat()

    _, run_id = run_with(stand, spend, beat_and_lose_the_answer, beat)
    (attempt,) = stand.attempts(run_id)
    assert (attempt.calls, attempt.cost_nanousd) == (1, 1_000_000)


def test_a_lease_that_was_taken_back_stops_the_body(stand: Stand) -> None:
    reached: list[str] = []

    def lose(_: StandWorker, run_id: str) -> None:
        key = LeaseKey(run_id, 1, 1)
        stand.database.transact(lambda connection: reclaim_step(connection, key, why="test", alone=True, anyway=True))

    def go_on(*_: object) -> None:
        for _number in range(10_000):
            pass  # an interrupt strikes between two bytecodes
        reached.append("the end")

    _, run_id = run_with(stand, spend, lose, beat, go_on)
    assert reached == []
    (attempt,) = stand.attempts(run_id)
    assert attempt.outcome == "fenced"
    assert attempt.cost_nanousd == 1_000_000


def test_a_cancelled_step_is_stopped(stand: Stand) -> None:
    reached: list[str] = []

    def cancel(worker: StandWorker, run_id: str) -> None:
        stand.cancel(run_id)
        worker.executor.advance(run_id)

    def go_on(*_: object) -> None:
        for _number in range(10_000):
            pass
        reached.append("the end")

    _, run_id = run_with(stand, spend, cancel, beat, go_on)
    assert reached == []
    (attempt,) = stand.attempts(run_id)
    assert (attempt.outcome, attempt.cost_nanousd) == ("cancelled", 1_000_000)
    assert stand.run(run_id).state == "cancelled"


def test_a_body_that_has_just_ended_is_not_taken_for_lost(stand: Stand) -> None:
    """Between the statement and its answer the step was completed: there is nothing to stop."""
    worker = stand.worker(beats, work)
    key = LeaseKey("no run", 1, 1)
    worker.held.add(HeldLease(key=key, step_name="x", recorder=CallRecorder()))
    worker.held.remove(key)
    worker.heartbeat.beat()


def test_it_also_says_that_the_worker_lives(stand: Stand) -> None:
    stand.register(beats, work)
    stand.pass_time(100)
    stand.worker(beats, work).heartbeat.beat()
    with stand.database.read() as connection:
        seen = connection.exec_driver_sql("SELECT seen_at_us FROM workers").scalar_one()
    assert seen == stand.clock.now_us()


def test_its_thread_outlives_errors_and_ends_when_told(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    heartbeat = stand.worker(beats, work).heartbeat
    beats_made: list[int] = []

    def fail() -> None:
        beats_made.append(1)
        raise [StoreUnreachable("away"), ValueError("a bug")][len(beats_made) % 2]

    waits = iter([False] * 4 + [True])
    monkeypatch.setattr(heartbeat, "beat", fail)
    monkeypatch.setattr(heartbeat._stopping, "wait", lambda seconds: next(waits))
    heartbeat._serve()
    assert len(beats_made) == 4


def test_an_attempt_ends_after_the_heartbeat_that_writes_its_calls(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a worker that dies in between has finished a step of unknown cost, and its budget had room for more."""
    transact = stand.database.transact
    begun = threading.Event()

    def slowly(*args: Any, **options: Any) -> Any:
        if threading.current_thread() is not beating:
            return transact(*args, **options)
        begun.set()
        threading.Event().wait(0.3)  # the body ends meanwhile: its completion has the time to be first
        assert stand.attempts(runs[0])[0].outcome is None
        return transact(*args, **options)

    def beat_meanwhile(worker: StandWorker, run_id: str) -> None:
        nonlocal beating
        runs.append(run_id)
        beating = threading.Thread(target=lambda: beats.append(worker.heartbeat.beat()))
        monkeypatch.setattr(stand.database, "transact", slowly)
        beating.start()
        assert begun.wait(5)

    runs: list[str] = []
    beats: list[None] = []
    beating = threading.current_thread()
    _, run_id = run_with(stand, spend, beat_meanwhile)
    beating.join()
    assert beats == [None]
    (attempt,) = stand.attempts(run_id)
    assert (attempt.outcome, attempt.calls, attempt.cost_nanousd) == ("accepted", 1, 1_000_000)


def test_an_attempt_that_ends_while_a_heartbeat_looks_is_flushed_once(stand: Stand) -> None:
    worker, run_id = run_with(stand, spend)
    lease = HeldLease(key=LeaseKey(run_id, 1, 1), step_name="beaten.work", recorder=CallRecorder())
    worker.held.add(lease)
    with recording_into(lease.recorder):
        spend()
    all_held = worker.held.all()
    worker.held.remove(lease.key)
    with patch.object(worker.held, "all", return_value=all_held):
        worker.heartbeat.beat()
    assert lease.recorder.drain() == []
    (attempt,) = stand.attempts(run_id)
    assert (attempt.calls, attempt.cost_nanousd) == (2, 2_000_000)


def test_a_call_that_ends_after_its_attempt_is_written_with_the_next_heartbeat(stand: Stand) -> None:
    recorders: list[CallRecorder] = []

    def keep(*_: object) -> None:
        recorder = current_recorder.get()
        assert recorder is not None
        recorders.append(recorder)

    worker, run_id = run_with(stand, spend, keep)
    assert stand.run(run_id).state == "succeeded"
    with recording_into(recorders[0]):
        spend()
    worker.heartbeat.beat()
    worker.heartbeat.beat()
    (attempt,) = stand.attempts(run_id)
    assert (attempt.calls, attempt.cost_nanousd) == (2, 2_000_000)


def test_a_late_call_is_kept_while_the_store_is_away_and_written_when_the_worker_stops(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorders: list[CallRecorder | None] = []
    worker, run_id = run_with(stand, lambda *_: recorders.append(current_recorder.get()))
    assert recorders[0] is not None
    with recording_into(recorders[0]):
        spend()
    with store_away(stand, monkeypatch), pytest.raises(StoreUnreachable):
        worker.heartbeat.beat()
    worker.heartbeat.start()
    worker.heartbeat.stop()
    (attempt,) = stand.attempts(run_id)
    assert attempt.calls == 1


def test_what_a_failed_heartbeat_gives_back_to_an_attempt_that_has_ended_is_not_lost(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, run_id = run_with(stand)
    lease = HeldLease(key=LeaseKey(run_id, 1, 1), step_name="beaten.work", recorder=CallRecorder())
    worker.held.add(lease)
    worker.held.remove(lease.key)
    with recording_into(lease.recorder):
        spend()
    with store_away(stand, monkeypatch), pytest.raises(StoreUnreachable):
        worker.heartbeat.beat()
    worker.heartbeat.beat()
    (attempt,) = stand.attempts(run_id)
    assert attempt.calls == 1
