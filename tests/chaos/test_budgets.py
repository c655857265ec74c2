"""Budgets of a whole fleet: many runs race for one, and workers die while they hold reservations."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

from paidonce.budgets import set_budget
from paidonce_models.money import usd_from_nanousd
from tests.chaos import agents
from tests.chaos.engines import Engines
from tests.chaos.stage import LONG_FREEZE, QUICK_LEASES, WITH_FAULTS, Stage
from tests.services.waiting import wait_until

CALL_NANOUSD = 270_000
"""What a call of the drill costs: 1,000 input and 200 output tokens of gpt-4o-mini."""


def limit_calls(stage: Stage, calls: int) -> None:
    """Allow all runs together so many calls a month."""
    usd = usd_from_nanousd(calls * CALL_NANOUSD)
    set_budget(stage.client.database, "all", per="month", usd=usd, namespace=stage.settings.namespace)


def submit(stage: Stage, runs: int, steps: int) -> None:
    given = {"server": stage.server.url, "steps": steps, "latency_ms": 20.0}
    stage.handles += [stage.client.submit(agents.capped, given, key=f"capped-{number}") for number in range(runs)]


def stands_still(stage: Stage) -> bool:
    """Whether every run that has not ended is paused, and nothing is under way."""
    under_way = stage.count(
        "SELECT count(*) FROM runs WHERE state NOT IN ('succeeded', 'failed', 'cancelled', 'paused')"
    )
    return under_way == 0 and stage.under_way() == [] and stage.unfinished() > 0


def account(stage: Stage) -> tuple[int, int]:
    ((spent, reserved),) = stage.rows("SELECT spent, reserved FROM budget_accounts")
    return int(str(spent)), int(str(reserved))


def ledger(stage: Stage) -> int:
    return stage.count("SELECT coalesce(sum(cost_nanousd), 0) FROM calls")


def spent_in_vain(stage: Stage) -> int:
    """What lost attempts are known to have cost: a heartbeat wrote a finished call down before its worker died."""
    return stage.count("SELECT coalesce(sum(cost_nanousd), 0) FROM attempts WHERE outcome != 'accepted'")


def test_two_hundred_racing_runs_never_pass_a_budget(engines: Engines, make_stage: Callable[..., Stage]) -> None:
    often = {"heartbeat_seconds": "0.05"}  # many calls are written by a heartbeat while their step ends
    stage = make_stage(engines, **{**LONG_FREEZE, **often})
    limit_calls(stage, 90)
    submit(stage, 200, 1)
    stage.start(concurrency=8)
    wait_until(lambda: stands_still(stage), "the budget is used up", 120)
    assert len(stage.server.requests()) == 90, stage.describe()
    assert account(stage) == (90 * CALL_NANOUSD, 0)
    assert stage.count("SELECT count(*) FROM runs WHERE state_reason = 'budget'") == 110
    limit_calls(stage, 200)
    stage.wait_until_finished()
    stage.assert_all_succeeded(1)
    assert len(stage.server.requests()) == 200
    assert account(stage) == (ledger(stage), 0) == (200 * CALL_NANOUSD, 0)


POINTS = {
    "before the commit that reserves or holds": 9,
    "after the claim's commit": 6,
    "before the commit that settles": 5,
    "before the commit that lets a step go": 0,
}
"""Each point and how many passages of a process it lets go by."""


def test_a_worker_killed_at_any_commit_of_a_budget_leaves_it_right(
    some_engines: Engines, make_stage: Callable[..., Stage], tmp_path: Path
) -> None:
    stage = make_stage(some_engines, **QUICK_LEASES)
    markers = tmp_path / "markers"
    markers.mkdir()
    faults = [[point, passages, "SIGKILL"] for point, passages in POINTS.items()]
    limit_calls(stage, 20)
    stage.start(
        concurrency=4,
        modules=WITH_FAULTS,
        environment={"TEST_FAULTS": json.dumps(faults), "TEST_FAULTS_FOLDER": str(markers)},
    )
    submit(stage, 15, 4)
    limit = 20

    def all_died() -> bool:
        nonlocal limit
        stage.restart_the_dead()
        if stands_still(stage):
            limit += 10
            limit_calls(stage, limit)
        return {marker.name for marker in markers.iterdir()} == POINTS.keys()

    wait_until(all_died, f"a worker has died at each point; see {markers}", 130)
    limit_calls(stage, 100)
    stage.wait_until_finished(restarting=True)
    stage.assert_all_succeeded(4)
    stage.assert_nothing_repeated()
    stage.assert_ledger_adds_up()
    assert account(stage) == (ledger(stage), 0) == (60 * CALL_NANOUSD + spent_in_vain(stage), 0)


def test_killed_workers_take_no_money_with_them(some_engines: Engines, make_stage: Callable[..., Stage]) -> None:
    stage = make_stage(some_engines, **QUICK_LEASES)
    limit_calls(stage, 60)
    submit(stage, 20, 6)
    fleet = stage.start(concurrency=6)
    draw = random.Random(7)
    for target in (10, 25, 40):
        wait_until(lambda target=target: stage.finished_steps() >= target, f"{target} steps are finished", 60)  # type: ignore[misc]
        fleet.kill(draw.randrange(2))
        stage.restart_the_dead()
    wait_until(lambda: stands_still(stage), "the budget is used up", 120)
    assert account(stage) == (ledger(stage), 0)
    assert ledger(stage) == 60 * CALL_NANOUSD
    limit_calls(stage, 140)
    stage.wait_until_finished()
    stage.assert_all_succeeded(6)
    stage.assert_nothing_repeated()
    stage.assert_ledger_adds_up()
    assert account(stage) == (ledger(stage), 0) == (120 * CALL_NANOUSD + spent_in_vain(stage), 0)
    assert (
        stage.count("SELECT count(*) FROM held_steps h JOIN steps s USING (run_id, position) WHERE s.state = 'held'")
        == 0
    )
