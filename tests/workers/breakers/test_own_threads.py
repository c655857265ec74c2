"""The threads of a process's breakers: begun though a beginning is lost, and ended with what was asked of them done."""

from __future__ import annotations

import _thread
import asyncio
import threading
from collections.abc import Callable, Iterator

import pytest

from paidonce_workers.breakers.own_threads import HOW_MANY, OwnThreads, ThreadStarter
from tests.services.waiting import wait_until


@pytest.fixture
def starter() -> Iterator[ThreadStarter]:
    made = ThreadStarter()
    yield made
    made.close()


def test_a_beginning_that_an_interrupt_swallowed_is_repeated_by_the_next_order(
    starter: ThreadStarter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new thread dies before its first line: until CPython 3.12 interrupts of its parent may strike it there."""
    done: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(_thread, "start_new_thread", lambda act, arguments: 0)
        starter.begin(lambda: done.append("first"), "test")
    starter.begin(lambda: done.append("second"), "test")
    wait_until(lambda: sorted(done) == ["first", "second"], "both have run")


def test_without_any_more_threads_nothing_is_raised_and_the_next_order_tries_again(
    starter: ThreadStarter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_more(act: object, arguments: object) -> int:
        raise RuntimeError("can't start new thread")

    done: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(_thread, "start_new_thread", no_more)
        starter.begin(lambda: done.append("first"), "test")
    starter.begin(lambda: done.append("second"), "test")
    wait_until(lambda: sorted(done) == ["first", "second"], "both have run")


def test_a_burst_is_done_by_a_few_threads_which_closing_ends(starter: ThreadStarter) -> None:
    threads = OwnThreads(starter.begin)

    def work() -> threading.Thread:
        threading.Event().wait(0.01)
        return threading.current_thread()

    async def burst() -> set[threading.Thread]:
        return set(await asyncio.gather(*(asyncio.wrap_future(threads.submit(work)) for _ in range(40))))

    used = asyncio.run(burst())
    assert 1 <= len(used) <= HOW_MANY
    threads.close()
    wait_until(lambda: not any(thread.is_alive() for thread in used), "they have ended")
    assert asyncio.run(burst()), "what comes late is done all the same"
    threads.close()


def test_threads_that_were_ordered_and_begin_late_keep_no_other_from_ending() -> None:
    ordered: list[Callable[[], object]] = []
    threads = OwnThreads(lambda act, name: ordered.append(act))
    done: list[int] = []
    for number in range(3):
        threads.submit(done.append, number)
    begun = [threading.Thread(target=act, daemon=True) for act in ordered[:2]]
    for thread in begun:
        thread.start()
    wait_until(lambda: done == [0, 1, 2] and threads._serving == 2, "all is done")
    threads.close()
    ordered[2]()  # in this thread: it must not wait
    for thread in begun:
        thread.join(10)
    assert not any(thread.is_alive() for thread in begun)


def test_what_is_raised_comes_out_and_what_is_cancelled_is_not_done(starter: ThreadStarter) -> None:
    threads, release, done = OwnThreads(starter.begin), threading.Event(), []

    async def ask() -> None:
        with pytest.raises(ZeroDivisionError):
            await asyncio.wrap_future(threads.submit(lambda: 1 // 0))
        for _ in range(HOW_MANY):
            threads.submit(release.wait, 10)
        waiting = asyncio.wrap_future(threads.submit(done.append, 1))
        waiting.cancel()
        await asyncio.sleep(0)

    asyncio.run(ask())
    release.set()
    threads.close()
    assert done == []
