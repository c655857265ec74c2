"""Workers that are stopped in order, steps longer than their lease, and steps that kill whoever runs them."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from paidonce_models.errors import RunFailed
from tests.chaos import agents
from tests.chaos.engines import Engines
from tests.chaos.stage import QUICK_LEASES, Stage
from tests.services.waiting import wait_until

MAX_LOST = 5

MakeStage = Callable[..., Stage]


def stop_workers_in_mid_step(stage: Stage, *, steps: int, latency_ms: float) -> None:
    """One with threads and one with prefork are asked to stop while they hold long steps; a third goes on."""
    fleet = stage.start(3, concurrency=4, pool="mixed")
    stage.submit(9, steps=steps, latency_ms=latency_ms)
    stopping = [fleet.processes[number] for number in (0, 1)]

    def all_hold_steps() -> bool:
        # Each one that will not be over before it is asked to stop, which may be seconds after the other's began.
        busy = {attempt.pid for attempt in stage.under_way() if time.time() - attempt.claimed_at_seconds < 1.5}
        return all(busy & {fleet.processes[number].pid, *fleet.children(number)} for number in (0, 1))

    wait_until(all_hold_steps, "both hold steps", 30)
    for process in stopping:
        process.terminate()
    assert [process.wait(timeout=120) for process in stopping] == [0, 0]
    stage.wait_until_finished(60)
    stage.assert_all_succeeded(steps)


def test_workers_that_stop_finish_their_steps(engines: Engines, make_stage: MakeStage) -> None:
    stage = make_stage(engines)
    stop_workers_in_mid_step(stage, steps=3, latency_ms=3000)
    evidence = stage.assert_nothing_repeated()
    assert (evidence.requests, evidence.handed_back, evidence.lost, evidence.fenced) == (27, 0, 0, 0)


def test_workers_that_must_stop_at_once_hand_their_steps_back_and_nobody_counts_them(
    engines: Engines, make_stage: MakeStage
) -> None:
    stage = make_stage(engines, drain_seconds="0.2")
    stop_workers_in_mid_step(stage, steps=2, latency_ms=5000)
    evidence = stage.assert_nothing_repeated()
    assert evidence.handed_back >= 2
    assert (evidence.lost, evidence.fenced) == (0, 0)
    assert stage.count("SELECT count(*) FROM steps WHERE lost <> 0 OR failed <> 0") == 0


def test_a_step_much_longer_than_its_lease_keeps_it(some_engines: Engines, make_stage: MakeStage) -> None:
    stage = make_stage(some_engines, lease_seconds="2", heartbeat_seconds="0.5", sweep_seconds="0.5")
    stage.start()
    stage.submit(4, steps=1, latency_ms=9000)
    stage.wait_until_finished()
    stage.assert_all_succeeded(1)
    evidence = stage.assert_nothing_repeated()
    assert (evidence.requests, evidence.lost, evidence.fenced) == (4, 0, 0)


def test_a_step_that_kills_its_worker_condemns_only_itself(some_engines: Engines, make_stage: MakeStage) -> None:
    stage = make_stage(some_engines, **QUICK_LEASES)
    stage.start(workers=1)
    poisoned = stage.client.submit(agents.poisoned, key="poisoned")
    stage.submit(3, steps=40, latency_ms=100)
    stage.wait_until_finished(restarting=True)
    with pytest.raises(RunFailed, match=r"lost 5 workers that ran nothing else.*signal 9, SIGKILL"):
        poisoned.result(timeout=1)
    stage.assert_all_succeeded(40)
    lost = [attempt for attempt in stage.attempts() if attempt.run_id == poisoned.id]
    assert {attempt.outcome for attempt in lost} == {"lost"}
    assert MAX_LOST <= len(lost) <= MAX_LOST + 2, "losses in company do not count"
    others = [attempt for attempt in stage.attempts() if attempt.run_id != poisoned.id and attempt.outcome == "lost"]
    assert len(others) <= 2 * 3, "only the losses before the isolation took others with them"
    assert 1 <= stage.deaths <= 2, "once it is named, or suspected, the worker survives"
    assert len({attempt.pid for attempt in lost}) == stage.deaths + 1, "and one host isolates it to its end"
