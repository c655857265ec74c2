"""The breakers of a fleet as workers and commands use them, on real servers."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
import redis
from celery.exceptions import Ignore, Reject, Retry, SoftTimeLimitExceeded

from paidonce.embedded import ensure_embedded_valkey, stop_embedded
from paidonce.policies import BreakerPolicy, RetryBudgetPolicy
from paidonce.settings import load_settings
from paidonce_models.errors import CircuitOpen, CircuitStoreUnreachable, ConfigurationError, error_from_json
from paidonce_workers.breakers import (
    NEUTRAL,
    SUCCESS,
    Admission,
    CircuitBreakers,
    CircuitChange,
    CircuitState,
    Outcome,
    Verdict,
    circuit_decisions,
    failure,
)
from paidonce_workers.breakers.circuit_scripts import CIRCUIT
from tests.services.valkey import RedisServer
from tests.services.waiting import wait_until
from tests.workers.breakers.conftest import MakeBreakers, ServerClock, by_type
from tests.workers.breakers.model import MOVES

pytestmark = pytest.mark.usefixtures("patient")

POLICY = BreakerPolicy(consecutive_failures=3, open_base_seconds=60, open_jitter=0)
QUICK = replace(POLICY, open_base_seconds=0.05, open_cap_seconds=0.05)
DOWN = failure({"http:503"})
OVERLOADED = failure({"http:429"}, retry_after_seconds=120)


def call(
    breakers: CircuitBreakers, outcome: Outcome, policy: BreakerPolicy = POLICY, circuit: str = "search"
) -> Admission:
    admission = breakers.admit(circuit, policy, token=f"t{time.monotonic_ns()}")
    if admission.is_admitted:
        breakers.report(admission, outcome)
    return admission


def probe(breakers: CircuitBreakers, token: str, policy: BreakerPolicy = QUICK) -> Admission:
    """The first probe after the open time."""

    def admitted() -> Admission | None:
        admission = breakers.admit("search", policy, token=token)
        return admission if admission.is_admitted else None

    found = wait_until(admitted, "the open time is over")
    assert found is not None and found.is_probe
    return found


def state_of(breakers: CircuitBreakers, circuit: str = "search") -> CircuitState:
    return {status.circuit: status.state for status in breakers.states()}[circuit]


# -- one circuit for many processes --------------------------------------------------------


@pytest.mark.usefixtures("asks_each_time")
def test_failures_of_all_processes_add_up_and_all_are_refused(
    circuit_server: RedisServer, make_breakers: MakeBreakers
) -> None:
    fleet = [make_breakers(circuit_server.url()) for _ in range(4)]
    for breakers in fleet[:3]:
        assert call(breakers, DOWN).verdict is Verdict.ADMITTED
    before = datetime.now(UTC)
    for breakers in fleet:
        refused = call(breakers, SUCCESS)
        assert refused.verdict is Verdict.REFUSED
        assert refused.is_shared
        assert refused.reason == "failures in a row: 3 (http:503)"
        assert refused.wait_seconds is not None and 20 < refused.wait_seconds <= 60
        assert refused.since is not None and refused.retry_at is not None
        assert refused.retry_at - refused.since == timedelta(seconds=60)
        assert abs(refused.since - before) < timedelta(seconds=40)


def test_a_success_anywhere_ends_the_row_of_failures(circuit_server: RedisServer, make_breakers: MakeBreakers) -> None:
    one, other = make_breakers(circuit_server.url()), make_breakers(circuit_server.url())
    policy = replace(POLICY, failure_rate=1.0)
    for _ in range(5):
        call(one, DOWN, policy)
        call(one, DOWN, policy)
        call(other, SUCCESS, policy)
    assert state_of(one) is CircuitState.CLOSED


def test_a_tool_that_fails_four_times_of_five_trips_by_its_rate(breakers: CircuitBreakers) -> None:
    """pybreaker never trips on this."""
    policy = replace(POLICY, consecutive_failures=100)
    calls = 0
    while call(breakers, SUCCESS if calls % 5 == 4 else DOWN, policy).is_admitted:
        calls += 1
    assert calls == 11, "ten outcomes must be there, and the tenth was a success"
    (status,) = breakers.states()
    assert status.reason == "failure rate: 81 % of 11 calls (http:503)"


def test_ignored_errors_neither_trip_nor_end_a_row_nor_fill_the_window(breakers: CircuitBreakers) -> None:
    policy = replace(POLICY, ignore=("http:404",), min_calls=4, failure_rate=0.1, consecutive_failures=3)
    missing = failure({"http:404", "http:4xx"})
    for _ in range(20):
        call(breakers, missing, policy)
    assert call(breakers, DOWN, policy).verdict is Verdict.ADMITTED
    call(breakers, missing, policy)
    call(breakers, DOWN, policy)
    assert state_of(breakers) is CircuitState.CLOSED
    call(breakers, DOWN, policy)
    assert state_of(breakers) is CircuitState.OPEN


def test_what_the_server_asks_for_sets_the_open_time(breakers: CircuitBreakers) -> None:
    for _ in range(3):
        call(breakers, OVERLOADED)
    for _ in range(3):
        call(breakers, failure({"http:429"}, retry_after_seconds=0), circuit="other")
    other, search = breakers.states()
    assert search.since is not None and search.retry_at == search.since + timedelta(seconds=120)
    assert other.since is not None and other.retry_at == other.since + timedelta(seconds=1), "not at once"


def test_open_times_grow_at_each_failed_probe_up_to_the_cap(breakers: CircuitBreakers) -> None:
    policy = replace(QUICK, open_base_seconds=0.05, open_cap_seconds=0.15)
    heard: list[CircuitChange] = []
    breakers.subscribe(heard.append)
    for _ in range(3):
        call(breakers, DOWN, policy)
    for number in range(3):
        breakers.report(probe(breakers, f"p{number}", policy), DOWN)
    wait_until(lambda: len(heard) >= 7, "all moves are told")
    opened = [change for change in heard if change.target is CircuitState.OPEN]
    assert [change.until - change.at for change in opened if change.until is not None] == [
        timedelta(seconds=seconds) for seconds in (0.05, 0.1, 0.15, 0.15)
    ]


def test_open_times_are_spread_by_the_jitter(breakers: CircuitBreakers) -> None:
    """Or many circuits of one cause would all be probed at once."""
    policy = replace(POLICY, consecutive_failures=1, open_base_seconds=100, open_jitter=0.2)
    waits = []
    for number in range(30):
        call(breakers, DOWN, policy, f"c{number}")
        waits.append(call(breakers, SUCCESS, policy, f"c{number}").wait_seconds or 0)
    assert all(79 < wait <= 100 for wait in waits)
    assert max(waits) - min(waits) > 5


@pytest.mark.parametrize(("closed_seconds", "requests"), [(0.0, 2), (1000.0, 1)])
def test_a_guarded_call_takes_two_round_trips_and_one_while_the_circuit_is_known_as_closed(
    breakers: CircuitBreakers, monkeypatch: pytest.MonkeyPatch, closed_seconds: float, requests: int
) -> None:
    """How long they take is measured by ``benchmarks.breakers``."""
    monkeypatch.setattr(circuit_decisions, "CLOSED_SECONDS", closed_seconds)
    with breakers.guard("search", POLICY):
        pass
    link = breakers._link
    assert link is not None
    sent: list[str] = []
    run = link.run
    link.run = lambda script, key, arguments, **limit: (
        sent.append(script.name)
        or run(  # type: ignore[method-assign,func-returns-value]
            script, key, arguments, **limit
        )
    )
    with breakers.guard("search", POLICY):
        pass
    assert sent == ["circuit.lua"] * requests


# -- probes -----------------------------------------------------------------------------------


def test_one_probe_at_a_time_in_the_fleet_and_its_success_closes(
    circuit_server: RedisServer, make_breakers: MakeBreakers
) -> None:
    fleet = [make_breakers(circuit_server.url()) for _ in range(3)]
    for _ in range(3):
        call(fleet[0], DOWN, QUICK)
    admission = probe(fleet[0], "first")
    for breakers in fleet:
        refused = breakers.admit("search", QUICK, token="another")
        assert refused.verdict is Verdict.REFUSED
        assert refused.reason == "a probe is under way"
        assert refused.wait_seconds is not None and 0 < refused.wait_seconds <= 10
    fleet[1].report(admission, SUCCESS)  # whoever reports
    assert [call(breakers, SUCCESS).verdict for breakers in fleet] == [Verdict.ADMITTED] * 3


def test_several_probes_at_a_time_and_as_many_successes_if_the_policy_says_so(breakers: CircuitBreakers) -> None:
    policy = replace(QUICK, probes=2)
    for _ in range(3):
        call(breakers, DOWN, policy)
    first = probe(breakers, "first", policy)
    second = breakers.admit("search", policy, token="second")
    assert second.is_probe
    assert not breakers.admit("search", policy, token="third").is_admitted
    breakers.report(first, SUCCESS)
    assert state_of(breakers) is CircuitState.HALF_OPEN
    breakers.report(second, SUCCESS)
    assert state_of(breakers) is CircuitState.CLOSED


def test_a_probe_that_says_nothing_gives_its_place_to_the_next(breakers: CircuitBreakers) -> None:
    for _ in range(3):
        call(breakers, DOWN, QUICK)
    breakers.report(probe(breakers, "first"), NEUTRAL)
    assert breakers.admit("search", QUICK, token="second").is_probe


def test_the_token_of_a_probe_expires_unless_the_heartbeat_renews_it(
    circuit_server: RedisServer, make_breakers: MakeBreakers
) -> None:
    dead, alive = (make_breakers(circuit_server.url(), probe_seconds=60) for _ in range(2))
    clock = ServerClock(dead, alive)
    for _ in range(3):
        call(dead, DOWN, QUICK)
    lost = probe(dead, "lost")
    assert not alive.admit("search", QUICK, token="kept").is_admitted
    clock.skip(60)
    kept = alive.admit("search", QUICK, token="kept")
    assert kept.is_probe
    for _ in range(9):
        clock.skip(10)
        alive.renew(["kept", "of another attempt"])
        assert not dead.admit("search", QUICK, token="third").is_admitted
    dead.report(lost, DOWN)
    assert state_of(alive) is CircuitState.HALF_OPEN, "it had lost its place"
    alive.report(kept, SUCCESS)
    assert state_of(alive) is CircuitState.CLOSED


def test_an_inline_probe_is_renewed_as_long_as_its_block_lasts(
    circuit_server: RedisServer, make_breakers: MakeBreakers
) -> None:
    one, other = (make_breakers(circuit_server.url(), probe_seconds=60) for _ in range(2))
    clock = ServerClock(one, other)
    for _ in range(3):
        call(one, DOWN, QUICK)
    clock.skip(1)
    with one.guard("search", QUICK):
        for _ in range(9):
            clock.skip(10)
            one.renew()
            assert not other.admit("search", QUICK, token="third").is_admitted
    assert state_of(one) is CircuitState.CLOSED


def test_a_late_outcome_of_a_former_epoch_is_ignored(breakers: CircuitBreakers) -> None:
    late = [breakers.admit("search", QUICK, token=f"late{number}") for number in range(4)]
    for _ in range(3):
        call(breakers, DOWN, QUICK)
    breakers.report(late[0], SUCCESS)
    assert state_of(breakers) is CircuitState.OPEN
    admission = probe(breakers, "probe")
    breakers.report(late[1], DOWN)
    assert state_of(breakers) is CircuitState.HALF_OPEN
    breakers.report(admission, SUCCESS)
    breakers.report(admission, DOWN)
    for _ in range(2):
        breakers.report(late[2], DOWN)
    assert (breakers.states()[0].state, breakers.states()[0].consecutive_failures) == (CircuitState.CLOSED, 0)


# -- moves ------------------------------------------------------------------------------------


def test_each_move_is_told_once_in_the_whole_fleet(circuit_server: RedisServer, make_breakers: MakeBreakers) -> None:
    heard: list[CircuitChange] = []
    fleet = [make_breakers(circuit_server.url()) for _ in range(4)]
    for breakers in fleet:
        breakers.subscribe(heard.append)
    policy = replace(QUICK, open_base_seconds=0.002, open_cap_seconds=0.004)

    def hammer(breakers: CircuitBreakers, number: int) -> None:
        for turn in range(150):
            admission = breakers.admit("search", policy, token=f"{number}-{turn}")
            if admission.is_admitted:
                breakers.report(admission, SUCCESS if turn % 7 == number else DOWN)

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(hammer, fleet[number % 4], number) for number in range(8)]:
            done.result()
    for breakers in fleet:
        breakers.close()
    epochs = [change.epoch for change in heard]
    assert len(epochs) > 20
    assert len(set(epochs)) == len(epochs)
    in_order = sorted(heard, key=lambda change: change.epoch)
    assert [change.epoch for change in in_order] == list(range(min(epochs), min(epochs) + len(epochs))), (
        "none is missing"
    )
    for before, after in pairwise(in_order):
        assert before.target is after.source
        assert after.target in MOVES[after.source]
        assert after.is_shared


def test_a_move_says_what_happened_when_and_why(breakers: CircuitBreakers) -> None:
    heard: list[CircuitChange] = []
    breakers.subscribe(heard.append)
    for _ in range(3):
        call(breakers, DOWN)
    wait_until(lambda: heard, "the move is told")
    (change,) = heard
    assert (change.circuit, change.source, change.target) == ("search", CircuitState.CLOSED, CircuitState.OPEN)
    assert change.reason == "failures in a row: 3 (http:503)"
    assert change.until == change.at + timedelta(seconds=60)


def test_a_listener_that_fails_disturbs_nobody(breakers: CircuitBreakers, caplog: pytest.LogCaptureFixture) -> None:
    heard: list[CircuitChange] = []

    def fails(change: CircuitChange) -> None:
        raise RuntimeError("the store is away")

    breakers.subscribe(fails)
    breakers.subscribe(heard.append)
    for _ in range(3):
        call(breakers, DOWN)
    wait_until(lambda: heard, "the move is told")
    assert "a listener of circuit search failed" in caplog.text


# -- by hand ----------------------------------------------------------------------------------


def test_a_circuit_can_be_opened_closed_and_reset_by_hand(breakers: CircuitBreakers) -> None:
    heard: list[CircuitChange] = []
    breakers.subscribe(heard.append)
    breakers.force_open("search", reason="maintenance")
    refused = call(breakers, SUCCESS)
    assert (refused.verdict, refused.retry_at, refused.wait_seconds) == (Verdict.REFUSED, None, None)
    assert refused.reason == "maintenance"
    breakers.force_open("search", 600)
    refused = call(breakers, SUCCESS)
    assert refused.wait_seconds is not None and 500 < refused.wait_seconds <= 600
    breakers.force_close("search")
    assert call(breakers, DOWN).verdict is Verdict.ADMITTED
    breakers.force_close("search")
    assert breakers.states()[0].consecutive_failures == 1, "closing what is closed leaves its counts alone"
    breakers.reset("search")
    assert breakers.states()[0].consecutive_failures == 0
    assert [(change.source, change.target, change.reason) for change in heard] == [
        (CircuitState.CLOSED, CircuitState.OPEN, "maintenance"),
        (CircuitState.OPEN, CircuitState.OPEN, "opened by hand"),
        (CircuitState.OPEN, CircuitState.CLOSED, "closed by hand"),
    ]


def test_a_circuit_opened_by_hand_for_a_while_is_probed_afterwards(breakers: CircuitBreakers) -> None:
    breakers.force_open("search", 0.05)
    breakers.report(probe(breakers, "first", POLICY), SUCCESS)
    assert state_of(breakers) is CircuitState.CLOSED
    breakers.force_open("search", 0)
    assert breakers.admit("search", POLICY, token="t").is_probe


def test_the_list_of_circuits_shows_those_of_the_namespace_by_name(
    circuit_server: RedisServer, make_breakers: MakeBreakers
) -> None:
    breakers = make_breakers(circuit_server.url())
    other = make_breakers(circuit_server.url(), namespace="another-team")
    for circuit in ("web search", "crm:ü", "provider:openai"):
        call(breakers, SUCCESS, circuit=circuit)
    call(other, DOWN)
    assert [status.circuit for status in breakers.states()] == ["crm:ü", "provider:openai", "web search"]
    (theirs,) = other.states()
    assert (theirs.circuit, theirs.state, theirs.consecutive_failures) == ("search", CircuitState.CLOSED, 1)


def test_what_is_done_by_hand_is_not_done_elsewhere_when_redis_is_away(make_breakers: MakeBreakers) -> None:
    nowhere = make_breakers("redis://127.0.0.1:1/0")
    with pytest.raises(CircuitStoreUnreachable, match="Nothing was changed"):
        nowhere.force_open("search")
    with pytest.raises(CircuitStoreUnreachable, match="set PAIDONCE_REDIS_URL"):
        make_breakers(None).states()


# -- inline calls -------------------------------------------------------------------------------


def test_an_open_circuit_raises_with_target_since_and_retry_at_and_the_error_survives_json(
    breakers: CircuitBreakers,
) -> None:
    for _ in range(3):
        call(breakers, DOWN)
    with pytest.raises(CircuitOpen) as caught, breakers.guard("search", POLICY, target="web_search"):
        pytest.fail("it may not be called")
    again = error_from_json(json.loads(json.dumps(caught.value.to_json())))
    assert isinstance(again, CircuitOpen)
    for error in (caught.value, again):
        assert error.target == "web_search"
        assert error.since is not None and error.retry_at == error.since + timedelta(seconds=60)
        assert "failures in a row: 3 (http:503)" in error.message


def test_inline_calls_and_steps_share_a_circuit(breakers: CircuitBreakers) -> None:
    for _ in range(3):
        with pytest.raises(ConnectionError), breakers.guard("search", POLICY):
            raise ConnectionError("refused")
    assert not breakers.admit("search", POLICY, token="a step").is_admitted


def test_the_servers_retry_after_is_taken_from_the_classifier(breakers: CircuitBreakers) -> None:
    class Overloaded(Exception):
        retry_after_seconds = 200.0

    for _ in range(3):
        with pytest.raises(Overloaded), breakers.guard("search", POLICY):
            raise Overloaded
    assert call(breakers, SUCCESS).wait_seconds == pytest.approx(200, abs=2)


@pytest.mark.parametrize("control", [Retry, Ignore, Reject, SoftTimeLimitExceeded, asyncio.CancelledError])
def test_control_exceptions_of_celery_and_cancellations_count_as_nothing(
    breakers: CircuitBreakers, control: type[BaseException]
) -> None:
    for _ in range(2):
        call(breakers, DOWN)
    for _ in range(5):
        with pytest.raises(control), breakers.guard("search", POLICY):
            raise control
    (status,) = breakers.states()
    assert (status.state, status.consecutive_failures) == (CircuitState.CLOSED, 2), "no success either"
    call(breakers, DOWN)
    assert state_of(breakers) is CircuitState.OPEN


def test_a_circuit_found_open_further_in_does_not_trip_the_outer_one(breakers: CircuitBreakers) -> None:
    breakers.force_open("inner")
    for _ in range(5):
        with pytest.raises(CircuitOpen), breakers.guard("outer", POLICY), breakers.guard("inner", POLICY):
            pytest.fail("it may not be called")
    assert state_of(breakers, "outer") is CircuitState.CLOSED


def test_a_guard_is_for_one_call(breakers: CircuitBreakers) -> None:
    guard = breakers.guard("search", POLICY)
    with guard, pytest.raises(RuntimeError, match="for one call"), guard:
        pytest.fail("entered twice")


def test_async_calls_are_guarded_and_do_not_block_the_loop(breakers: CircuitBreakers) -> None:
    async def failing() -> None:
        async with breakers.guard("search", POLICY):
            await asyncio.sleep(0.05)
            raise ConnectionError

    async def three_at_once() -> list[BaseException | None]:
        return await asyncio.gather(*(failing() for _ in range(3)), return_exceptions=True)

    results = asyncio.run(three_at_once())
    assert [type(result) for result in results] == [ConnectionError] * 3
    assert state_of(breakers) is CircuitState.OPEN

    async def refused() -> None:
        async with breakers.guard("search", POLICY):
            pytest.fail("it may not be called")

    with pytest.raises(CircuitOpen):
        asyncio.run(refused())


def test_cancelling_an_async_probe_gives_its_place_to_the_next(breakers: CircuitBreakers) -> None:
    for _ in range(3):
        call(breakers, DOWN, QUICK)
    threading.Event().wait(0.1)

    async def cancelled_inside() -> None:
        entered = asyncio.Event()

        async def body() -> None:
            async with breakers.guard("search", QUICK):
                entered.set()
                await asyncio.sleep(60)

        task = asyncio.create_task(body())
        await entered.wait()
        assert state_of(breakers) is CircuitState.HALF_OPEN
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def cancelled_while_asking() -> None:
        for _ in range(20):
            task = asyncio.create_task(breakers.guard("search", QUICK).__aenter__())
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(cancelled_inside())
    asyncio.run(cancelled_while_asking())
    wait_until(lambda: breakers.admit("search", QUICK, token="next").is_probe, "the place is free again", 3)


def test_closing_a_coroutine_inside_a_probe_gives_its_place_to_the_next(breakers: CircuitBreakers) -> None:
    """As the garbage collector does with what an event loop left behind; nothing may be awaited then."""

    async def body() -> None:
        async with breakers.guard("search", QUICK):
            await asyncio.get_running_loop().create_future()

    async def step_by_hand() -> None:
        coroutine = body()
        asked = coroutine.send(None)
        asked._asyncio_future_blocking = False
        await asked
        coroutine.send(None)
        assert state_of(breakers) is CircuitState.HALF_OPEN
        coroutine.close()

    breakers.force_open("search", 0)
    asyncio.run(step_by_hand())
    wait_until(lambda: breakers.admit("search", QUICK, token="next").is_probe, "the place is free again", 3)


def test_a_cancelled_task_still_reports_how_its_call_ended(breakers: CircuitBreakers) -> None:
    """The call failed, and the task is cancelled while Redis is told of it."""

    async def fail_and_be_cancelled() -> None:
        async def body() -> None:
            async with breakers.guard("search", POLICY):
                asyncio.get_running_loop().call_soon(task.cancel)
                raise ConnectionError

        task = asyncio.create_task(body())
        with pytest.raises((asyncio.CancelledError, ConnectionError)):
            await task

    for _ in range(3):
        asyncio.run(fail_and_be_cancelled())
    wait_until(lambda: state_of(breakers) is CircuitState.OPEN, "all three were counted")


def test_where_no_thread_is_to_be_had_an_outcome_counts_once(
    make_breakers: MakeBreakers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An executor has it in its queue when it begins a thread, and the next thread finds it there."""
    breakers, start, report = make_breakers(None), threading.Thread.start, CircuitBreakers.report
    reported: list[str] = []

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    def note(self: CircuitBreakers, admission: Admission, outcome: Outcome) -> None:
        reported.append(admission.token)
        report(self, admission, outcome)

    monkeypatch.setattr(CircuitBreakers, "report", note)
    first, second = (breakers.admit("search", POLICY, token=token) for token in ("first", "second"))
    monkeypatch.setattr(threading.Thread, "start", refuse)
    told = breakers.report_soon(first, DOWN)
    assert told.done(), "by this thread"
    monkeypatch.setattr(threading.Thread, "start", start)
    breakers.report_soon(second, DOWN).result(10)
    breakers.close()  # waits for what is in the queue
    assert reported == ["first", "second"]


