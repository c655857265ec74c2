"""The replay loop: time, timers, slices, order, async generators."""

import asyncio
import contextvars
import gc
import logging
import subprocess
import sys
import threading
import time
import weakref
from asyncio import AbstractEventLoop
from collections.abc import AsyncIterator, Coroutine
from types import FrameType
from typing import Any

import pytest

from paidonce.replay import loop as loop_module
from paidonce.replay import watchdog as watchdog_module
from paidonce.replay.loop import ReplayLoop
from paidonce.replay.watchdog import SliceInterrupt, Watch, watchdog
from paidonce_models.errors import SliceTooLong

HERE = __file__
LOOP_FILE = loop_module.__file__
WATCHDOG_FILE = watchdog_module.__file__


def future_of_the_loop() -> "asyncio.Future[Any]":
    return asyncio.get_running_loop().create_future()


def run(agent: Coroutine[Any, Any, Any], loop: ReplayLoop | None = None) -> "asyncio.Task[Any]":
    """Run until blocked and hand back the agent's task."""
    loop = ReplayLoop() if loop is None else loop
    task = loop.create_task(agent)
    loop.run_until_blocked()
    return task


# Time and timers


def test_time_is_what_was_delivered_and_never_goes_back() -> None:
    loop = ReplayLoop(100.0)
    assert loop.time() == 100.0
    loop.deliver_time(101.5)
    loop.deliver_time(99.0)
    assert loop.time() == 101.5


def test_a_timer_fires_only_when_it_is_told_to() -> None:
    loop = ReplayLoop(100.0)
    task = run(asyncio.sleep(5, "slept"), loop)
    loop.deliver_time(500.0)
    loop.run_until_blocked()
    assert not task.done()
    assert loop.next_timer() == 105.0
    assert loop.fire_timers(104.9) == 0
    assert loop.fire_timers(105.0) == 1
    loop.run_until_blocked()
    assert task.result() == "slept"
    assert loop.next_timer() is None


def test_timers_fire_by_deadline_and_then_in_the_order_they_were_made() -> None:
    loop = ReplayLoop()
    order: list[int] = []
    for number, when in enumerate([3.0, 1.0, 2.0, 1.0, 3.0, 1.0]):
        loop.call_at(when, order.append, number)
    loop.fire_timers(3.0)
    loop.run_until_blocked()
    assert order == [1, 3, 5, 2, 0, 4]


def test_cancelled_timers_do_not_count_and_are_forgotten() -> None:
    loop = ReplayLoop()
    for number in range(1_000):
        loop.call_later(number + 1, print).cancel()
    kept = loop.call_later(2_000, print)
    assert loop.next_timer() == 2_000
    assert len(loop._timers.handles()) < 200
    kept.cancel()
    assert loop.next_timer() is None


def test_sleeping_for_ever_asks_for_no_timer() -> None:
    loop = ReplayLoop()
    run(asyncio.sleep(float("inf")), loop)
    assert loop.next_timer() is None
    run(asyncio.sleep(3), loop)
    assert loop.next_timer() == 3


def test_a_deadline_that_is_no_number_is_an_error() -> None:
    with pytest.raises(ValueError, match="nan"):
        ReplayLoop().call_later(float("nan"), print)


def test_a_timer_cancelled_after_it_became_ready_does_not_run() -> None:
    loop = ReplayLoop()
    said: list[str] = []
    timer = loop.call_later(1, said.append, "ran")
    loop.fire_timers(1)
    timer.cancel()
    loop.run_until_blocked()
    assert said == []


# Slices


def test_a_slice_restores_the_loop_that_was_running() -> None:
    async def outer() -> None:
        before = asyncio.get_running_loop()
        hooks = sys.get_asyncgen_hooks()
        task = run(asyncio.sleep(0, "inner"))
        assert task.result() == "inner"
        assert asyncio.get_running_loop() is before
        assert sys.get_asyncgen_hooks() == hooks
        assert asyncio.current_task() is not None

    asyncio.run(outer())


