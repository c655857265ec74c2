"""A caller that is interrupted at any bytecode leaves nothing behind that hurts the others."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count

import pytest

from paidonce.policies import BreakerPolicy
from paidonce_models.errors import CircuitOpen
from paidonce_workers.bodies.interrupt import CancelInterrupt, ThreadScope, TimeoutInterrupt, call_interruptibly
from paidonce_workers.breakers import SUCCESS, CircuitBreakers
from paidonce_workers.breakers.redis_link import MOST_CONNECTIONS
from tests.services.valkey import RedisServer
from tests.services.waiting import wait_until
from tests.workers.breakers.conftest import MakeBreakers
from tests.workers.breakers.striking import Struck, strike_everywhere

NEVER = BreakerPolicy(consecutive_failures=10**6, min_calls=10**6)
AT_ONCE = BreakerPolicy(consecutive_failures=1, open_base_seconds=60)
DELAY_SECONDS = 30.0
"""Longer than a call may wait for Redis here: for ever is what a lock that is left locked would take."""

OURS = ("/breakers/", "/bodies/interrupt.py", "/contextlib.py", "/threading.py", "/queue.py", "/concurrent/futures/")
"""Where a lock could be left locked; the places in redis-py and the rest of Python are many times as many."""
ANYWHERE = ("",)

pytestmark = [pytest.mark.timeout(200), pytest.mark.usefixtures("patient")]
places = pytest.mark.parametrize(
    "within",
    [OURS, pytest.param(ANYWHERE, marks=[pytest.mark.slow, pytest.mark.timeout(600)])],
    ids=["ours", "anywhere"],
)


@pytest.fixture
def breakers(redis_server: RedisServer, make_breakers: MakeBreakers) -> CircuitBreakers:
    made = make_breakers(redis_server.url(), probe_seconds=1.0)
    made.start()
    made.report(made.admit("warm-up", NEVER, token="t"), SUCCESS)
    return made


def guarded(breakers: CircuitBreakers) -> None:
    with breakers.guard("search", NEVER):
        pass


def asked(breakers: CircuitBreakers) -> None:
    breakers.report(breakers.admit("search", NEVER, token="t"), SUCCESS)


def guarded_in_a_loop(breakers: CircuitBreakers) -> None:
    async def body() -> None:
        async with breakers.guard("search", NEVER):
            pass

    asyncio.run(body())


Way = Callable[[CircuitBreakers], None]
ways = pytest.mark.parametrize("way", [guarded, asked])


def expect_that_others_get_through(breakers: CircuitBreakers, where: str) -> None:
    began = time.monotonic()
    admission = breakers.admit("others", NEVER, token="t")
    breakers.report(admission, SUCCESS)
    assert admission.is_shared, where
    assert time.monotonic() - began < DELAY_SECONDS, where


def expect_that_coroutines_get_through(breakers: CircuitBreakers) -> None:
    async def one() -> None:
        async with breakers.guard("others", NEVER):
            pass

    async def many() -> None:
        async with asyncio.timeout(60):
            await asyncio.gather(*(one() for _ in range(16)))

    asyncio.run(many())


def live_connections(breakers: CircuitBreakers) -> int:
    link = breakers._link
    assert link is not None
    gc.collect()
    return len(link._live)


# -- at chosen bytecodes ----------------------------------------------------------------------


@places
@ways
def test_an_interrupted_call_hurts_no_other(breakers: CircuitBreakers, way: Way, within: tuple[str, ...]) -> None:
    victims = 0
    for victim in strike_everywhere(lambda: way(breakers), within=within):
        victims += 1
        assert victim.ended_with is Struck, f"swallowed in {victim.struck_in}"
        expect_that_others_get_through(breakers, victim.struck_in)
    # None in most of it, where interrupts are deferred; CPython 3.13 looks for interrupts in fewer places.
    assert victims > 3
    expect_that_coroutines_get_through(breakers)
    assert live_connections(breakers) <= 4


@places
@ways
def test_an_interrupted_probe_is_not_renewed(breakers: CircuitBreakers, way: Way, within: tuple[str, ...]) -> None:
    """Its place in Redis then expires, and the next probe follows."""
    probes = breakers._probes

    breakers.force_open("search", 0)
    for victim in strike_everywhere(lambda: way(breakers), within=within):
        assert victim.ended_with is Struck, f"swallowed in {victim.struck_in}"
        assert probes.to_renew(()) == {}, f"renewed for nobody, struck in {victim.struck_in}"
        breakers.force_open("search", 0)
    expect_that_others_get_through(breakers, "at the end")


def test_an_interrupted_call_that_trips_the_circuit_silences_no_listener(breakers: CircuitBreakers) -> None:
    heard: list[str] = []
    breakers.subscribe(lambda change: heard.append(change.circuit))
    names = (f"c{number}" for number in count())

    def trip() -> None:
        with breakers.guard(next(names), AT_ONCE):
            raise ConnectionError

    for victim in strike_everywhere(trip, within=OURS):
        expect_that_others_get_through(breakers, victim.struck_in)
    breakers.force_open("last")
    assert heard[-1] == "last"


@places
def test_interrupted_first_calls_leave_breakers_that_connect(
    redis_server: RedisServer, make_breakers: MakeBreakers, within: tuple[str, ...]
) -> None:
    """The threads that connect and that tell listeners are begun by callers."""
    made: list[CircuitBreakers] = []

    def first_call() -> None:
        guarded(made[-1])

    def fresh() -> None:
        made.append(make_breakers(redis_server.url()))

    fresh()
    for victim in strike_everywhere(first_call, within=within):
        wait_until(lambda: made[-1].admit("others", NEVER, token="t").is_shared, f"after {victim.struck_in}")
        made[-1].close()
        fresh()


@places
def test_interrupted_calls_that_find_redis_away_leave_breakers_that_go_on_and_say_so_once(
    make_breakers: MakeBreakers, caplog: pytest.LogCaptureFixture, within: tuple[str, ...]
) -> None:
    made: list[CircuitBreakers] = []

    def call() -> None:
        guarded(made[-1])

    def fresh() -> None:
        made.append(make_breakers("redis://127.0.0.1:1/0"))
        caplog.clear()

    fresh()
    for victim in strike_everywhere(call, within=within):
        began = time.monotonic()
        guarded(made[-1])
        assert time.monotonic() - began < DELAY_SECONDS, victim.struck_in
        made[-1].close()
        assert [getattr(record, "event", "") for record in caplog.records] == ["breaker_store_away"], victim.struck_in
        fresh()


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")  # struck between the two
def test_an_interrupted_event_loop_does_not_hold_the_threads_of_coroutines(
    breakers: CircuitBreakers,
) -> None:
    """``asyncio.run`` in a ``def`` step runs in a thread that may be interrupted."""
    victims = 0
    for _ in strike_everywhere(lambda: guarded_in_a_loop(breakers), within=OURS):
        victims += 1
        expect_that_coroutines_get_through(breakers)
    assert victims > 5  # CPython 3.13 looks for interrupts in fewer places


# -- real ones, at random ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "seconds", [2.0, pytest.param(15.0, marks=[pytest.mark.slow, pytest.mark.timeout(200)])], ids=["few", "many"]
)
def test_real_interrupts_at_random_moments_hurt_nobody(breakers: CircuitBreakers, seconds: float) -> None:
    probing = replace(NEVER, open_base_seconds=0.05, open_cap_seconds=0.05)
    stopping = threading.Event()
    struck = [0]

    def body() -> None:
        for _ in range(50):
            guarded(breakers)
            asked(breakers)
            try:
                with breakers.guard("probed", probing):
                    pass
            except CircuitOpen:
                pass

    def victim() -> None:
        chance = random.Random()
        while not stopping.is_set():
            scope = ThreadScope()
            thrower = threading.Timer(
                chance.uniform(0, 0.004), scope.throw, (chance.choice([TimeoutInterrupt, CancelInterrupt]),)
            )
            thrower.daemon = True
            thrower.start()
            try:
                call_interruptibly(scope, body)
            except (TimeoutInterrupt, CancelInterrupt):
                struck[0] += 1

    def beat() -> None:
        while not stopping.wait(0.1):
            breakers.renew()
            if not breakers.is_open("probed"):
                breakers.force_open("probed", 0.01)

    with ThreadPoolExecutor(4) as pool:
        working = [pool.submit(act) for act in (victim, victim, victim, beat)]
        try:
            began = time.monotonic()
            while (lasted := time.monotonic() - began) < seconds or (struck[0] <= 2 * seconds and lasted < 60):
                expect_that_others_get_through(breakers, "in the middle")
                time.sleep(0.01)
        finally:
            stopping.set()
        for each in working:
            each.result(timeout=60)
    assert struck[0] > 2 * seconds
    expect_that_coroutines_get_through(breakers)
    assert live_connections(breakers) <= MOST_CONNECTIONS
    breakers.force_open("probed", 0)
    assert wait_until(lambda: breakers.admit("probed", probing, token="next").is_probe, "the next probe", 3)
