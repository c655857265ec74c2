"""``paidonce drill crash`` as a user runs it."""

import json
from pathlib import Path

import pytest

from tests.drill.command import drill

COMMAND_SECONDS = 100


@pytest.mark.chaos
@pytest.mark.timeout(COMMAND_SECONDS + 10)
def test_a_killed_worker_repeats_no_finished_step_and_the_bill_says_so(tmp_path: Path) -> None:
    done = drill(tmp_path, "crash --runs 4 --steps 12 --kills 1 --latency-ms 250 --json", seconds=COMMAND_SECONDS)
    document = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    assert document["holds"] is True
    assert document["finished_steps_repeated"] == 0
    assert document["runs_succeeded"] == 4
    assert document["steps"] == 48
    assert document["kills"] == 1
    assert document["requests"] <= 48 + document["attempts_lost"]
    assert float(document["spent_usd"]) > 0
    assert list(tmp_path.iterdir()) == [], "the drill keeps to a folder of its own"


@pytest.mark.chaos
@pytest.mark.timeout(COMMAND_SECONDS + 10)
def test_a_drill_that_does_not_end_in_time_fails(tmp_path: Path) -> None:
    done = drill(tmp_path, "crash --runs 1 --steps 50 --kills 0 --latency-ms 2000 --limit 2", seconds=COMMAND_SECONDS)
    assert done.returncode == 1
    assert "1 runs have not finished within 2 s" in done.stderr
    assert "finished steps repeated        0 (must be 0)" in done.stdout


def test_wrong_options_are_refused(tmp_path: Path) -> None:
    done = drill(tmp_path, "crash --runs 0", seconds=COMMAND_SECONDS)
    assert done.returncode == 2
    assert "--runs" in done.stderr
