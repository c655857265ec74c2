"""Moves of circuits are told by a thread of the breakers' own: listeners may be slow, and nobody waits for them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from paidonce.policies import BreakerPolicy
from paidonce_workers.breakers import CircuitBreakers, CircuitChange, CircuitState, announcing
from paidonce_workers.breakers.announcing import MOST_WAITING, Announcer
from tests.services.valkey import RedisServer
from tests.services.waiting import wait_until
from tests.workers.breakers.conftest import MakeBreakers

pytestmark = pytest.mark.usefixtures("patient")

POLICY = BreakerPolicy(consecutive_failures=1, open_base_seconds=60)
NAME = "paidonce-breakers-announce"


@pytest.fixture
def announcer() -> Iterator[Announcer]:
    made = Announcer("test-announcer")
    yield made
    made.close()


@pytest.fixture
def breakers(redis_server: RedisServer, make_breakers: MakeBreakers) -> CircuitBreakers:
    return make_breakers(redis_server.url())


def trip(breakers: CircuitBreakers, circuit: str) -> None:
    with pytest.raises(ConnectionError), breakers.guard(circuit, POLICY):
        raise ConnectionError


def test_listeners_hear_in_one_thread_that_is_no_callers_and_in_order(breakers: CircuitBreakers) -> None:
    heard: list[tuple[str, threading.Thread]] = []
    breakers.subscribe(lambda change: heard.append((change.circuit, threading.current_thread())))
    trip(breakers, "from a thread")

    async def fail() -> None:
        async with breakers.guard("from a loop", POLICY):
            raise ConnectionError

    with pytest.raises(ConnectionError):
        asyncio.run(fail())
    breakers.force_open("by hand")
    assert [circuit for circuit, _ in heard] == ["from a thread", "from a loop", "by hand"], "by hand waits for them"
    (thread,) = {thread for _, thread in heard}
    assert (thread.name, thread.daemon) == (NAME, True)


def test_a_listener_that_hangs_delays_neither_calls_nor_an_event_loop_nor_the_end(
    breakers: CircuitBreakers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announcing, "CLOSING_SECONDS", 0.3)
    release = threading.Event()
    breakers.subscribe(lambda change: release.wait(60) and None)
    try:
        trip(breakers, "first")
        began = time.monotonic()
        for number in range(20):
            trip(breakers, f"c{number}")

        async def fail() -> None:
            async with breakers.guard("async", POLICY):
                raise ConnectionError

        with pytest.raises(ConnectionError):
            asyncio.run(fail())
        assert time.monotonic() - began < 10.0  # the listener hangs for 60
        began = time.monotonic()
        breakers.close()
        assert 0.2 < time.monotonic() - began < 10.0
    finally:
        release.set()


def test_closing_tells_what_is_waiting(breakers: CircuitBreakers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(announcing, "CLOSING_SECONDS", 60.0)
    heard: list[CircuitChange] = []

    def slow(change: CircuitChange) -> None:
        threading.Event().wait(0.05)
        heard.append(change)

    breakers.subscribe(slow)
    for number in range(10):
        trip(breakers, f"c{number}")
    breakers.close()
    assert len(heard) == 10


def test_a_listener_that_moves_a_circuit_does_not_wait_for_itself(breakers: CircuitBreakers) -> None:
    heard: list[tuple[str, CircuitState]] = []

    def follow(change: CircuitChange) -> None:
        heard.append((change.circuit, change.target))
        if change.circuit == "first":
            breakers.force_open("second")

    breakers.subscribe(follow)
    trip(breakers, "first")
    wait_until(lambda: len(heard) == 2, "both moves are told")
    assert heard == [("first", CircuitState.OPEN), ("second", CircuitState.OPEN)]


def test_starting_begins_the_thread_and_closing_ends_it(breakers: CircuitBreakers) -> None:
    before = {thread for thread in threading.enumerate() if thread.name == NAME}

    def mine() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name == NAME} - before

    breakers.start()
    (thread,) = wait_until(mine, "the thread has begun")
    breakers.start()
    breakers.close()
    wait_until(lambda: not thread.is_alive(), "it has ended")
    assert not mine()


def test_beyond_its_bound_news_are_dropped_and_that_is_said(
    announcer: Announcer, caplog: pytest.LogCaptureFixture
) -> None:
    release, told = threading.Event(), []
    announcer.tell(lambda: release.wait(60) and None)
    wait_until(lambda: announcer._waiting.empty(), "the thread is busy")
    for number in range(MOST_WAITING + 7):
        announcer.tell(lambda number=number: told.append(number))  # type: ignore[misc]
    release.set()
    assert announcer.wait_until_told(10)
    assert told == list(range(MOST_WAITING))
    assert "7 state changes or more were dropped" in caplog.text


def test_news_that_fail_are_logged_and_the_next_are_told(
    announcer: Announcer, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[int] = []
    announcer.tell(lambda: told.append(1 // 0))
    announcer.tell(lambda: told.append(1))
    assert announcer.wait_until_told(10)
    assert told == [1]
    assert "ZeroDivisionError" in caplog.text


def test_news_after_the_end_are_still_told(announcer: Announcer) -> None:
    """A call that was under way when the process's breakers were closed may move a circuit."""
    told: list[int] = []
    announcer.tell(lambda: told.append(1))
    announcer.close()
    announcer.tell(lambda: told.append(2))
    wait_until(lambda: told == [1, 2], "both are told")


def test_many_threads_at_once_begin_one_thread(announcer: Announcer) -> None:
    idents: list[int] = []
    barrier = threading.Barrier(16)

    def tell() -> None:
        barrier.wait()
        announcer.tell(lambda: idents.append(threading.get_ident()))

    threads = [threading.Thread(target=tell) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert announcer.wait_until_told(10)
    assert (len(idents), len(set(idents))) == (16, 1)


FORKING_PROGRAM = """
import os, sys, threading
from paidonce.policies import BreakerPolicy
from paidonce_workers.breakers import CircuitBreakers, Failure, announcing, failure
from paidonce_workers.breakers import circuit_decisions

circuit_decisions.LIMIT_SECONDS = announcing.CLOSING_SECONDS = 20.0  # busy is not away
breakers = CircuitBreakers(sys.argv[1], namespace=sys.argv[2], classify=lambda error: Failure(kinds=frozenset()))
policy = BreakerPolicy(consecutive_failures=1)
heard = []
breakers.subscribe(lambda change: heard.append((change.circuit, os.getpid())))
breakers.start()

def trip(circuit):
    breakers.report(breakers.admit(circuit, policy, token="t"), failure(()))

trip("before")
children = []
for number in range(4):
    pid = os.fork()
    if pid == 0:
        trip(f"child {number}")
        breakers.close()
        os._exit(0 if heard[-1] == (f"child {number}", os.getpid()) else 1)
    children.append(pid)
codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
trip("after")
breakers.close()
print(codes, [(circuit, pid == os.getpid()) for circuit, pid in heard])
"""


def test_a_forked_child_tells_its_own_moves_in_a_thread_of_its_own(redis_server: RedisServer, namespace: str) -> None:
    """As under prefork: the parent's thread does not exist in the child, and what it was doing is not done twice."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKING_PROGRAM, redis_server.url(), namespace],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.stdout.strip() == "[0, 0, 0, 0] [('before', True), ('after', True)]", done.stderr
