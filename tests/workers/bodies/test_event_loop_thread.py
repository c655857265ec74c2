"""The event-loop thread: context, time-outs, cancellation, what a step cannot break, and the report of a block."""

import asyncio
import contextvars
import logging
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from paidonce_workers.bodies.event_loop_thread import (
    CoroutineCancelled,
    CoroutineHandle,
    CoroutineTimedOut,
    EventLoopThread,
)
from tests.services.waiting import wait_until

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id")


@pytest.fixture
def event_loop() -> Iterator[EventLoopThread]:
    thread = EventLoopThread(blocked_after_seconds=0.2, cancel_grace_seconds=0.3)
    yield thread
    thread.close()


def count_from(begun: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    """A time limit begins with the coroutine, as on a machine that has time: one that never ran cannot clean up."""
    wait = CoroutineHandle.wait

    def wait_once_begun(self: CoroutineHandle[Any], timeout_seconds: float | None = None) -> bool:
        assert begun.wait(60)
        return wait(self, timeout_seconds)

    monkeypatch.setattr(CoroutineHandle, "wait", wait_once_begun)


def test_a_coroutine_runs_on_the_one_loop_thread_and_its_value_comes_back(event_loop: EventLoopThread) -> None:
    async def where() -> str:
        return threading.current_thread().name

    assert {event_loop.run(where()) for _ in range(3)} == {"paidonce-event-loop"}


def test_context_variables_of_the_caller_are_seen_and_not_changed(event_loop: EventLoopThread) -> None:
    async def read_and_set() -> str:
        seen = request_id.get()
        request_id.set("changed by the coroutine")
        return seen

    request_id.set("r1")
    assert event_loop.run(read_and_set()) == "r1"
    assert request_id.get() == "r1"


def test_a_coroutine_that_runs_out_of_time_is_cancelled_and_its_finally_runs(
    event_loop: EventLoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, cleaned_up = threading.Event(), threading.Event()
    count_from(begun, monkeypatch)

    async def wait_for_ever() -> None:
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            cleaned_up.set()

    with pytest.raises(CoroutineTimedOut, match=r"m\.slow did not end within 0\.05 s"):
        event_loop.run(wait_for_ever(), 0.05, label="m.slow")
    assert cleaned_up.wait(60)


def test_a_timeout_error_of_the_coroutines_own_is_not_taken_for_the_time_limit(event_loop: EventLoopThread) -> None:
    async def time_out_by_itself() -> None:
        async with asyncio.timeout(0):
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError) as caught:
        event_loop.run(time_out_by_itself(), 5)
    assert type(caught.value) is TimeoutError


def test_a_coroutine_that_swallows_its_cancellation_is_abandoned_by_name(
    event_loop: EventLoopThread, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, let_go = threading.Event(), threading.Event()
    count_from(begun, monkeypatch)

    async def stubborn() -> None:
        begun.set()
        while not let_go.is_set():
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                pass

    with pytest.raises(CoroutineTimedOut) as caught:
        event_loop.run(stubborn(), 0.05, label="m.stubborn (run r1, step 3)")
    let_go.set()
    assert caught.value.details["abandoned"] is True
    assert "m.stubborn (run r1, step 3) was cancelled (timed out) and has not ended" in caplog.text


def test_another_thread_cancels_with_a_reason(event_loop: EventLoopThread) -> None:
    begun, let_go = threading.Event(), threading.Event()

    async def waits() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            let_go.wait(60)

    handle = event_loop.submit(waits(), label="m.waits")
    assert begun.wait(60)
    assert handle.cancel("fenced")
    assert handle.cancel("too late, the first reason stays")
    let_go.set()
    with pytest.raises(CoroutineCancelled, match=r"m\.waits was cancelled \(fenced\)"):
        handle.result(60)
    assert not handle.cancel("it has ended")


def test_a_step_that_calls_sys_exit_fails_alone(event_loop: EventLoopThread) -> None:
    async def leave() -> None:
        raise SystemExit(3)

    async def leave_in_a_task_of_its_own() -> None:
        await asyncio.create_task(leave())

    async def go_on() -> str:
        return "went on"

    for coroutine in (leave(), leave_in_a_task_of_its_own()):
        with pytest.raises(SystemExit):
            event_loop.run(coroutine, 5)
    assert event_loop.run(go_on(), 5) == "went on"


def test_running_a_coroutine_from_the_loop_thread_is_refused(event_loop: EventLoopThread) -> None:
    async def nested() -> None:
        event_loop.run(asyncio.sleep(0), label="m.nested")

    with pytest.raises(RuntimeError, match=r"m\.nested: the event-loop thread would wait for itself"):
        event_loop.run(nested(), 5)


def test_a_blocked_loop_is_reported_once_by_step_and_place(
    event_loop: EventLoopThread, caplog: pytest.LogCaptureFixture
) -> None:
    let_go = threading.Event()

    async def block() -> None:
        # In a task of its own, as under asyncio.gather: it keeps its step's label.
        await asyncio.create_task(block_really())

    async def block_really() -> None:
        let_go.wait(10)

    with caplog.at_level(logging.WARNING):
        handle = event_loop.submit(block(), label="research.fetch (run r1, step 3)")
        wait_until(lambda: event_loop.blocked() is not None, "the watchdog has seen the block")
        blockage = event_loop.blocked()
        wait_until(lambda: blockage is not None and blockage.seconds > 0.5, "the block has lasted for several checks")
        let_go.set()
        handle.result(60)
        wait_until(lambda: event_loop.blocked() is None, "the watchdog has seen the loop answer again")
    assert blockage is not None
    assert blockage.label == "research.fetch (run r1, step 3)"
    assert blockage.where.startswith(f"{__file__}:")
    reports = [record.message for record in caplog.records if "has been blocked" in record.message]
    assert len(reports) == 1
    assert " s by research.fetch (run r1, step 3) at " in reports[0]
    assert reports[0].endswith("use a def step or await asyncio.to_thread")


def test_fifty_waiting_coroutines_wait_together(event_loop: EventLoopThread) -> None:
    async def wait_a_little() -> None:
        await asyncio.sleep(0.2)

    began = time.monotonic()
    handles = [event_loop.submit(wait_a_little(), label=f"m.wait {number}") for number in range(50)]
    for handle in handles:
        handle.result(60)
    assert time.monotonic() - began < 50 * 0.2 / 4


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_gets_a_loop_of_its_own(event_loop: EventLoopThread) -> None:
    async def process_id() -> int:
        return os.getpid()

    assert event_loop.run(process_id()) == os.getpid()
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if event_loop.run(process_id(), 5) == os.getpid() else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert event_loop.run(process_id(), 5) == os.getpid()


def test_closing_cancels_what_runs_and_the_next_coroutine_starts_anew(event_loop: EventLoopThread) -> None:
    handle = event_loop.submit(asyncio.Event().wait(), label="m.waits")
    assert event_loop.close()
    with pytest.raises(CoroutineCancelled):
        handle.result(60)
    assert event_loop.run(asyncio.sleep(0, "anew"), 5) == "anew"
