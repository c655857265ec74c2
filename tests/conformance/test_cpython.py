"""CPython's own tests for gather, wait, timeout, TaskGroup, locks, queues and cancellation, on the replay loop."""

import functools
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.exclusions import EXCLUDED
from tests.conformance.run_cpython_tests import MODULES
from tests.services.availability import service_missing

ROOT = Path(__file__).parents[2]
# 329 on Python 3.11, 367 on 3.13; fewer means that the harness lost some.
FEWEST_TESTS = 320


def needs_cpythons_tests() -> None:
    """Skip, or fail in CI, on a Python that was packaged without its ``test`` package."""
    try:
        found = importlib.util.find_spec("test.test_asyncio.utils")
    except ModuleNotFoundError:
        found = None
    if found is None:
        service_missing(
            "CPython's own tests: this Python came without its `test` package (Debian: libpythonX.Y-testsuite)"
        )


@functools.cache
def run(*names: str) -> dict[str, Any]:
    """The outcomes, from a process of its own: the tests replace asyncio's loop."""
    ended = subprocess.run(
        [sys.executable, "-m", "tests.conformance.run_cpython_tests", *names],
        capture_output=True,
        text=True,
        timeout=55,
        cwd=ROOT,
        env={"PYTHONPATH": ":".join(filter(None, sys.path))},
    )
    assert ended.returncode == 0, ended.stderr
    document: dict[str, Any] = json.loads(ended.stdout)
    return document


@pytest.mark.slow
def test_cpythons_asyncio_tests_pass_on_the_replay_loop() -> None:
    needs_cpythons_tests()
    document = run()
    failed = {name: document["reasons"][name] for name, outcome in document["outcomes"].items() if outcome == "failed"}
    assert not failed, "\n\n".join(f"{name}: {reason}" for name, reason in failed.items())


def test_every_module_of_the_conformance_suite_was_really_run() -> None:
    needs_cpythons_tests()
    passed = [name for name, outcome in run()["outcomes"].items() if outcome == "passed"]
    assert len(passed) >= FEWEST_TESTS
    assert {name.split(".")[0] for name in passed} == set(MODULES)


def test_every_exclusion_is_still_needed() -> None:
    needs_cpythons_tests()
    outcomes = run(*EXCLUDED)["outcomes"]
    assert outcomes == dict.fromkeys(EXCLUDED, "failed")


@pytest.mark.parametrize("name", EXCLUDED)
def test_every_exclusion_says_why(name: str) -> None:
    assert len(EXCLUDED[name]) > 20