# -- servers, addresses, processes --------------------------------------------------------------


def test_keys_expire_unless_a_circuit_was_opened_for_good(
    circuit_server: RedisServer, make_breakers: MakeBreakers, namespace: str
) -> None:
    breakers = make_breakers(circuit_server.url())
    call(breakers, SUCCESS)
    breakers.retry_allowed("search", RetryBudgetPolicy())
    with redis.Redis.from_url(circuit_server.url()) as client:
        keys = sorted(key.decode() for key in client.scan_iter(f"paidonce:{namespace}:*") if b"check" not in key)
        assert keys == [f"paidonce:{namespace}:breaker:search", f"paidonce:{namespace}:retry_budget:search"]
        assert all(0 < client.ttl(key) <= 86_400 for key in keys)
        breakers.force_open("search")
        assert client.ttl(f"paidonce:{namespace}:breaker:search") == -1
        breakers.force_close("search")
        assert client.ttl(f"paidonce:{namespace}:breaker:search") > 0


def test_a_server_that_forgot_the_scripts_is_told_them_again(
    circuit_server: RedisServer, make_breakers: MakeBreakers
) -> None:
    breakers = make_breakers(circuit_server.url())
    call(breakers, DOWN)
    with redis.Redis.from_url(circuit_server.url()) as client:
        client.script_flush()
        assert client.script_exists(CIRCUIT.sha) == [False]
        assert call(breakers, DOWN).is_shared
        assert client.script_exists(CIRCUIT.sha) == [True]
    assert breakers.states()[0].consecutive_failures == 2


