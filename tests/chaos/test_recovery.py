"""A step goes on after its worker was killed, long before its lease would run out.

How soon is measured by ``python -m benchmarks.recovery``.
"""

from __future__ import annotations

from collections.abc import Callable

import psutil
import pytest

from tests.chaos.engines import Engines
from tests.chaos.stage import Stage
from tests.services.waiting import wait_until

RECOVERED_WITHIN_SECONDS = 40.0
"""A fraction of a lease, on a machine that is busy with other tests."""
ONLY_DEATH_TELLS = {"lease_seconds": "600", "frozen_seconds": "600"}
RUNS = 12

MakeStage = Callable[..., Stage]
pytestmark = pytest.mark.slow


def assert_recovered_in_time(stage: Stage, *, least: int) -> None:
    """Every step of a killed process was claimed again soon enough."""
    evidence = stage.assert_nothing_repeated()
    assert evidence.fenced == 0
    assert len(evidence.recoveries_seconds) >= least
    p99 = evidence.recovery(0.99)
    assert p99 is not None
    assert p99 <= RECOVERED_WITHIN_SECONDS, sorted(evidence.recoveries_seconds)


def held_by(stage: Stage, pids: set[int]) -> int:
    """How many attempts these processes have under way."""
    return sum(attempt.pid in pids for attempt in stage.under_way())


def test_the_sweeping_worker_is_killed_and_its_steps_go_on(engines: Engines, make_stage: MakeStage) -> None:
    stage = make_stage(engines, **ONLY_DEATH_TELLS)
    fleet = stage.start(concurrency=2 * RUNS)
    stage.submit(RUNS, steps=4, latency_ms=1500)

    def sweeps_and_works() -> bool:
        number = stage.sweeping_worker()
        return number is not None and held_by(stage, {fleet.processes[number].pid}) >= 2

    wait_until(sweeps_and_works, "the sweeping worker holds steps", 60)
    leader = stage.sweeping_worker()
    assert leader is not None
    stage.kills.append(fleet.kill(leader))
    stage.wait_until_finished()
    stage.assert_all_succeeded(4)
    assert_recovered_in_time(stage, least=1)


def test_killed_children_and_parents_of_prefork_workers_are_recovered_from(
    some_engines: Engines, make_stage: MakeStage
) -> None:
    stage = make_stage(some_engines, **ONLY_DEATH_TELLS)
    fleet = stage.start(concurrency=4, pool="prefork")
    stage.submit(6, steps=3, latency_ms=2000)
    wait_until(lambda: held_by(stage, set(fleet.children(0))) >= 1, "a child of worker 0 holds a step", 60)
    wait_until(lambda: held_by(stage, set(fleet.children(1))) >= 1, "a child of worker 1 holds a step", 60)
    busy = {attempt.pid for attempt in stage.under_way()}
    child = next(pid for pid in fleet.children(0) if pid in busy)
    stage.kills.append(fleet.kill_child(child))
    orphans = fleet.children(1)
    stage.kills.append(fleet.kill_parent(1))
    stage.wait_until_finished()
    stage.assert_all_succeeded(3)
    assert_recovered_in_time(stage, least=1)
    wait_until(lambda: not living(orphans), "the orphans of a killed parent end by themselves", 20)


def living(pids: list[int]) -> list[int]:
    """Those that have not ended."""
    return [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]