def test_slices_of_one_run_may_come_from_different_threads() -> None:
    loop = ReplayLoop()
    futures: list[asyncio.Future[Any]] = []
    seen: list[int] = []

    async def agent() -> None:
        for _ in range(5):
            futures.append(future_of_the_loop())
            await futures[-1]
            seen.append(threading.get_ident())

    task = run(agent(), loop)

    def deliver() -> None:
        futures[-1].set_result(None)
        loop.run_until_blocked()

    for _ in range(5):
        thread = threading.Thread(target=deliver)
        thread.start()
        thread.join()
    assert task.done()
    assert len(seen) == 5


def test_two_slices_of_one_loop_at_once_are_refused() -> None:
    loop = ReplayLoop()

    async def agent() -> None:
        loop.run_until_blocked()

    with pytest.raises(RuntimeError, match="already running"):
        run(agent(), loop).result()


def test_the_loop_says_whether_it_runs() -> None:
    loop = ReplayLoop()

    async def agent() -> bool:
        return loop.is_running()

    assert run(agent(), loop).result() is True
    assert not loop.is_running()


@pytest.mark.parametrize("stop", [SystemExit, KeyboardInterrupt])
def test_an_agent_that_stops_the_process_is_heard(stop: type[BaseException]) -> None:
    async def agent() -> None:
        raise stop

    loop = ReplayLoop()
    with pytest.raises(stop):
        run(agent(), loop)
    assert not loop.is_running()


async def spins() -> None:
    while True:
        pass


async def spins_through_the_loop() -> None:
    while True:  # noqa: ASYNC110  # the mistake shown
        await asyncio.sleep(0)


async def spins_and_swallows_three_times() -> None:
    swallowed = 0
    while True:
        try:
            while True:
                pass
        except BaseException:  # what an agent should not do
            swallowed += 1
            if swallowed > 3:
                raise


@pytest.mark.parametrize("agent", [spins, spins_through_the_loop, spins_and_swallows_three_times])
def test_an_agent_that_never_blocks_is_stopped_by_name(agent: Any) -> None:
    loop = ReplayLoop()
    loop.create_task(agent())
    with pytest.raises(
        SliceTooLong, match=r"did not block within 0\.05 s at .*test_loop\.py:\d+; move the work"
    ) as error:
        loop.run_until_blocked(limit_seconds=0.05)
    assert error.value.details["file"] == HERE
    assert asyncio._get_running_loop() is None
    assert not loop.is_running()