def test_what_is_unreadable_counts_as_unknown(
    circuit_server: RedisServer, make_breakers: MakeBreakers, namespace: str
) -> None:
    with redis.Redis.from_url(circuit_server.url()) as client:
        client.set(f"paidonce:{namespace}:breaker:search", b"\xc1 what is this")
    assert call(make_breakers(circuit_server.url()), DOWN).verdict is Verdict.ADMITTED


@pytest.mark.parametrize(
    "options",
    [
        "?decode_responses=True",
        "?socket_timeout=60&retry_on_timeout=True&health_check_interval=1&protocol=3&max_connections=1",
        "",
    ],
)
def test_the_address_may_say_how_other_clients_are_to_behave(
    circuit_server: RedisServer, make_breakers: MakeBreakers, options: str
) -> None:
    breakers = make_breakers(circuit_server.url() + options)
    for _ in range(3):
        assert call(breakers, failure({"émile"})).is_shared
    assert call(breakers, SUCCESS).reason == "failures in a row: 3 (émile)"
    assert state_of(breakers) is CircuitState.OPEN


def test_the_embedded_valkey_keeps_circuits(tmp_path: Path, make_breakers: MakeBreakers) -> None:
    home = tmp_path / "home"
    settings = load_settings(home=home)
    breakers = CircuitBreakers.of(settings, by_type)
    try:
        assert ensure_embedded_valkey(home).startswith("redis+socket://")
        for _ in range(3):
            assert call(breakers, DOWN).is_shared
        assert state_of(breakers) is CircuitState.OPEN
        assert not call(make_breakers(ensure_embedded_valkey(home), namespace="default"), DOWN).is_admitted
    finally:
        breakers.close()
        stop_embedded(home)


