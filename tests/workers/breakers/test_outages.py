"""Redis stopped, refused, frozen, flushed, restarted, not found and not configured: calls go on, and quickly.

Every server here is the test's own. How long each call took is measured around
it, admission and report together, while several threads call at once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from paidonce.policies import BreakerPolicy
from paidonce_models.errors import CircuitOpen
from paidonce_workers.breakers import (
    SUCCESS,
    Admission,
    CircuitBreakers,
    CircuitChange,
    CircuitState,
    Outcome,
    Verdict,
    failure,
)
from paidonce_workers.breakers.circuit_decisions import LEAST_REPORT_SECONDS
from paidonce_workers.breakers.circuit_scripts import CircuitScripts
from paidonce_workers.breakers.circuit_state import Answer
from paidonce_workers.breakers.redis_link import LONGEST_PAUSE_SECONDS
from tests.services.valkey import RedisServer
from tests.services.waiting import wait_until
from tests.workers.breakers.conftest import PATIENT_SECONDS, MakeBreakers, ServerClock, hurried

pytestmark = pytest.mark.usefixtures("patient")

LONGEST_DELAY_SECONDS = 10.0
"""It is half a second on an idle machine; a call that waits for Redis without a limit waits for as long as it likes."""
POLICY = BreakerPolicy(consecutive_failures=3, failure_rate=1.0, open_base_seconds=60, open_jitter=0)
REFUSE = replace(POLICY, when_store_down="refuse")
DOWN = failure({"http:503"})
BACK_SECONDS = LONGEST_PAUSE_SECONDS + 5


def call(breakers: CircuitBreakers, outcome: Outcome = SUCCESS, policy: BreakerPolicy = POLICY) -> Admission:
    admission = breakers.admit("search", policy, token=f"t{time.monotonic_ns()}")
    if admission.is_admitted:
        breakers.report(admission, outcome)
    return admission


@dataclass
class Traffic:
    """What several threads that call all the time have seen."""

    admissions: list[Admission] = field(default_factory=list)
    delays_seconds: list[float] = field(default_factory=list)

    @property
    def longest_seconds(self) -> float:
        return max(self.delays_seconds)


@contextmanager
def traffic(breakers: CircuitBreakers, policy: BreakerPolicy = POLICY, threads: int = 4) -> Iterator[Traffic]:
    """Calls all the time until the block ends."""
    seen, stopping = Traffic(), threading.Event()

    def work() -> None:
        while not stopping.wait(0.003):
            began = time.monotonic()
            seen.admissions.append(call(breakers, policy=policy))
            seen.delays_seconds.append(time.monotonic() - began)

    with ThreadPoolExecutor(threads) as pool:
        working = [pool.submit(work) for _ in range(threads)]
        try:
            yield seen
        finally:
            stopping.set()
            for each in working:
                each.result()


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """It accepts connections and answers nothing."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [str(getattr(record, "event", "")) for record in caplog.records if record.levelno >= logging.WARNING]


def expect_warnings(caplog: pytest.LogCaptureFixture, *expected: str) -> None:
    """These and no others; they are logged by a thread that callers do not wait for."""
    wait_until(lambda: len(warnings(caplog)) >= len(expected), f"the log says {expected}")
    assert warnings(caplog) == list(expected)


def is_back(breakers: CircuitBreakers) -> Callable[[], bool]:
    return lambda: call(breakers).is_shared


def test_redis_stopped_and_started_again(
    private_redis: RedisServer, make_breakers: MakeBreakers, caplog: pytest.LogCaptureFixture
) -> None:
    breakers = make_breakers(private_redis.url())
    assert call(breakers).is_shared
    with traffic(breakers) as seen:
        wait_until(lambda: len(seen.admissions) > 50, "calls are made")
        private_redis.stop()
        wait_until(lambda: not seen.admissions[-1].is_shared, "the store is away")
        count = len(seen.admissions)
        wait_until(lambda: len(seen.admissions) > count + 200, "calls go on without it")
        private_redis.start()
        wait_until(lambda: seen.admissions[-1].is_shared, "the store is back", BACK_SECONDS)
    assert seen.longest_seconds < LONGEST_DELAY_SECONDS
    assert all(admission.is_admitted for admission in seen.admissions)
    expect_warnings(caplog, "breaker_store_away", "breaker_store_back")
    away, back = caplog.messages
    assert "PAIDONCE_REDIS_URL" in away and "this process decides by itself" in away
    assert "is back after" in back


