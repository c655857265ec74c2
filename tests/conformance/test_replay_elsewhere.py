"""Programs are crashed after every event, recorded in one process and replayed in another with another hash seed."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conformance.programs import PROGRAMS
from tests.conformance.recording import History, record, replay

ROOT = Path(__file__).parents[2]
ORDERS_PER_PROGRAM = int(os.environ.get("PAIDONCE_TEST_ORDERS", "4"))


@functools.cache
def histories() -> tuple[History, ...]:
    """Every program with a few orders of delivery."""
    return tuple(record(program, seed) for program in PROGRAMS for seed in range(ORDERS_PER_PROGRAM))


@pytest.mark.parametrize("hash_seed", ["0", *(pytest.param(seed, marks=pytest.mark.slow) for seed in ("1", "4242"))])
def test_a_recorded_run_replays_the_same_in_another_process(hash_seed: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "tests.conformance.recording"],
        input=json.dumps(histories()),
        capture_output=True,
        text=True,
        timeout=55,
        cwd=ROOT,
        env={"PYTHONPATH": ":".join(filter(None, sys.path)), "PYTHONHASHSEED": hash_seed},
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    assert json.loads(ended.stdout) == []


def test_the_orders_of_delivery_lead_to_different_runs() -> None:
    """Else the test above would show nothing."""
    different = [
        program
        for program in PROGRAMS
        if len({json.dumps(each["states"]) for each in histories() if each["program"] == program}) > 1
    ]
    assert len(different) > len(PROGRAMS) * 0.7


def test_a_difference_is_noticed() -> None:
    history = record("gather_in_order", 1)
    history["states"][3][0].append(["call", 99, "another", 0])
    assert "gather_in_order (seed 1), crashed after 3, event 3" in replay(history)[0]
