"""Workers, parents and children killed at random moments under load: no finished step is repeated."""

from __future__ import annotations

from pathlib import Path

import pytest

from paidonce.drill.crash import CrashDrill, run_crash_drill
from tests.chaos.engines import RUNS, Engines

STEPS = 48
LIMIT_SECONDS = 360


def test_killing_random_workers_parents_and_children_repeats_no_finished_step(
    engines: Engines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAIDONCE_TURN_SECONDS", engines.turn_seconds)
    said: list[str] = []
    report = run_crash_drill(
        CrashDrill(
            runs=RUNS,
            steps=STEPS,
            kills=6,
            workers=2,
            concurrency=6,
            pool="mixed",
            latency_ms=5,
            every_seconds=3,
            database_url=engines.database_url,
            broker_url=engines.broker_url,
            limit_seconds=LIMIT_SECONDS,
        ),
        said.append,
        tmp_path,
    )
    evidence = report.evidence
    assert report.succeeded == RUNS, said
    assert report.kills >= 2, said
    assert evidence.repeated == 0, said
    assert evidence.twice_accepted == 0, said
    assert evidence.unaccounted == 0, said
    assert evidence.steps == RUNS * STEPS
    assert evidence.lost + evidence.fenced >= len(evidence.recoveries_seconds)
