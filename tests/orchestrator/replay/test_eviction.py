"""Eviction runs nothing, warns nobody and frees the memory."""

import asyncio
import contextlib
import gc
import subprocess
import sys
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest

from paidonce.replay import eviction
from paidonce.replay.eviction import discard
from paidonce.replay.loop import ReplayLoop

Program = Callable[[list[str]], Awaitable[object]]


def wait_forever() -> "asyncio.Future[Any]":
    return asyncio.get_running_loop().create_future()


async def plain_finally(said: list[str]) -> None:
    try:
        await wait_forever()
    finally:
        said.append("finally")


async def finally_that_awaits(said: list[str]) -> None:
    try:
        await wait_forever()
    finally:
        said.append("before")
        await asyncio.sleep(1)
        said.append("after")


async def swallowed_generator_exit(said: list[str]) -> None:
    while True:
        try:
            await wait_forever()
        except BaseException as error:  # noqa: BLE001  # what an agent should not do
            said.append(repr(error))


async def nested_coroutines(said: list[str]) -> None:
    async def inner() -> None:
        await plain_finally(said)

    try:
        await inner()
    finally:
        said.append("outer")


class Door:
    def __init__(self, said: list[str]) -> None:
        self.said = said

    def __enter__(self) -> "Door":
        return self

    def __exit__(self, *_: object) -> None:
        self.said.append("closed")

    async def __aenter__(self) -> "Door":
        return self

    async def __aexit__(self, *_: object) -> None:
        self.said.append("closed later")


async def with_blocks(said: list[str]) -> None:
    with Door(said):
        async with Door(said):
            await wait_forever()


@contextlib.contextmanager
def room(said: list[str]) -> Iterator[None]:
    try:
        yield
    finally:
        said.append("left the room")


@contextlib.asynccontextmanager
async def hall(said: list[str]) -> AsyncIterator[None]:
    try:
        yield
    finally:
        said.append("left the hall")
        await asyncio.sleep(1)


async def context_manager_generators(said: list[str]) -> None:
    with room(said):
        async with hall(said):
            await wait_forever()


async def exit_stacks(said: list[str]) -> None:
    with contextlib.ExitStack() as stack:
        stack.enter_context(room(said))
        async with contextlib.AsyncExitStack() as later:
            await later.enter_async_context(hall(said))
            later.callback(said.append, "callback")
            await wait_forever()


async def generator_in_a_loop(said: list[str]) -> None:
    def numbers() -> Iterator[int]:
        try:
            yield 1
        finally:
            said.append("numbers")

    for _ in numbers():
        await wait_forever()


async def numbers_later(said: list[str]) -> AsyncIterator[int]:
    try:
        yield 1
        await wait_forever()
        yield 2
    finally:
        said.append("numbers later")
        await asyncio.sleep(1)


async def async_generator_in_its_body(said: list[str]) -> None:
    async for _ in numbers_later(said):
        pass


async def async_generator_between_items(said: list[str]) -> None:
    async for _ in numbers_later(said):
        await wait_forever()


async def async_generator_dropped_by_the_agent(said: list[str]) -> None:
    async for _ in numbers_later(said):
        break
    await wait_forever()


async def never_started(said: list[str]) -> None:
    coroutines = [plain_finally(said)]
    held = {"deep": [{"down": Holder(plain_finally(said))}]}
    await wait_forever()
    await coroutines[0]
    await held["deep"][0]["down"].held


class Holder:
    def __init__(self, held: Any) -> None:
        self.held = held


async def task_that_never_ran(said: list[str]) -> None:
    asyncio.get_running_loop().call_later(5, lambda: asyncio.ensure_future(plain_finally(said)))
    await asyncio.gather(plain_finally(said), nested_coroutines(said))


async def task_group(said: list[str]) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(plain_finally(said))
        group.create_task(finally_that_awaits(said))
        await wait_forever()


async def timeouts_and_shields(said: list[str]) -> None:
    async with asyncio.timeout(5):
        await asyncio.wait_for(asyncio.shield(plain_finally(said)), 3)


async def locks_and_queues(said: list[str]) -> None:
    lock = asyncio.Lock()
    queue: asyncio.Queue[int] = asyncio.Queue()
    async with lock:
        try:
            await queue.get()
        finally:
            said.append("queue")


async def exception_never_retrieved(said: list[str]) -> None:
    async def fails() -> None:
        raise ValueError("nobody asks")

    task = asyncio.ensure_future(fails())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await plain_finally(said)
    await task


async def generator_held_by_a_closure(said: list[str]) -> None:
    def numbers() -> Iterator[int]:
        try:
            yield 1
        finally:
            said.append("closure")

    generator = numbers()
    next(generator)

    def take() -> int:
        return next(generator)

    asyncio.get_running_loop().call_later(1, take)
    await wait_forever()


