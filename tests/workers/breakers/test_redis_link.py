"""The thread that connects to Redis: whatever ends it, Redis is asked again, and it logs nothing under a lock."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import pytest
from redis.connection import AbstractConnection

from paidonce.policies import BreakerPolicy
from paidonce_workers.breakers import SUCCESS, CircuitBreakers
from paidonce_workers.breakers.announcing import Announcer
from paidonce_workers.breakers.redis_link import LONGEST_PAUSE_SECONDS
from tests.services.valkey import RedisServer
from tests.services.waiting import wait_until
from tests.workers.breakers.conftest import MakeBreakers

BACK_SECONDS = 10 * LONGEST_PAUSE_SECONDS


def is_shared(breakers: CircuitBreakers) -> bool:
    admission = breakers.admit("search", BreakerPolicy(), token=f"t{time.monotonic_ns()}")
    breakers.report(admission, SUCCESS)
    return admission.is_shared


def fail_first(breakers: CircuitBreakers, error: BaseException) -> None:
    """The first connection is not made but raises this."""
    link = breakers._link
    assert link is not None
    make, errors = link._make, [error]

    def failing() -> AbstractConnection:
        if errors:
            raise errors.pop()
        return make()

    link._make = failing


@pytest.fixture
def deaths(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of threads that have died of what they raised."""
    died: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda arguments: died.append(arguments.thread.name))
    return died


@pytest.mark.parametrize(
    "error",
    [MemoryError("no room for secret"), UnicodeError("label empty or too long: secret"), SystemExit()],
    ids=["memory", "bad host name", "the thread dies"],
)
def test_a_connector_that_fails_in_a_way_nobody_foresaw_does_not_cut_the_process_off(
    redis_server: RedisServer,
    make_breakers: MakeBreakers,
    caplog: pytest.LogCaptureFixture,
    deaths: list[str],
    error: BaseException,
) -> None:
    breakers = make_breakers(redis_server.url())
    fail_first(breakers, error)
    wait_until(lambda: is_shared(breakers), "Redis is asked again", BACK_SECONDS)
    assert "secret" not in caplog.text
    assert bool(deaths) == isinstance(error, SystemExit)


def test_a_log_filter_that_raises_does_not_cut_the_process_off(
    redis_server: RedisServer, make_breakers: MakeBreakers, deaths: list[str]
) -> None:
    def refuse(record: logging.LogRecord) -> bool:
        if threading.current_thread().name == "paidonce-breakers-connect":
            log.removeFilter(refuse)
            raise ValueError("a filter of somebody's")
        return True

    log = logging.getLogger("paidonce_workers.breakers.redis_link")
    log.addFilter(refuse)
    try:
        breakers = make_breakers(redis_server.url())
        fail_first(breakers, ConnectionRefusedError())
        wait_until(lambda: is_shared(breakers), "Redis is asked again", BACK_SECONDS)
    finally:
        log.removeFilter(refuse)
    assert deaths == ["paidonce-breakers-connect"]


def test_an_announcer_whose_thread_has_died_begins_another(deaths: list[str]) -> None:
    announcer, told = Announcer("test-announcer"), threading.Event()

    def die() -> None:
        raise SystemExit

    announcer.tell(die)
    dying = announcer._thread
    assert dying is not None
    dying.join(10)
    assert deaths == ["test-announcer"]
    try:
        announcer.tell(told.set)
        assert told.wait(10)
    finally:
        announcer.close()


@pytest.mark.parametrize("of", ["announcer", "link"])
def test_that_no_thread_is_to_be_had_is_logged_once_the_lock_is_free(
    of: str, make_breakers: MakeBreakers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log handler may be slow, or ask a circuit itself."""
    breakers = make_breakers("redis://127.0.0.1:1/0")
    link, announcer = breakers._link, breakers._announcer
    assert link is not None
    start: Callable[[], None] = {"announcer": announcer.start, "link": link._start_connector}[of]
    lock = {"announcer": announcer._lock, "link": link._lock}[of]
    were_locked: list[bool] = []

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    def note(record: logging.LogRecord) -> bool:
        were_locked.append(lock.locked())
        return True

    log = logging.getLogger(start.__module__)
    log.addFilter(note)
    try:
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", refuse)
            start()
    finally:
        log.removeFilter(note)
    assert were_locked == [False]
