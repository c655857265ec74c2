"""A producer that is killed while it submits many runs: whole runs are there, and none twice when it is repeated."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from random import Random

from sqlalchemy import text

from tests.chaos.engines import Engines
from tests.chaos.stage import Stage
from tests.services.waiting import wait_until

RUNS = 6_000
KILLS = 4
PRODUCER_SECONDS = 150
PRODUCER = f"""
from paidonce import Client, Submission
runs = Client().submit_many("echo", (Submission(input={{"n": n}}, key=f"k{{n}}") for n in range({RUNS})))
print(len(runs), len({{run.id for run in runs}}), sum(run.created for run in runs))
"""


def test_a_producer_killed_in_the_middle_loses_and_repeats_nothing(
    some_engines: Engines, make_stage: Callable[..., Stage]
) -> None:
    stage = make_stage(some_engines)
    chance = Random(1)

    def produce() -> subprocess.Popen[str]:
        environment = {**os.environ, **stage.environment, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        return subprocess.Popen([sys.executable, "-c", PRODUCER], env=environment, stdout=subprocess.PIPE, text=True)

    def count(query: str) -> int:
        with stage.client.database.read() as connection:
            return int(connection.execute(text(query)).scalar_one())

    killed = 0
    for _ in range(KILLS):
        before = count("SELECT count(*) FROM runs")
        producer = produce()
        enough = min(before + chance.randrange(1, RUNS // KILLS), RUNS - 1)
        try:
            wait_until(
                lambda enough=enough, producer=producer: (  # type: ignore[misc]
                    producer.poll() is not None or count("SELECT count(*) FROM runs") >= enough
                ),
                "some runs are submitted",
                PRODUCER_SECONDS,
            )
        finally:
            producer.send_signal(signal.SIGKILL)
            producer.communicate()
        killed += producer.returncode == -signal.SIGKILL
        there = count("SELECT count(*) FROM runs")
        assert there >= before
        # A chunk is one commit: no run is there without its first event and its input.
        assert count("SELECT count(*) FROM run_events") == there
        lost = "SELECT count(*) FROM runs WHERE input_id NOT IN (SELECT id FROM payloads)"
        assert count(lost) == 0
    assert killed > 0
    before = count("SELECT count(*) FROM runs")
    said, _ = produce().communicate(timeout=PRODUCER_SECONDS)
    assert said.split() == [str(RUNS), str(RUNS), str(RUNS - before)]
    assert count("SELECT count(*) FROM runs") == RUNS == count("SELECT count(DISTINCT key) FROM runs")
    assert count("SELECT count(*) FROM run_events") == RUNS
