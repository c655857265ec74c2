"""``paidonce drill crash`` as a user runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND_SECONDS = 100


def drill(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "paidonce.cli", "drill", "crash", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
    )


@pytest.mark.chaos
@pytest.mark.timeout(COMMAND_SECONDS + 10)
def test_a_killed_worker_repeats_no_finished_step_and_the_bill_says_so(tmp_path: Path) -> None:
    done = drill(tmp_path, "--runs", "4", "--steps", "12", "--kills", "1", "--latency-ms", "250", "--json")
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
    done = drill(tmp_path, "--runs", "1", "--steps", "50", "--kills", "0", "--latency-ms", "2000", "--limit", "2")
    assert done.returncode == 1
    assert "1 runs have not finished within 2 s" in done.stderr
    assert "finished steps repeated        0 (must be 0)" in done.stdout


def test_wrong_options_are_refused(tmp_path: Path) -> None:
    done = drill(tmp_path, "--runs", "0")
    assert done.returncode == 2
    assert "--runs" in done.stderr
