"""Redis stopped, frozen, flushed, restarted while a tool is down; a tool that flaps; a step that kills its worker."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Callable

import pytest

from paidonce.drill import outage_agents
from paidonce.run_handle import RunHandle
from tests.chaos import circuit_agents
from tests.chaos.engines import Engines
from tests.chaos.stage import QUICK_LEASES, Stage
from tests.services.valkey import RedisServer
from tests.services.waiting import wait_until

pytestmark = pytest.mark.slow

MakeStage = Callable[..., Stage]
MODULES = "paidonce.drill.outage_agents,tests.chaos.circuit_agents"
RUNS = 12
FROZEN_SECONDS = 12
LONGEST_GAP_SECONDS = 60.0
"""Of a machine that is busy with other tests."""
POLICIES = """
policies:
  quick:
    retry: {max_attempts: 4, base: 100ms, cap: 500ms}
    breaker: {consecutive_failures: 3, open_for: {base: 1s, cap: 2s}}
targets:
  look_up: quick
  flapping: {policy: quick, retry: {max_attempts: 12}}
  deadly: {policy: quick, breaker: {consecutive_failures: 1}}
"""


def circuit_stage(make_stage: MakeStage, engines: Engines, redis_url: str, **settings: str) -> Stage:
    stage = make_stage(engines, redis_url=redis_url, **QUICK_LEASES, **settings)
    policies = stage.folder / "paidonce.yaml"
    policies.write_text(POLICIES)
    stage.start(concurrency=4, modules=MODULES, environment={"PAIDONCE_POLICIES": str(policies)})
    return stage


def research(stage: Stage, runs: int = RUNS) -> list[RunHandle]:
    given = {"server": stage.server.url, "questions": 2, "latency_ms": 20.0}
    handles = [stage.client.submit(outage_agents.researcher, given, key=f"r-{number}") for number in range(runs)]
    stage.handles += handles
    return handles


def parked(stage: Stage) -> int:
    return stage.count("SELECT count(*) FROM runs WHERE state = 'parked'")


def stop_and_start(server: RedisServer) -> None:
    server.stop()
    time.sleep(3)
    server.start()


def freeze_and_thaw(server: RedisServer) -> None:
    os.kill(server.pid, signal.SIGSTOP)
    try:
        time.sleep(FROZEN_SECONDS)
    finally:
        os.kill(server.pid, signal.SIGCONT)


def kill_and_lose(server: RedisServer) -> None:
    """Its data is gone, too."""
    server.flush()
    server.kill()
    time.sleep(1)
    server.start()


AFTER, MEANWHILE = "after", "while it is disturbed"


@pytest.mark.parametrize(
    ("disturb", "heals"),
    [
        *((each, AFTER) for each in (stop_and_start, freeze_and_thaw, RedisServer.flush, kill_and_lose)),
        *((each, MEANWHILE) for each in (stop_and_start, RedisServer.restart)),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_every_parked_run_wakes_whatever_happens_to_redis(
    disturb: Callable[[RedisServer], None], heals: str, private_redis: RedisServer, make_stage: MakeStage
) -> None:
    stage = circuit_stage(make_stage, Engines(name="sqlite-embedded"), private_redis.url())
    stage.server.begin_outage(1200)
    handles = research(stage)
    wait_until(lambda: parked(stage) == RUNS, "every run sleeps", 40)
    bystander = stage.client.submit(
        outage_agents.bystander, {"server": stage.server.url, "steps": 60, "latency_ms": 50.0}
    )
    if heals == MEANWHILE:
        stage.server.begin_outage(0)
    began = time.time()
    disturb(private_redis)
    ended = time.time()
    if heals == AFTER:
        time.sleep(2)
        stage.server.begin_outage(0)
    wait_until(lambda: stage.unfinished() == 0, f"all runs have ended; see the logs in {stage.folder}", 60)
    assert [handle.result(timeout=1) for handle in handles] == [2] * RUNS
    assert bystander.result(timeout=1) == 60
    arrived = [float(str(request["arrived"])) for request in stage.server.requests() if request["run"] == bystander.id]
    longest = max(later - sooner for sooner, later in itertools.pairwise(arrived))
    assert longest < LONGEST_GAP_SECONDS
    if disturb is freeze_and_thaw:
        assert sum(began < each < ended for each in arrived) > 5, "it went on while Redis was frozen"
    assert all(request.get("failures", 0) == 0 for request in stage.server.requests()), "nobody thought about it"
    stage.assert_no_worker_ended()


def test_a_tool_that_flaps_costs_calls_and_no_run(
    some_engines: Engines, private_redis: RedisServer, make_stage: MakeStage
) -> None:
    stage = circuit_stage(make_stage, some_engines, private_redis.url())
    marks = stage.folder / "flaps"
    marks.mkdir()
    handles = [
        stage.client.submit(circuit_agents.flapper, {"folder": str(marks), "key": str(number)}) for number in range(8)
    ]
    wait_until(lambda: stage.unfinished() == 0, f"all runs have ended; see the logs in {stage.folder}", 120)
    assert sorted(handle.result(timeout=1) % 5 for handle in handles) == [4] * 8
    assert len(list(marks.iterdir())) <= 5 * 8
    moves = stage.rows("SELECT from_state, to_state FROM breaker_transitions ORDER BY at_us")
    assert ("closed", "open") in moves and ("half-open", "closed") in moves


def test_a_step_that_kills_its_worker_is_given_up_alone(private_redis: RedisServer, make_stage: MakeStage) -> None:
    """Also as a probe: its place runs out, and the next probe follows."""
    stage = circuit_stage(make_stage, Engines(name="sqlite-embedded"), private_redis.url())
    deadly = stage.client.submit(circuit_agents.deadly_agent, {})
    research_done = research(stage, 4)

    def ended() -> bool:
        stage.restart_the_dead()
        return stage.unfinished() == 0

    wait_until(ended, f"all runs have ended; see the logs in {stage.folder}", 120)
    assert deadly.state == "failed"
    assert [handle.result(timeout=1) for handle in research_done] == [2] * 4