@pytest.fixture
def tls_server(installed_redis_program: Path, tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis that speaks TLS only."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    server = RedisServer(installed_redis_program, tmp_path)
    process = subprocess.Popen(
        [
            *(installed_redis_program, "--port", "0", "--tls-port", str(server.port), "--bind", "127.0.0.1"),
            *("--tls-cert-file", key.with_name("certificate.pem"), "--tls-key-file", key, "--tls-auth-clients", "no"),
            *("--dir", tmp_path, "--save", ""),
        ],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        yield server
    finally:
        process.kill()
        process.wait()


@pytest.mark.service
def test_tls_works_with_kombus_words_for_it(
    tls_server: RedisServer, tmp_path: Path, make_breakers: MakeBreakers
) -> None:
    url = f"rediss://127.0.0.1:{tls_server.port}/0?ssl_cert_reqs=CERT_REQUIRED&ssl_ca_certs={tmp_path}/certificate.pem"
    breakers = make_breakers(url)
    wait_until(lambda: call(breakers, SUCCESS).is_shared, "the server answers")
    for _ in range(3):
        assert call(breakers, DOWN).is_shared
    assert state_of(breakers) is CircuitState.OPEN


def test_an_address_that_cannot_be_read_is_named_with_its_setting_and_without_its_password() -> None:
    with pytest.raises(ConfigurationError, match="PAIDONCE_REDIS_URL") as caught:
        CircuitBreakers("redis://me:secret@host:port/0", namespace="n", classify=by_type)
    assert "secret" not in str(caught.value)


FORKING_PROGRAM = """
import os, sys, threading
from paidonce.policies import BreakerPolicy
from paidonce_workers.breakers import CircuitBreakers, Failure, circuit_breakers, circuit_decisions, failure

circuit_decisions.LIMIT_SECONDS = circuit_breakers.BY_HAND_SECONDS = 20.0  # busy is not away
breakers = CircuitBreakers(sys.argv[1], namespace=sys.argv[2], classify=lambda error: Failure(kinds=frozenset()))
policy = BreakerPolicy(consecutive_failures=10**6, min_calls=10**6)
stopping = threading.Event()

def work(times):
    for number in range(times):
        if stopping.is_set():
            return
        admission = breakers.admit("search", policy, token=str(number))
        assert admission.is_shared
        breakers.report(admission, failure(()))

threads = [threading.Thread(target=work, args=(10**9,)) for _ in range(2)]
for thread in threads:
    thread.start()
children = []
for _ in range(4):
    pid = os.fork()
    if pid == 0:
        try:
            work(50)
            os._exit(0)
        except BaseException as error:
            os.write(2, repr(error).encode())
            os._exit(1)
    children.append(pid)
codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
stopping.set()
for thread in threads:
    thread.join()
print(codes, breakers.states()[0].consecutive_failures >= 200)
breakers.close()
"""


def test_a_forked_child_has_connections_of_its_own(circuit_server: RedisServer, namespace: str) -> None:
    """As prefork does, and worse: in the middle of its threads' first connections."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKING_PROGRAM, circuit_server.url(), namespace],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.stdout.strip() == "[0, 0, 0, 0] True", done.stderr
