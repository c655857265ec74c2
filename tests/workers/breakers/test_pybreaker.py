"""pybreaker 1.4.1 where we lean on it, and the traps in it that our circuits are without, pinned on both sides.

A pybreaker that mends one of its own traps makes a test here fail; then what we put in its place can go.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pybreaker
import pytest

from paidonce.policies import BreakerPolicy
from paidonce_models.errors import CircuitOpen
from paidonce_workers.breakers import CircuitBreakers, CircuitState
from tests.services.valkey import RedisServer
from tests.workers.breakers.conftest import MakeBreakers

pytestmark = pytest.mark.usefixtures("patient")

POLICY = BreakerPolicy(consecutive_failures=3, open_base_seconds=60)


class Down(Exception):
    """The dependency does not work."""


def down() -> None:
    raise Down


def nothing() -> None:
    pass


async def down_async() -> None:
    await asyncio.sleep(0)
    raise Down


@pytest.fixture(params=["redis", "alone"])
def ours(request: pytest.FixtureRequest, make_breakers: MakeBreakers) -> CircuitBreakers:
    """The circuits of the fleet, and those of a process without Redis, which pybreaker counts for."""
    if request.param == "alone":
        return make_breakers(None)
    server: RedisServer = request.getfixturevalue("redis_server")
    return make_breakers(server.url())


def call(breakers: CircuitBreakers, act: Callable[[], object], policy: BreakerPolicy = POLICY) -> None:
    with breakers.guard("search", policy):
        act()


def trip(call_down: Callable[[], object], times: int) -> None:
    for _ in range(times):
        with pytest.raises(Down):
            call_down()


def in_ten_threads(call: Callable[[], object]) -> None:
    with ThreadPoolExecutor(10) as pool:
        for done in [pool.submit(call) for _ in range(10)]:
            done.result()


# -- what we lean on -------------------------------------------------------------------


def test_pybreaker_counts_failures_in_a_row_and_moves() -> None:
    breaker = pybreaker.CircuitBreaker(success_threshold=2, throw_new_error_on_trip=False)
    breaker.fail_max = 2
    trip(lambda: breaker.call(down), 1)
    breaker.call(nothing)
    assert breaker.fail_counter == 0
    trip(lambda: breaker.call(down), 2)
    assert breaker.current_state == pybreaker.STATE_OPEN
    breaker.half_open()
    breaker.call(nothing)
    assert (breaker.current_state, breaker.success_counter) == (pybreaker.STATE_HALF_OPEN, 1)
    breaker.call(nothing)
    assert (breaker.current_state, breaker.fail_counter) == (pybreaker.STATE_CLOSED, 0)
    breaker.half_open()
    trip(lambda: breaker.call(down), 1)
    assert breaker.current_state == pybreaker.STATE_OPEN


def test_our_states_have_pybreakers_names() -> None:
    assert [state.value for state in CircuitState] == [
        pybreaker.STATE_CLOSED,
        pybreaker.STATE_OPEN,
        pybreaker.STATE_HALF_OPEN,
    ]


# -- where ours differ -------------------------------------------------------------------


def test_no_lock_is_held_during_the_call(ours: CircuitBreakers) -> None:
    theirs = pybreaker.CircuitBreaker()
    call(ours, nothing)  # the first connection
    began = time.monotonic()
    in_ten_threads(lambda: theirs.call(time.sleep, 0.02))
    assert time.monotonic() - began >= 0.2, "one after the other"
    all_inside = threading.Barrier(10, timeout=60)
    in_ten_threads(lambda: call(ours, all_inside.wait))


def test_an_async_function_is_guarded_while_it_runs(ours: CircuitBreakers) -> None:
    theirs = pybreaker.CircuitBreaker(fail_max=3)

    async def call_ours() -> None:
        async with ours.guard("search", POLICY):
            await down_async()

    for _ in range(3):
        with pytest.raises(Down):
            asyncio.run(theirs(down_async)())
        with pytest.raises(Down):
            asyncio.run(call_ours())
    assert theirs.current_state == pybreaker.STATE_CLOSED, "pybreaker guards the making of the coroutine"
    assert ours.is_open("search")
    with pytest.raises(CircuitOpen):
        asyncio.run(call_ours())


@pytest.mark.parametrize("error", [KeyboardInterrupt, asyncio.CancelledError, GeneratorExit])
def test_interrupts_do_not_trip(ours: CircuitBreakers, error: type[BaseException]) -> None:
    def interrupted() -> None:
        raise error

    theirs = pybreaker.CircuitBreaker(fail_max=3)
    with pytest.raises(pybreaker.CircuitBreakerError):
        for _ in range(3):
            with pytest.raises(error):
                theirs.call(interrupted)
    for _ in range(10):
        with pytest.raises(error):
            call(ours, interrupted)
    assert not ours.is_open("search")


def test_an_ignored_error_does_not_end_a_row_of_failures(ours: CircuitBreakers) -> None:
    def missing() -> None:
        raise KeyError

    theirs = pybreaker.CircuitBreaker(fail_max=3, exclude=[KeyError])
    policy = BreakerPolicy(consecutive_failures=3, ignore=("KeyError",))
    for call_it in (theirs.call, lambda act: call(ours, act, policy)):
        trip(lambda call_it=call_it: call_it(down), 2)  # type: ignore[misc]
        with pytest.raises(KeyError):
            call_it(missing)
    assert theirs.fail_counter == 0, "pybreaker counts it as a success"
    trip(lambda: call(ours, down, policy), 1)
    assert ours.is_open("search")


def test_the_calls_own_error_comes_out_when_it_trips(ours: CircuitBreakers) -> None:
    theirs = pybreaker.CircuitBreaker(fail_max=1)
    with pytest.raises(pybreaker.CircuitBreakerError):
        theirs.call(down)
    trip(lambda: call(ours, down, BreakerPolicy(consecutive_failures=1)), 1)


def test_a_stop_iteration_in_the_block_comes_out(ours: CircuitBreakers) -> None:
    """``contextlib`` around a generator that ends takes it for its own."""
    with pybreaker.CircuitBreaker().calling():
        next(iter(()))
    with pytest.raises(StopIteration), ours.guard("search", POLICY):
        next(iter(()))


def test_half_open_lets_one_through_at_a_time(ours: CircuitBreakers) -> None:
    theirs = pybreaker.CircuitBreaker()
    theirs.half_open()
    with theirs.calling(), theirs.calling():
        pass
    policy = BreakerPolicy(consecutive_failures=1, open_base_seconds=0.01, open_cap_seconds=0.01)
    trip(lambda: call(ours, down, policy), 1)
    time.sleep(0.02)
    with ours.guard("search", policy), pytest.raises(CircuitOpen), ours.guard("search", policy):
        pytest.fail("a probe is under way")
    assert not ours.is_open("search")
