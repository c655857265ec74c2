"""A worker dies before and after each commit there is: nothing is lost, nothing is repeated."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tests.chaos import agents
from tests.chaos.engines import Engines
from tests.chaos.stage import QUICK_LEASES, WITH_FAULTS, Stage
from tests.services.waiting import wait_until

POINTS = {
    "before the claim": 5,
    "before the claim's commit": 12,
    "after the claim's commit": 20,
    "after the body": 30,
    "before the completion's commit with its advance": 20,
    "before the completion's commit alone": 12,
    "after the completion's commit": 45,
    "before the advance's commit": 3,
    "after the advance's commit": 4,
    "after the commit that takes a step on": 15,
    "before a step begins where the last one ended": 25,
    "before publishing": 25,
    "after publishing": 35,
    "before the heartbeat's commit": 2,
    "before the commit that takes a step back": 0,
    "after the commit that takes steps back": 3,
}
"""Each point and how many passages of a process it lets go by."""
OF_BATCHES = {"before the commit of several runs": 2, "after the commit of several runs": 3}
"""PostgreSQL only; SQLite's writers commit one after the other."""
ROUNDS, WIDTH = 6, 5
STEPS = 30


def test_a_worker_killed_at_any_commit_point_loses_and_repeats_nothing(
    some_engines: Engines, make_stage: Callable[..., Stage], tmp_path: Path
) -> None:
    stage = make_stage(some_engines, **QUICK_LEASES)
    markers = tmp_path / "markers"
    markers.mkdir()
    points = POINTS if some_engines.is_sqlite else POINTS | OF_BATCHES
    faults = [[point, passages, "SIGKILL"] for point, passages in points.items()]
    stage.start(
        concurrency=6,
        modules=WITH_FAULTS,
        environment={"TEST_FAULTS": json.dumps(faults), "TEST_FAULTS_FOLDER": str(markers)},
    )
    submitted = 0

    def submit_more() -> None:
        nonlocal submitted
        submitted += 1
        stage.submit(2, steps=STEPS, latency_ms=20, key=f"sequence-{submitted}")
        stage.submit(2, steps=STEPS, latency_ms=20, key=f"free-{submitted}", free=True)
        given = {"server": stage.server.url, "rounds": ROUNDS, "width": WIDTH, "latency_ms": 20.0}
        stage.handles += [
            stage.client.submit(agents.fan_out, given, key=f"fan-{submitted}-{number}") for number in range(4)
        ]

    def all_died() -> bool:
        stage.restart_the_dead()
        if stage.unfinished() < 4:
            submit_more()
        return {marker.name for marker in markers.iterdir()} == points.keys()

    wait_until(all_died, f"a worker has died at each point; see {markers}", 130)
    stage.wait_until_finished(restarting=True)
    stage.assert_all_succeeded(STEPS)
    stage.assert_ledger_adds_up()
    evidence = stage.assert_nothing_repeated()
    assert evidence.lost >= 5
