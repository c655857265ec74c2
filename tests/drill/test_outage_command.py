"""``paidonce drill outage`` as a user runs it, shorter."""

import json
from pathlib import Path

import pytest

from tests.drill.command import drill

COMMAND_SECONDS = 170


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.timeout(COMMAND_SECONDS + 10)
def test_a_tool_that_is_down_is_left_alone_and_every_run_finishes(tmp_path: Path) -> None:
    done = drill(tmp_path, "outage --runs 20 --seconds 10 --json", seconds=COMMAND_SECONDS)
    assert done.stdout, done.stderr
    document = json.loads(done.stdout)
    # What takes how long is the full drill's to judge, on a machine that has nothing else to do.
    of_time = ("others took", "the first run finished")
    assert [fault for fault in document["faults"] if not fault.startswith(of_time)] == []
    protected, plain = document["with_breaker"], document["without_breaker"]
    assert protected["tool_calls_while_down"] <= document["tool_calls_allowed"]
    assert protected["model_calls_about_failures"] == 0
    assert protected["runs_answered"] == plain["runs"] == 20
    assert plain["tool_calls_while_down"] > protected["tool_calls_while_down"]
    assert plain["model_calls_about_failures"] > 0
    assert float(plain["spent_usd"]) > float(protected["spent_usd"])
    assert list(tmp_path.iterdir()) == [], "the drill keeps to a folder of its own"


def test_wrong_options_are_refused(tmp_path: Path) -> None:
    done = drill(tmp_path, "outage --seconds 1", seconds=COMMAND_SECONDS)
    assert done.returncode == 2
    assert "--seconds" in done.stderr