def test_an_interrupt_never_arrives_after_its_slice() -> None:
    """Slices that end at about the moment they run out of time, and then work that must not be hit."""
    too_long = 0

    async def computes(seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pass

    for number in range(60):
        loop = ReplayLoop()
        loop.create_task(computes(0.018 + 0.0005 * (number % 20) * (1 + number // 20)))
        try:
            loop.run_until_blocked(limit_seconds=0.02)
        except SliceTooLong:
            too_long += 1
        end = time.monotonic() + 0.015
        while time.monotonic() < end:
            pass
    assert too_long > 0


def test_interrupts_that_arrive_while_a_slice_is_being_ended_leave_the_thread_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    late = iter([SliceInterrupt(), SliceInterrupt()])
    really_end = watchdog.end

    def end(watch: Watch) -> None:
        for interrupt in late:
            raise interrupt
        really_end(watch)

    monkeypatch.setattr(watchdog, "end", end)
    loop = ReplayLoop()
    loop.create_task(spins())
    with pytest.raises(SliceTooLong):
        loop.run_until_blocked(limit_seconds=0.05)
    assert asyncio._get_running_loop() is None
    assert not loop.is_running()


@pytest.mark.parametrize("which", ["Watchdog.end", "_absorb_interrupt"])
def test_an_interrupt_may_arrive_where_a_call_begins_while_a_slice_is_being_ended(
    monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    """Where no ``try`` of the called function covers it yet."""
    hit: list[str] = []
    begun: list[Watch] = []
    really_begin = watchdog.begin

    def begin(thread_id: int, limit_seconds: float) -> Watch:
        begun.append(really_begin(thread_id, limit_seconds))
        return begun[-1]

    def tracer(frame: FrameType, event: str, _: object) -> None:
        ending = begun and begun[-1].done and not hit
        if ending and event == "call" and frame.f_code.co_filename in (LOOP_FILE, WATCHDOG_FILE):
            name = frame.f_code.co_qualname
            assert name in ("Watchdog.end", "_absorb_interrupt"), f"{name} is called where nothing should be"
            if name == which:
                hit.append(name)
                raise SliceInterrupt

    monkeypatch.setattr(watchdog, "begin", begin)
    loop = ReplayLoop()
    loop.create_task(spins())  # calls nothing; an interrupt within the tracer would end the tracing
    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        with pytest.raises(SliceTooLong):
            loop.run_until_blocked(limit_seconds=0.05)
    finally:
        sys.settrace(before)
    assert hit == [which]
    assert asyncio._get_running_loop() is None
    assert not loop.is_running()


def test_a_limit_is_not_used_up_by_earlier_slices() -> None:
    async def computes() -> None:
        end = time.monotonic() + 0.02
        while time.monotonic() < end:  # noqa: ASYNC110  # time passes, nothing happens
            await asyncio.sleep(0)

    for _ in range(10):
        assert run(computes()).done()


# Order


def test_tasks_and_futures_are_hashed_by_ordinal() -> None:
    loop = ReplayLoop()
    first, second = loop.create_future(), loop.create_future()
    assert (hash(first), hash(second)) == (1, 2)
    assert first != ReplayLoop().create_future()


def test_task_names_count_within_the_loop() -> None:
    async def agent() -> list[str]:
        return [asyncio.create_task(asyncio.sleep(0)).get_name() for _ in range(2)]

    assert run(agent()).result() == run(agent()).result()


def test_all_tasks_are_those_of_the_loop() -> None:
    async def agent() -> int:
        tasks = [asyncio.create_task(asyncio.sleep(1)) for _ in range(3)]
        assert asyncio.all_tasks() == {*tasks, asyncio.current_task()}
        return len(asyncio.all_tasks())

    other = ReplayLoop()
    other.create_task(asyncio.sleep(1))
    other.run_until_blocked()
    loop = ReplayLoop()
    assert run(agent(), loop).result() == 4
    assert len(asyncio.all_tasks(loop)) == 3
    assert [task.get_name() for task in loop.live_tasks()] == ["Task-2", "Task-3", "Task-4"]


def test_ended_tasks_are_forgotten() -> None:
    loop = ReplayLoop()

    async def agent() -> None:
        for _ in range(1_000):
            await asyncio.create_task(asyncio.sleep(0))

    assert run(agent(), loop).done()
    assert len(loop.held()) < 100


def test_a_waiting_task_that_nobody_holds_is_not_collected() -> None:
    loop = ReplayLoop()
    said: list[str] = []

    async def forgotten() -> None:
        try:
            await future_of_the_loop()
        finally:
            said.append("finally")

    alive = weakref.ref(run(forgotten(), loop))
    gc.collect()
    assert alive() is not None
    assert said == []


EARLY_IMPORTS = """
from asyncio import all_tasks, as_completed, gather
import asyncio, sys
from paidonce.replay.loop import ReplayLoop

async def part(number):
    return number

async def agent():
    order = [await each for each in as_completed([part(number) for number in range(50)])]
    both = gather(part(1), part(2))
    assert hash(both) < 1000
    await both
    assert len(all_tasks()) == 1
    return order

loop = ReplayLoop()
task = loop.create_task(agent())
loop.run_until_blocked()
assert task.result() == list(range(50)), task.result()
"""


def test_functions_imported_from_asyncio_before_us_are_in_order_too() -> None:
    subprocess.run(
        [sys.executable, "-c", EARLY_IMPORTS], check=True, timeout=30, env={"PYTHONPATH": ":".join(sys.path)}
    )


def test_ordinary_loops_stay_as_they_were() -> None:
    ReplayLoop()

    async def part(number: int) -> int:
        return number

    async def ordinary() -> None:
        assert sorted([await each for each in asyncio.as_completed([part(1), part(2)])]) == [1, 2]
        both = asyncio.gather(part(1), part(2))
        assert hash(both) == object.__hash__(both)
        assert await both == [1, 2]
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert await asyncio.to_thread(sum, [1, 2]) == 3

    asyncio.run(ordinary())


def test_context_variables_are_copied_as_usual() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="outside")

    async def inner() -> str:
        variable.set("inner")
        return variable.get()

    async def agent() -> list[str]:
        variable.set("agent")
        return [await asyncio.create_task(inner()), variable.get()]

    assert run(agent()).result() == ["inner", "agent"]
    assert variable.get() == "outside"


# What goes wrong


def test_unhandled_errors_are_collected_and_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    loop = ReplayLoop()

    def breaks() -> None:
        raise ValueError("broken callback")

    async def fails() -> None:
        raise ValueError("nobody asks")

    async def agent() -> None:
        loop.call_soon(breaks)
        task = asyncio.create_task(fails())
        await asyncio.wait([task])

    with caplog.at_level(logging.DEBUG):
        run(agent(), loop)
        loop._tasks.clear()
        gc.collect()
    assert [str(each["exception"]) for each in loop.unhandled] == ["broken callback", "nobody asks"]
    assert caplog.records == []


def test_a_closed_loop_takes_nothing() -> None:
    loop = ReplayLoop()
    loop.close()
    assert loop.is_closed()
    with pytest.raises(RuntimeError, match="closed"):
        loop.call_soon(print)
    with pytest.raises(RuntimeError, match="closed"):
        loop.call_later(1, print)
    with pytest.raises(RuntimeError, match="closed"):
        loop.run_until_blocked()


def test_every_method_of_an_event_loop_is_answered() -> None:
    left = [
        name
        for name in dir(AbstractEventLoop)
        if not name.startswith("__") and getattr(ReplayLoop, name) is getattr(AbstractEventLoop, name)
    ]
    assert left == []


# Async generators


async def numbers(said: list[str], name: str) -> AsyncIterator[int]:
    try:
        yield 1
        yield 2
    finally:
        said.append(name)


def test_unfinished_async_generators_are_closed_in_order_and_not_by_a_collection() -> None:
    loop = ReplayLoop()
    said: list[str] = []

    async def agent() -> None:
        for name in ("first", "second", "third"):
            async for _ in numbers(said, name):
                break
        async for _ in numbers(said, "finished"):
            pass
        gc.collect()
        assert said == ["finished"]

    assert run(agent(), loop).result() is None
    gc.collect()
    assert said == ["finished"]
    assert run(loop.shutdown_asyncgens(), loop).done()
    assert said == ["finished", "first", "second", "third"]


def test_finished_async_generators_are_forgotten() -> None:
    loop = ReplayLoop()

    async def agent() -> None:
        for number in range(500):
            async for _ in numbers([], str(number)):
                pass

    assert run(agent(), loop).done()
    assert len(loop.held()) < 100


def test_an_error_while_closing_an_async_generator_is_collected() -> None:
    loop = ReplayLoop()

    async def broken() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            raise ValueError("cannot close")

    async def agent() -> None:
        async for _ in broken():
            break
        await loop.shutdown_asyncgens()

    assert run(agent(), loop).result() is None
    assert [str(each["exception"]) for each in loop.unhandled] == ["cannot close"]
