"""Work in threads that a step starts is that step's, with its tool; a pool's thread belongs to nobody."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar

import pytest

from paidonce.declarations.current_step import CurrentStep, executing
from paidonce.usage.call_recorder import CallRecorder, current_recorder, innermost_tool, recording_into, tool_stack
from paidonce.usage.explicit_usage import record_usage
from paidonce_workers.capture import capturing
from tests.capture.replies import step_body

others: ContextVar[str] = ContextVar("others", default="nothing")


def spend() -> None:
    record_usage(provider="p", model="m", input_tokens=1, output_tokens=1)


def owner() -> CallRecorder | None:
    return current_recorder.get()


def in_a_thread(work: object) -> threading.Thread:
    thread = threading.Thread(target=work)  # type: ignore[arg-type]  # a callable
    thread.start()
    return thread


def test_a_thread_that_a_step_starts_records_for_it_under_its_tool() -> None:
    step = CurrentStep(run_id="r", step=1, attempt=1, agent="a", name="s")
    seen: list[object] = []

    def work() -> None:
        spend()
        seen.append(executing.get())
        in_a_thread(spend).join()

    token = executing.set(step)
    with step_body() as recorder, innermost_tool("search"):
        in_a_thread(work).join()
    executing.reset(token)
    assert [call.tool for call in recorder.drain()] == ["search", "search"]
    assert seen == [step]


def test_a_subclass_with_a_run_of_its_own_and_a_timer_count_too() -> None:
    class Spender(threading.Thread):
        def run(self) -> None:
            spend()

    with step_body() as recorder:
        thread: threading.Thread
        for thread in (Spender(), threading.Timer(0, spend)):
            thread.start()
            thread.join()
            assert "run" not in vars(thread)
    assert len(recorder.drain()) == 2


def test_nothing_else_of_the_starters_context_is_handed_over() -> None:
    seen: list[str] = []
    others.set("mine")
    with step_body():
        in_a_thread(lambda: seen.append(others.get())).join()
    assert seen == ["nothing"]


def test_a_pools_thread_works_for_whoever_submits() -> None:
    with capturing(), ThreadPoolExecutor(1) as pool:
        first, second = CallRecorder(), CallRecorder()
        with recording_into(first), innermost_tool("one"):
            assert pool.submit(owner).result() is first  # starts the pool's only thread
            assert pool.submit(tool_stack.get).result() == ("one",)
        with recording_into(second):
            assert pool.submit(owner).result() is second
            assert list(pool.map(lambda _: owner(), range(2))) == [second, second]
        assert pool.submit(owner).result() is None


def test_an_error_of_submitted_work_is_its_own() -> None:
    with step_body(), ThreadPoolExecutor(1) as pool:
        with pytest.raises(ZeroDivisionError):
            pool.submit(lambda: 1 // 0).result()
        assert pool.submit(int, "ff", base=16).result() == 255


def test_asyncios_own_ways_into_a_thread_are_attributed() -> None:
    async def body() -> None:
        await asyncio.to_thread(spend)
        await asyncio.get_running_loop().run_in_executor(None, spend)
        await asyncio.gather(*(asyncio.to_thread(spend) for _ in range(3)))

    with step_body() as recorder:
        asyncio.run(body())
    assert len(recorder.drain()) == 5


def test_outside_a_step_and_for_our_own_threads_nothing_is_handed_over() -> None:
    seen: list[CallRecorder | None] = []

    def look() -> None:
        seen.append(owner())

    with capturing():
        in_a_thread(look).join()
        with recording_into(CallRecorder()):
            ours = threading.Thread(target=look, name="paidonce-anything")
            ours.start()
            ours.join()
    with recording_into(CallRecorder()):
        in_a_thread(look).join()
    assert seen == [None, None, None]


def test_what_was_there_is_there_again() -> None:
    before = (threading.Thread.start, ThreadPoolExecutor.submit)
    with capturing():
        assert threading.Thread.start is not before[0]
    assert (threading.Thread.start, ThreadPoolExecutor.submit) == before