@pytest.mark.slow
def test_redis_frozen_and_thawed(
    private_redis: RedisServer, make_breakers: MakeBreakers, caplog: pytest.LogCaptureFixture
) -> None:
    """Connections are accepted by the kernel, and nothing is ever answered."""
    breakers = make_breakers(private_redis.url())
    assert call(breakers).is_shared
    with traffic(breakers) as seen:
        wait_until(lambda: len(seen.admissions) > 50, "calls are made")
        with hurried(), frozen(private_redis.pid):
            wait_until(lambda: not seen.admissions[-1].is_shared, "the store is away")
            count = len(seen.admissions)
            wait_until(lambda: len(seen.admissions) > count + 200, "calls go on without it")
            threading.Event().wait(1.7)  # the store is asked again meanwhile, and answers none of it
            newcomer = make_breakers(private_redis.url())
            began = time.monotonic()
            assert not call(newcomer).is_shared
            assert time.monotonic() - began < LONGEST_DELAY_SECONDS
        wait_until(lambda: seen.admissions[-1].is_shared, "the store is back", BACK_SECONDS)
    assert seen.longest_seconds < LONGEST_DELAY_SECONDS
    wait_until(lambda: "breaker_store_back" in warnings(caplog), "the log says that it is back")
    assert warnings(caplog)[:2] == ["breaker_store_away"] * 2, "one line for each process"
    assert warnings(caplog).count("breaker_store_away") == 2


def test_a_call_under_way_when_redis_freezes_is_reported_in_time(
    private_redis: RedisServer, make_breakers: MakeBreakers
) -> None:
    breakers = make_breakers(private_redis.url())
    admission = breakers.admit("search", POLICY, token="t")
    with hurried(), frozen(private_redis.pid):
        began = time.monotonic()
        breakers.report(admission, SUCCESS)
        assert time.monotonic() - began < LONGEST_DELAY_SECONDS


def test_coroutines_are_not_delayed_either(private_redis: RedisServer, make_breakers: MakeBreakers) -> None:
    breakers = make_breakers(private_redis.url())
    assert call(breakers).is_shared
    delays: list[float] = []

    async def body() -> None:
        began = time.monotonic()
        async with breakers.guard("search", POLICY):
            pass
        delays.append(time.monotonic() - began)

    async def fifty_at_once() -> None:
        await asyncio.gather(*(body() for _ in range(50)))

    with hurried(), frozen(private_redis.pid):
        asyncio.run(fifty_at_once())
    assert max(delays) < LONGEST_DELAY_SECONDS


def test_an_event_loop_never_waits_for_redis(private_redis: RedisServer, make_breakers: MakeBreakers) -> None:
    """It goes on while its coroutines wait: only then is Redis thawed here, in time for them."""
    breakers = make_breakers(private_redis.url())
    assert call(breakers).is_shared

    async def ask(number: int) -> bool:
        admission = await breakers.admit_async("search", POLICY, token=f"t{number}")
        return admission.is_shared

    async def tick_and_thaw() -> None:
        for _ in range(5):
            await asyncio.sleep(0.01)
        os.kill(private_redis.pid, signal.SIGCONT)

    async def fifty_at_once() -> list[bool]:
        asking = [asyncio.create_task(ask(number)) for number in range(50)]
        await tick_and_thaw()
        return await asyncio.gather(*asking)

    with frozen(private_redis.pid):
        assert asyncio.run(fifty_at_once()) == [True] * 50


def test_redis_flushed_starts_closed_and_breaks_nothing(
    private_redis: RedisServer, make_breakers: MakeBreakers, caplog: pytest.LogCaptureFixture
) -> None:
    breakers = make_breakers(private_redis.url())
    late = breakers.admit("search", POLICY, token="late")
    for _ in range(3):
        call(breakers, DOWN)
    assert not call(breakers).is_admitted
    private_redis.flush()
    admission = call(breakers)
    assert (admission.verdict, admission.is_shared) == (Verdict.ADMITTED, True)
    breakers.report(late, DOWN)
    assert [(status.state, status.consecutive_failures) for status in breakers.states()] == [(CircuitState.CLOSED, 0)]
    with traffic(breakers) as seen:
        for _ in range(20):
            private_redis.flush()
    assert all(admission.is_admitted and admission.is_shared for admission in seen.admissions)
    assert warnings(caplog) == []


