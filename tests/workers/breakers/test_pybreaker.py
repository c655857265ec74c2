"""pybreaker 1.4.1 where we lean on it, and where ours differs from it: each difference is pinned on both sides.

A pybreaker that mends one of its own traps makes a test here fail; then ours can go.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pybreaker
import pytest

from paidonce.policies import BreakerPolicy
from paidonce_models.errors import CircuitOpen
from paidonce_workers.breakers import CircuitBreakers, CircuitState
from tests.services.waiting import wait_until

POLICY = BreakerPolicy(consecutive_failures=3, open_base_seconds=60)


class Down(Exception):
    """The dependency does not work."""


def down() -> None:
    raise Down


async def down_async() -> None:
    await asyncio.sleep(0)
    raise Down


def trip(breaker: pybreaker.CircuitBreaker, times: int) -> None:
    for _ in range(times):
        with pytest.raises(Down):
            breaker.call(down)


def seconds_of_ten_threads(call: Callable[[], object]) -> float:
    began = time.monotonic()
    with ThreadPoolExecutor(10) as pool:
        for done in [pool.submit(call) for _ in range(10)]:
            done.result()
    return time.monotonic() - began


# -- what we lean on -------------------------------------------------------------------


def test_a_state_object_runs_the_whole_call_and_tells_the_listeners(breakers: CircuitBreakers) -> None:
    heard: list[str] = []
    moves: list[str] = []

    class Listener(pybreaker.CircuitBreakerListener):
        def before_call(
            self, cb: pybreaker.CircuitBreaker, func: Callable[..., Any], *args: Any, **kwargs: Any
        ) -> None:
            heard.append(f"before {args}")

        def success(self, cb: pybreaker.CircuitBreaker) -> None:
            heard.append("success")

        def failure(self, cb: pybreaker.CircuitBreaker, exc: BaseException) -> None:
            heard.append(f"failure {type(exc).__name__}")

        def state_change(self, cb: pybreaker.CircuitBreaker, old_state: Any, new_state: Any) -> None:
            moves.append(f"{old_state.name} -> {new_state.name}")

    breaker = breakers.breaker("search", POLICY)
    breaker.add_listener(Listener())
    assert breaker.call(lambda number: number + 1, 1) == 2
    trip(breaker, 3)
    with pytest.raises(CircuitOpen):
        breaker.call(down)
    assert heard == [
        *("before (1,)", "success"),
        *("before ()", "failure Down", "before ()", "failure Down", "before ()", "failure Down"),
    ]
    wait_until(lambda: moves, "the move is told")  # where pybreaker has the caller wait for its listeners
    assert moves == ["closed -> open"]


def test_our_breaker_is_pybreakers_with_pybreakers_storage_and_states(breakers: CircuitBreakers) -> None:
    breaker = breakers.breaker("search", POLICY)
    assert isinstance(breaker, pybreaker.CircuitBreaker)
    assert isinstance(breaker.state, pybreaker.CircuitBreakerState)
    assert isinstance(breaker._state_storage, pybreaker.CircuitBreakerStorage)
    assert (breaker.name, breaker.fail_max, breaker.reset_timeout, breaker.success_threshold) == ("search", 3, 60, 1)
    assert (breaker.current_state, breaker.state.name) == (pybreaker.STATE_CLOSED, pybreaker.STATE_CLOSED)
    trip(breaker, 2)
    assert breaker.fail_counter == 2
    trip(breaker, 1)
    assert breaker.current_state == pybreaker.STATE_OPEN
    assert breaker._state_storage.opened_at is not None
    assert [state.value for state in CircuitState] == [
        pybreaker.STATE_CLOSED,
        pybreaker.STATE_OPEN,
        pybreaker.STATE_HALF_OPEN,
    ]


def test_a_shared_circuit_is_not_moved_by_assignment(breakers: CircuitBreakers) -> None:
    breaker = breakers.breaker("search", POLICY)
    with pytest.raises(AttributeError, match="use open"):
        breaker.state = pybreaker.STATE_OPEN  # type: ignore[assignment]
    with pytest.raises(AttributeError, match="moves it by open"):
        breaker._state_storage.state = pybreaker.STATE_OPEN


# -- where it differs --------------------------------------------------------------------


def test_the_lock_is_not_held_during_the_call(breakers: CircuitBreakers) -> None:
    theirs, ours = pybreaker.CircuitBreaker(), breakers.breaker("search", POLICY)
    ours.call(lambda: None)  # the first connection
    assert seconds_of_ten_threads(lambda: theirs.call(time.sleep, 0.1)) >= 1.0
    assert seconds_of_ten_threads(lambda: ours.call(time.sleep, 0.2)) < 1.0


def test_an_async_function_is_guarded_while_it_runs(breakers: CircuitBreakers) -> None:
    async def call_three_times(breaker: pybreaker.CircuitBreaker) -> None:
        decorated = breaker(down_async)
        for _ in range(3):
            with pytest.raises(Down):
                await decorated()

    theirs = pybreaker.CircuitBreaker(fail_max=3)
    asyncio.run(call_three_times(theirs))
    assert theirs.current_state == pybreaker.STATE_CLOSED, "pybreaker guards the making of the coroutine"

    ours = breakers.breaker("search", POLICY)
    asyncio.run(call_three_times(ours))
    assert ours.current_state == pybreaker.STATE_OPEN
    with pytest.raises(CircuitOpen):
        asyncio.run(ours.call(down_async))


@pytest.mark.parametrize("error", [KeyboardInterrupt, asyncio.CancelledError, GeneratorExit])
def test_interrupts_do_not_trip(breakers: CircuitBreakers, error: type[BaseException]) -> None:
    def interrupted() -> None:
        raise error

    theirs, ours = pybreaker.CircuitBreaker(fail_max=3), breakers.breaker("search", POLICY)
    with pytest.raises(pybreaker.CircuitBreakerError):
        for _ in range(3):
            with pytest.raises(error):
                theirs.call(interrupted)
    for _ in range(10):
        with pytest.raises(error):
            ours.call(interrupted)
    assert ours.current_state == pybreaker.STATE_CLOSED


def test_an_ignored_error_does_not_end_a_row_of_failures(breakers: CircuitBreakers) -> None:
    def missing() -> None:
        raise KeyError

    theirs = pybreaker.CircuitBreaker(fail_max=3, exclude=[KeyError])
    ours = breakers.breaker("search", BreakerPolicy(consecutive_failures=3, ignore=("KeyError",)))
    for breaker in (theirs, ours):
        trip(breaker, 2)
        with pytest.raises(KeyError):
            breaker.call(missing)
    assert theirs.fail_counter == 0, "pybreaker counts it as a success"
    assert ours.fail_counter == 2
    assert ours.is_system_error(Down()) and not ours.is_system_error(KeyError())


def test_the_calls_own_error_comes_out_when_it_trips(breakers: CircuitBreakers) -> None:
    theirs = pybreaker.CircuitBreaker(fail_max=1)
    with pytest.raises(pybreaker.CircuitBreakerError):
        theirs.call(down)
    trip(breakers.breaker("search", BreakerPolicy(consecutive_failures=1)), 1)


def test_a_stop_iteration_in_the_block_comes_out(breakers: CircuitBreakers) -> None:
    """``contextlib`` around a generator that ends takes it for its own."""
    with pybreaker.CircuitBreaker().calling():
        next(iter(()))
    with pytest.raises(StopIteration), breakers.breaker("search", POLICY).calling():
        next(iter(()))


def test_a_generator_is_refused_because_nobody_would_hear_how_it_ended(breakers: CircuitBreakers) -> None:
    def numbers() -> Any:
        yield 1

    with pytest.raises(TypeError, match="guard the code that iterates"):
        breakers.breaker("search", POLICY).call(numbers)


def test_a_decorated_function_keeps_its_name(breakers: CircuitBreakers) -> None:
    breaker = breakers.breaker("search", POLICY)

    @breaker()
    def look_up(word: str) -> str:
        """Look it up."""
        return word.upper()

    assert (look_up("a"), look_up.__name__, look_up.__doc__) == ("A", "look_up", "Look it up.")
    with pytest.raises(TypeError, match="expected a function"):
        breaker(__pybreaker_call_async=True)