async def caught_exception_with_frames(said: list[str]) -> None:
    def fails() -> None:
        generator = numbers()
        next(generator)
        raise ValueError

    def numbers() -> Iterator[int]:
        try:
            yield 1
        finally:
            said.append("traceback")

    kept: Exception | None = None
    try:
        fails()
    except ValueError as error:
        kept = error
    await wait_forever()
    del kept


PROGRAMS = [
    plain_finally,
    finally_that_awaits,
    swallowed_generator_exit,
    nested_coroutines,
    with_blocks,
    context_manager_generators,
    exit_stacks,
    generator_in_a_loop,
    async_generator_in_its_body,
    async_generator_between_items,
    async_generator_dropped_by_the_agent,
    never_started,
    task_that_never_ran,
    task_group,
    timeouts_and_shields,
    locks_and_queues,
    exception_never_retrieved,
    generator_held_by_a_closure,
    caught_exception_with_frames,
]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_a_discarded_run_says_nothing(program: Program, recwarn: pytest.WarningsRecorder, capfd: Any) -> None:
    said: list[str] = []
    loop = ReplayLoop()
    task = loop.create_task(program(said))  # type: ignore[arg-type]
    loop.run_until_blocked()
    assert not task.done()
    assert discard(loop, [task])
    loop_gone = weakref.ref(loop)
    del loop, task
    gc.collect()
    assert loop_gone() is None
    assert said == []
    assert [str(warning.message) for warning in recwarn] == []
    assert capfd.readouterr() == ("", "")


def test_a_task_created_but_never_run_is_dropped_silently(recwarn: pytest.WarningsRecorder) -> None:
    said: list[str] = []
    loop = ReplayLoop()
    loop.create_task(plain_finally(said))
    discard(loop)
    gc.collect()
    assert said == []
    assert len(recwarn) == 0


def test_a_discarded_run_is_freed_without_a_collection() -> None:
    class Conversation(list[str]):
        pass

    async def agent() -> None:
        messages = Conversation()
        kept.append(weakref.ref(messages))
        await asyncio.gather(wait_forever(), wait_forever())

    kept: list[weakref.ref[Conversation]] = []
    gc.disable()
    try:
        loop = ReplayLoop()
        task = loop.create_task(agent())
        loop.run_until_blocked()
        assert kept[0]() is not None
        discard(loop, [task])
        del loop, task
        assert kept[0]() is None
    finally:
        gc.enable()


def test_other_runs_are_left_alone() -> None:
    said: list[str] = []
    first, second = ReplayLoop(), ReplayLoop()
    shared: dict[str, Any] = {}

    async def agent(name: str) -> None:
        shared[name] = asyncio.current_task()
        mine = shared
        await plain_finally(said)
        del mine

    first.create_task(agent("first"))
    second_task = second.create_task(agent("second"))
    first.run_until_blocked()
    second.run_until_blocked()
    discard(first)
    shared.clear()
    gc.collect()
    assert said == []
    second_task.cancel()
    second.run_until_blocked()
    assert said == ["finally"]
    assert not gc.is_finalized(second_task)


def test_a_discarded_loop_takes_nothing_more() -> None:
    loop = ReplayLoop()
    future = loop.create_future()
    future.add_done_callback(lambda _: None)
    discard(loop)
    assert loop.is_closed()
    with pytest.raises(RuntimeError, match="closed"):
        loop.run_until_blocked()
    with pytest.raises(RuntimeError, match="closed"):
        future.set_result(1)


def test_an_interpreter_that_cannot_mark_keeps_the_run_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eviction, "MARKING_WORKS", False)
    said: list[str] = []
    loop = ReplayLoop()
    task = loop.create_task(plain_finally(said))
    loop.run_until_blocked()
    alive = weakref.ref(task)
    assert not discard(loop, [task])
    del loop, task
    gc.collect()
    assert alive() is not None
    assert said == []


def test_marking_works_on_this_interpreter() -> None:
    assert eviction.can_mark()
    generator = (number for number in range(3))
    assert eviction.mark_finalized(generator)
    assert next(generator) == 0


SHUTDOWN = """
import asyncio, sys
from paidonce.replay import eviction
from paidonce.replay.loop import ReplayLoop
eviction.MARKING_WORKS = {marking}

async def agent():
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        print("finally ran")
        await asyncio.sleep(1)

loop = ReplayLoop()
task = loop.create_task(agent())
loop.run_until_blocked()
if {discarded}:
    eviction.discard(loop, [task])
if {circle}:
    loop.circle = [loop, task]
    del loop, task
print("end of program")
"""


@pytest.mark.parametrize("marking", [True, False], ids=["marked", "kept alive"])
@pytest.mark.parametrize("discarded", [True, False], ids=["discarded", "live"])
@pytest.mark.parametrize("circle", [True, False], ids=["circle", "global"])
def test_the_interpreters_end_runs_no_finally(marking: bool, discarded: bool, circle: bool) -> None:
    program = SHUTDOWN.format(marking=marking, discarded=discarded, circle=circle)
    ended = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert (ended.stdout, ended.stderr) == ("end of program\n", "")