def test_redis_restarted_between_two_calls_is_hardly_noticed(
    private_redis: RedisServer, make_breakers: MakeBreakers, caplog: pytest.LogCaptureFixture
) -> None:
    """Idle connections are found closed before they are used."""
    breakers = make_breakers(private_redis.url())
    for _ in range(3):
        call(breakers, DOWN)
    private_redis.restart()
    refused = call(breakers)
    assert (refused.verdict, refused.is_shared) == (Verdict.REFUSED, True), "its append-only file kept the circuit"
    assert warnings(caplog) == []


def test_while_redis_is_away_a_process_trips_by_what_it_sees_itself_and_forgets_it_afterwards(
    private_redis: RedisServer, make_breakers: MakeBreakers
) -> None:
    breakers = make_breakers(private_redis.url())
    heard: list[CircuitChange] = []
    breakers.subscribe(heard.append)
    assert call(breakers).is_shared
    private_redis.stop()
    assert [call(breakers, DOWN).verdict for _ in range(4)] == [Verdict.ADMITTED] * 3 + [Verdict.REFUSED]
    with pytest.raises(CircuitOpen, match="failures in a row: 3"), breakers.guard("search", POLICY):
        pytest.fail("it may not be called")
    wait_until(lambda: heard, "the move is told")
    assert [(change.target, change.is_shared) for change in heard] == [(CircuitState.OPEN, False)]
    private_redis.start()
    wait_until(is_back(breakers), "the store is back", BACK_SECONDS)
    assert call(breakers).verdict is Verdict.ADMITTED


def test_a_circuit_that_redis_last_knew_as_open_is_open_for_a_process_without_redis(
    private_redis: RedisServer, make_breakers: MakeBreakers
) -> None:
    breakers = make_breakers(private_redis.url())
    for _ in range(3):
        call(breakers, DOWN)
    assert call(breakers).is_shared
    private_redis.stop()
    refused = call(breakers)
    assert (refused.verdict, refused.is_shared) == (Verdict.REFUSED, False)
    assert refused.wait_seconds is not None and 20 < refused.wait_seconds <= 60
    assert refused.reason == "failures in a row: 3 (http:503)"


def test_outcomes_that_redis_cannot_be_told_of_count_for_the_process(
    private_redis: RedisServer, make_breakers: MakeBreakers
) -> None:
    breakers = make_breakers(private_redis.url())
    admissions = [breakers.admit("search", POLICY, token=f"t{number}") for number in range(3)]
    private_redis.stop()
    for admission in admissions:
        breakers.report(admission, DOWN)
    assert not call(breakers).is_admitted


def test_a_probe_of_a_lone_process_is_the_only_one_and_is_renewed(make_breakers: MakeBreakers) -> None:
    breakers = make_breakers(None, probe_seconds=60)
    clock = ServerClock(breakers)
    for _ in range(3):
        call(breakers, DOWN)
    clock.skip(60)
    probe = breakers.admit("search", POLICY, token="first")
    assert probe.is_probe
    for _ in range(9):
        clock.skip(10)
        breakers.renew(["first"])
        assert not breakers.admit("search", POLICY, token="second").is_admitted
    breakers.report(probe, SUCCESS)
    assert call(breakers).verdict is Verdict.ADMITTED


def test_a_policy_that_refuses_lets_nothing_through_without_redis(
    private_redis: RedisServer, make_breakers: MakeBreakers
) -> None:
    breakers = make_breakers(private_redis.url())
    assert call(breakers, policy=REFUSE).is_shared
    private_redis.stop()
    with traffic(breakers, REFUSE) as seen:
        wait_until(lambda: len(seen.admissions) > 100, "calls are refused")
    assert not any(admission.is_admitted for admission in seen.admissions)
    refused = seen.admissions[-1]
    assert "the policy refuses every call" in refused.reason
    assert refused.wait_seconds is not None and 1 <= refused.wait_seconds <= LONGEST_PAUSE_SECONDS
    assert seen.longest_seconds < LONGEST_DELAY_SECONDS
    private_redis.start()
    wait_until(lambda: call(breakers, policy=REFUSE).is_admitted, "the store is back", BACK_SECONDS)


