"""Runs CPython's own tests on the replay loop, in a process of its own.

    python -m tests.conformance.run_cpython_tests [TEST …]

Prints one JSON document: ``{"outcomes": {test: "passed" | "failed" | "skipped"}, "reasons": {test: text}}``.
Without names everything but ``EXCLUDED`` is run; with names just those.
"""

from __future__ import annotations

import asyncio
import importlib
import io
import json
import logging
import sys
import unittest
import warnings
from collections.abc import Iterator

from paidonce.replay.tasks import ReplayFuture, ReplayTask
from tests.conformance.driver import SelfDrivenLoop, SelfDrivenPolicy
from tests.conformance.exclusions import excluded

MODULES = ("test_tasks", "test_taskgroups", "test_timeouts", "test_waitfor", "test_locks", "test_queues")

# The same tests for other implementations of Task and Future than the loop's; ours is run as ReplayTask_Tests.
OTHER_IMPLEMENTATIONS = (
    "CTask_CFuture_Tests",
    "CTask_CFuture_SubclassTests",
    "CTaskSubclass_PyFuture_Tests",
    "PyTask_CFutureSubclass_Tests",
    "CTask_PyFuture_Tests",
    "PyTask_CFuture_Tests",
    "PyTask_PyFuture_Tests",
    "PyTask_PyFuture_SubclassTests",
    "PyIntrospectionTests",
    "CIntrospectionTests",
    "PyCurrentLoopTests",
)


def put_our_loop_in_place() -> None:
    """Make every loop that asyncio or CPython's tests create one of ours."""
    utils = importlib.import_module("test.test_asyncio.utils")
    utils.TestLoop = SelfDrivenLoop

    def refuse_other_loops(self: object, *_: object) -> None:
        raise RuntimeError(f"a test made a {type(self).__name__}, which is not a replay loop")

    asyncio.BaseEventLoop.__init__ = refuse_other_loops  # type: ignore[method-assign]
    tasks = importlib.import_module("test.test_asyncio.test_tasks")

    class ReplayTask_Tests(tasks.BaseTaskTests, tasks.SetMethodsTest, utils.TestCase):  # type: ignore[name-defined,misc]
        # The tests of repr look for these names.
        Task = type("Task", (ReplayTask,), {})
        Future = type("Future", (ReplayFuture,), {})
        all_tasks = staticmethod(asyncio.all_tasks)
        current_task = staticmethod(asyncio.current_task)

    ReplayTask_Tests.__module__ = tasks.__name__
    ReplayTask_Tests.__qualname__ = "ReplayTask_Tests"
    tasks.ReplayTask_Tests = ReplayTask_Tests  # type: ignore[attr-defined]
    asyncio.set_event_loop_policy(SelfDrivenPolicy())
    # The modules reset the policy when they are done; ours is to stay.
    asyncio.set_event_loop_policy = lambda policy: None  # type: ignore[assignment]


def tests_in(suite: unittest.TestSuite) -> Iterator[unittest.TestCase]:
    """Every single test of a suite."""
    for each in suite:
        if isinstance(each, unittest.TestSuite):
            yield from tests_in(each)
        else:
            yield each


def short_name(test: unittest.TestCase) -> str:
    """``test_tasks.ReplayTask_Tests.test_cancel``."""
    return test.id().removeprefix("test.test_asyncio.")


def main(names: list[str]) -> None:
    """Run and print."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    SelfDrivenLoop().run_until_blocked()  # starts the watchdog before CPython's tests count the threads
    put_our_loop_in_place()
    loader = unittest.defaultTestLoader
    outcomes: dict[str, str] = {}
    reasons: dict[str, str] = {}
    for module in MODULES:
        loaded = importlib.import_module(f"test.test_asyncio.{module}")
        for test in tests_in(loader.loadTestsFromModule(loaded)):
            name = short_name(test)
            if name.split(".")[1] in OTHER_IMPLEMENTATIONS:
                continue
            if (name not in names) if names else excluded(name):
                continue
            result = unittest.TestResult()
            test.run(result)
            problems = [text for _, text in result.failures + result.errors]
            if problems:
                outcomes[name], reasons[name] = "failed", problems[0]
            elif result.skipped:
                outcomes[name], reasons[name] = "skipped", result.skipped[0][1]
            else:
                outcomes[name] = "passed"
    sys.__stdout__.write(json.dumps({"outcomes": outcomes, "reasons": reasons}) + "\n")  # type: ignore[union-attr]


if __name__ == "__main__":
    sys.stdout = io.StringIO()
    main(sys.argv[1:])
