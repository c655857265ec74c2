"""What cannot be replayed is refused by name, with the agent's own line."""

import asyncio
import concurrent.futures
import os
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio.to_thread
import httpx
import pytest

from paidonce.replay.loop import ReplayLoop
from paidonce_models.errors import NotReplayable

HERE = __file__


def refused(agent: Callable[[], Awaitable[Any]]) -> NotReplayable:
    """The one refusal of an agent that goes on as if nothing had been."""
    loop = ReplayLoop()

    async def swallows() -> str:
        try:
            await agent()
        except BaseException:  # noqa: BLE001  # what an agent should not do
            pass
        return "went on"

    task = loop.create_task(swallows())
    loop.run_until_blocked()
    assert task.result() == "went on"
    assert len({refusal.message for refusal in loop.refusals}) == 1, loop.refusals
    return loop.refusals[0]


def loop_of_the_agent() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


async def executor() -> None:
    await loop_of_the_agent().run_in_executor(None, print)


async def thread() -> None:
    await asyncio.to_thread(print)


async def thread_of_anyio() -> None:
    await anyio.to_thread.run_sync(print)


async def connection() -> None:
    await asyncio.open_connection("127.0.0.1", 1)


async def name_look_up() -> None:
    await loop_of_the_agent().getaddrinfo("localhost", 80)


async def web_request() -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        await client.get("http://127.0.0.1:1/")


async def server() -> None:
    await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)


async def child_process() -> None:
    await asyncio.create_subprocess_exec("true")


async def shell() -> None:
    await asyncio.create_subprocess_shell("true")


async def socket_read() -> None:
    with socket.socket() as unconnected:
        await loop_of_the_agent().sock_recv(unconnected, 1)


async def reader() -> None:
    loop_of_the_agent().add_reader(0, print)


async def signal_handler() -> None:
    loop_of_the_agent().add_signal_handler(signal.SIGUSR1, print)


async def pipe() -> None:
    with open(os.devnull) as nothing:  # noqa: ASYNC230  # never read
        await loop_of_the_agent().connect_read_pipe(asyncio.Protocol, nothing)


async def own_task_factory() -> None:
    loop_of_the_agent().set_task_factory(None)


async def stops_the_loop() -> None:
    loop_of_the_agent().stop()


async def runs_the_loop() -> None:
    waits = asyncio.sleep(0)
    try:
        loop_of_the_agent().run_until_complete(waits)
    finally:
        waits.close()


async def future_of_a_thread() -> None:
    await asyncio.wrap_future(concurrent.futures.Future[None]())


async def future_of_another_loop() -> None:
    await ReplayLoop().create_future()


async def ordinary_future_of_another_loop() -> None:
    other = asyncio.new_event_loop()
    try:
        await other.create_future()
    finally:
        other.close()


async def something_that_is_not_asyncios() -> None:
    class Foreign:
        def __await__(self) -> Any:
            yield "trio"

    await Foreign()


async def futures_without_an_order() -> None:
    futures: list[asyncio.Future[None]] = [asyncio.Future() for _ in range(2)]
    for future in futures:
        future.set_result(None)
    await asyncio.wait(futures)


REFUSED = {
    executor: "loop.run_in_executor() at",
    thread: "asyncio.to_thread() (loop.run_in_executor()) at",
    thread_of_anyio: "anyio.run_sync() (a worker thread of anyio) at",
    connection: "asyncio.open_connection() (loop.create_connection()) at",
    name_look_up: "loop.getaddrinfo() at",
    web_request: "httpx.AsyncClient.get() (loop.create_connection()) at",
    server: "asyncio.start_server() (loop.create_server()) at",
    child_process: "asyncio.create_subprocess_exec() (loop.subprocess_exec()) at",
    shell: "asyncio.create_subprocess_shell() (loop.subprocess_shell()) at",
    socket_read: "loop.sock_recv() at",
    reader: "loop.add_reader() at",
    signal_handler: "loop.add_signal_handler() at",
    pipe: "loop.connect_read_pipe() at",
    own_task_factory: "loop.set_task_factory() at",
    stops_the_loop: "loop.stop() at",
    runs_the_loop: "loop.run_until_complete() at",
    future_of_a_thread: "asyncio.wrap_future() (a future of another thread) at",
    future_of_another_loop: "awaiting a future of another event loop at",
    ordinary_future_of_another_loop: "awaiting a future of another event loop at",
    something_that_is_not_asyncios: "awaiting something that is not asyncio's at",
    futures_without_an_order: "asyncio.wait() (asyncio.Future() (instead of loop.create_future())) at",
}


@pytest.mark.parametrize("agent", REFUSED, ids=lambda agent: agent.__name__)
def test_it_is_refused_by_name_and_line(agent: Callable[[], Awaitable[Any]]) -> None:
    refusal = refused(agent)
    assert refusal.message.startswith(REFUSED[agent]), refusal.message
    assert refusal.message.endswith("cannot be replayed; move it into a @step")
    assert refusal.details["file"] == HERE
    first_line = agent.__code__.co_firstlineno  # type: ignore[attr-defined]
    assert first_line < refusal.details["line"] < first_line + 6  # type: ignore[operator]


def test_a_refusal_reaches_the_agent_as_an_error() -> None:
    loop = ReplayLoop()
    task = loop.create_task(thread())
    loop.run_until_blocked()
    assert isinstance(task.exception(), NotReplayable)


def test_callbacks_from_another_thread_are_refused() -> None:
    loop = ReplayLoop()
    errors: list[BaseException] = []

    def other_thread() -> None:
        try:
            loop.call_soon_threadsafe(print)
        except NotReplayable as error:
            errors.append(error)

    worker = threading.Thread(target=other_thread)
    worker.start()
    worker.join()
    assert loop.refusals == errors
    assert "call_soon_threadsafe" in str(errors[0])


def test_the_agents_own_slice_may_call_soon_threadsafe() -> None:
    async def agent() -> str:
        done = loop_of_the_agent().create_future()
        loop_of_the_agent().call_soon_threadsafe(done.set_result, "told")
        result: str = await done
        return result

    loop = ReplayLoop()
    task = loop.create_task(agent())
    loop.run_until_blocked()
    assert task.result() == "told"


def test_an_agent_that_awaits_itself_made_a_mistake_that_replays() -> None:
    async def agent() -> None:
        task = asyncio.current_task()
        assert task is not None
        await task

    loop = ReplayLoop()
    task = loop.create_task(agent())
    loop.run_until_blocked()
    assert "cannot await on itself" in str(task.exception())
    assert loop.refusals == []


def test_an_agent_that_is_itself_installed_is_still_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = tmp_path / "site-packages"
    installed.mkdir()
    (installed / "installed_agent_for_refusals.py").write_text(
        "import asyncio\n\n\nasync def agent():\n    await asyncio.to_thread(print)\n"
    )
    monkeypatch.syspath_prepend(str(installed))
    module = __import__("installed_agent_for_refusals")
    try:
        loop = ReplayLoop()
        loop.create_task(module.agent())
        loop.run_until_blocked()
        assert "installed_agent_for_refusals.py:5 cannot be replayed" in loop.refusals[0].message
    finally:
        del sys.modules["installed_agent_for_refusals"]
