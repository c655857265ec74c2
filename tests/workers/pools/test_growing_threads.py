"""A pool of threads that grows and shrinks while it works."""

from __future__ import annotations

import threading

import pytest

from paidonce_workers.pools.growing_threads import GrowingThreads
from tests.services.waiting import wait_until


class Gate:
    """Holds what runs until the test lets it go, and counts how many run at once."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self.lock = threading.Lock()
        self.running = 0

    def wait(self) -> None:
        with self.lock:
            self.running += 1
        assert self.released.wait(30)
        with self.lock:
            self.running -= 1


def test_it_runs_as_many_at_once_as_its_limit_says_also_after_it_has_changed() -> None:
    threads, gate = GrowingThreads(2, name="test"), Gate()
    futures = [threads.submit(gate.wait) for _ in range(6)]
    wait_until(lambda: gate.running == 2, "two run", 10)
    threads.resize(4)
    wait_until(lambda: gate.running == 4, "four run", 10)
    threads.resize(1)
    gate.released.set()
    for future in futures:
        future.result(30)
    wait_until(lambda: threads.count == 1, "what is too many has ended", 10)
    assert threads.submit(threading.get_ident).result(10)
    threads.shutdown()
    wait_until(lambda: threads.count == 0, "all have ended", 10)


def test_what_no_thread_has_begun_is_cancelled_at_shutdown() -> None:
    threads, gate = GrowingThreads(1, name="test"), Gate()
    running, waiting = threads.submit(gate.wait), threads.submit(gate.wait)
    wait_until(lambda: gate.running == 1, "one runs", 10)
    threads.shutdown()
    assert waiting.cancelled() and not running.done()
    gate.released.set()
    running.result(10)
    with pytest.raises(RuntimeError, match="the worker is stopping"):
        threads.submit(gate.wait)


def test_where_the_system_gives_no_thread_those_that_there_are_do_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    threads, gate = GrowingThreads(3, name="test"), Gate()
    first = threads.submit(gate.wait)
    wait_until(lambda: gate.running == 1, "one runs", 10)

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    second = threads.submit(threading.get_ident)
    with pytest.raises(RuntimeError, match="start new thread"):
        GrowingThreads(1, name="none").submit(threading.get_ident)
    monkeypatch.undo()
    gate.released.set()
    first.result(10)
    assert second.result(10)
    threads.shutdown()