def test_without_any_redis_one_line_names_the_setting(
    make_breakers: MakeBreakers, caplog: pytest.LogCaptureFixture
) -> None:
    breakers = make_breakers(None)
    for _ in range(3):
        assert call(breakers, DOWN).verdict is Verdict.ADMITTED
    assert not call(breakers).is_admitted
    assert "the policy refuses every call" in call(breakers, policy=REFUSE).reason
    expect_warnings(caplog, "breaker_store_missing")
    assert "PAIDONCE_REDIS_URL" in caplog.messages[0]


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1/0", "redis+socket:///nowhere/valkey.sock"])
def test_nobody_listens(url: str, make_breakers: MakeBreakers, caplog: pytest.LogCaptureFixture) -> None:
    breakers = make_breakers(url)
    with traffic(breakers) as seen:
        wait_until(lambda: len(seen.admissions) > 100, "calls are made")
    assert seen.longest_seconds < LONGEST_DELAY_SECONDS
    assert not any(admission.is_shared for admission in seen.admissions)
    expect_warnings(caplog, "breaker_store_away")


def test_a_name_server_that_hangs_delays_nobody(
    make_breakers: MakeBreakers, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answer, asked = threading.Event(), []

    def hang(*args: object, **_: object) -> list[object]:
        asked.append(args)
        answer.wait(30)
        raise socket.gaierror("no such host")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    breakers = make_breakers("redis://:secret@redis.invalid:6379/0")
    try:
        with hurried(), traffic(breakers) as seen:
            wait_until(lambda: len(seen.admissions) > 200, "calls are made")
        assert seen.longest_seconds < LONGEST_DELAY_SECONDS
        assert len(asked) == 1, "one thread waits for the name, not one for each call"
        expect_warnings(caplog, "breaker_store_away")
    finally:
        answer.set()
    assert "secret" not in caplog.text


def test_a_server_that_cannot_write_is_as_good_as_away(
    private_redis: RedisServer, make_breakers: MakeBreakers, caplog: pytest.LogCaptureFixture
) -> None:
    """A replica, or one whose memory is full: it answers, and nothing can be counted there."""
    import redis

    breakers = make_breakers(private_redis.url())
    assert call(breakers).is_shared
    with redis.Redis.from_url(private_redis.url()) as client:
        client.config_set("maxmemory", "1")
        with traffic(breakers) as seen:
            wait_until(lambda: len(seen.admissions) > 100, "calls are made")
        assert not seen.admissions[-1].is_shared
        client.config_set("maxmemory", "0")
    wait_until(is_back(breakers), "the store is back", BACK_SECONDS)
    expect_warnings(caplog, "breaker_store_away", "breaker_store_back")
    assert "OOM" in caplog.text or "maxmemory" in caplog.text


@pytest.mark.usefixtures("asks_each_time")
def test_a_slow_server_takes_no_more_than_its_time_from_admission_and_report_together(
    private_redis: RedisServer, make_breakers: MakeBreakers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers the admission late but in time; the report is given what that has left."""
    breakers = make_breakers(private_redis.url())
    assert call(breakers).is_shared
    limits: list[float] = []
    report = CircuitScripts.report

    def note(self: CircuitScripts, *outcome: Any, limit_seconds: float, **of_call: Any) -> Answer:
        limits.append(limit_seconds)
        return report(self, *outcome, limit_seconds=limit_seconds, **of_call)

    monkeypatch.setattr(CircuitScripts, "report", note)
    with frozen(private_redis.pid):
        thaw = threading.Timer(0.3, os.kill, (private_redis.pid, signal.SIGCONT))
        thaw.start()
        admission = breakers.admit("search", POLICY, token="t")
        thaw.join()
    assert admission.is_shared and admission.spent_seconds > 0.2
    breakers.report(admission, SUCCESS)
    assert limits == [PATIENT_SECONDS - admission.spent_seconds]
    breakers.report(replace(admission, spent_seconds=PATIENT_SECONDS), SUCCESS)
    assert limits[1:] == [LEAST_REPORT_SECONDS]
