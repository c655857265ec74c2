"""Generated junk against real workers; ``python -m tests.fuzz`` plays it longer."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.engines import engines_named
from tests.fuzz.play import play

MESSAGES = 1_500
SEED = 9


@pytest.mark.parametrize(
    ("pair", "pool"),
    [
        ("sqlite-embedded", "threads"),
        pytest.param("postgresql-rabbitmq", "prefork", marks=pytest.mark.service),
    ],
)
def test_no_worker_ends_and_nothing_waits_behind_junk(
    request: pytest.FixtureRequest, tmp_path: Path, pair: str, pool: str
) -> None:
    figures = play(engines_named(pair, request), tmp_path, messages=MESSAGES, seed=SEED, pool=pool)
    # Ten times what an idle machine takes; the figures of an idle one come from the command.
    assert figures.complaints(longest_wait_seconds=120) == []
