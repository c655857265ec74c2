"""Tools that a step calls inside its body: the same circuits as tool steps, raised at the caller, tried in place."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from paidonce import CircuitOpen, agent, step, tool
from paidonce.policies.file.parsing import parse_policies
from paidonce.policies.policy_book import PolicyBook
from paidonce_models.states import AttemptOutcome, RunState
from paidonce_workers.breakers import CircuitBreakers, CircuitState
from paidonce_workers.resilience import Timing
from tests.workers.stand import Stand, StandWorker

called: list[float] = []
failures: list[Exception] = []


@pytest.fixture(autouse=True)
def nothing_yet() -> None:
    called.clear()
    failures.clear()


@tool(name="inline.fetch")
def fetch() -> str:
    called.append(time.monotonic())
    if failures:
        raise failures.pop()
    return "page"


@tool(name="inline.fetch_async", timeout=0.2)
async def fetch_async() -> str:
    called.append(time.monotonic())
    if failures:
        raise failures.pop()
    if len(called) == 1:
        await asyncio.sleep(600)
    return "page"


@step(name="inline.read")
def read() -> str:
    return fetch.call()


@step(name="inline.read_async")
async def read_async() -> str:
    return await fetch_async()


@step(name="inline.careful")
async def careful() -> str:
    try:
        return await fetch()
    except CircuitOpen as error:
        return f"without {error.target}"


@agent(name="inline.reader")
async def reader(how: str) -> str:
    return str(await {"read": read, "read_async": read_async, "careful": careful, "fetch": fetch}[how]())


AGENTS = (fetch, fetch_async, read, read_async, careful, reader)


def book(keys: str) -> PolicyBook:
    return parse_policies(f"targets: {{'fetch*': {{{keys}}}}}", "paidonce.yaml")


def run(stand: Stand, worker: StandWorker, how: str) -> str:
    run_id = stand.submit(reader, {"how": how})
    stand.serve(worker)
    return run_id


def test_an_open_circuit_raises_in_the_body(stand: Stand, breakers: CircuitBreakers) -> None:
    worker = stand.worker(*AGENTS, breakers=breakers)
    breakers.force_open("inline.fetch", for_seconds=60)
    run_id = run(stand, worker, "careful")
    assert stand.run(run_id).result == b'"without inline.fetch"'
    assert called == []
    assert stand.column("avoided", "calls", run_id) == 1


def test_a_body_that_lets_it_through_ends_short_circuited(stand: Stand, breakers: CircuitBreakers) -> None:
    worker = stand.worker(*AGENTS, breakers=breakers)
    breakers.force_open("inline.fetch", for_seconds=60)
    run_id = run(stand, worker, "read")
    assert [each.outcome for each in stand.attempts(run_id)] == [AttemptOutcome.SHORT_CIRCUITED]
    assert stand.run(run_id).state is RunState.FAILED


def test_its_step_is_not_tried_again_before_the_circuit_may_be(stand: Stand, breakers: CircuitBreakers) -> None:
    """Whatever the body pays for before it calls the tool would be paid for nothing."""
    given = parse_policies("targets: {read: {retry: {max_attempts: 2, base: 100ms}}}", "paidonce.yaml")
    worker = stand.worker(*AGENTS, breakers=breakers, book=given)
    breakers.force_open("inline.fetch", for_seconds=60)
    sweeper = stand.sweeper(breakers=breakers)
    sweeper.sweep()  # it leads now
    run_id = run(stand, worker, "read")
    stand.pass_time(55)
    sweeper.sweep()
    stand.serve(worker)
    assert len(stand.attempts(run_id)) == 1
    breakers.force_close("inline.fetch")
    stand.pass_time(30)
    sweeper.sweep()
    stand.serve(worker)
    assert stand.run(run_id).result == b'"page"'


@pytest.mark.parametrize("how", ["read", "careful"], ids=["def", "async def"])
def test_it_is_tried_again_in_place(stand: Stand, breakers: CircuitBreakers, how: str) -> None:
    failures[:] = [ConnectionResetError(), ConnectionResetError()]
    given = book("retry: {max_attempts: 3, base: 10ms, cap: 10ms}")
    run_id = run(stand, stand.worker(*AGENTS, breakers=breakers, book=given), how)
    assert stand.run(run_id).result == b'"page"'
    assert len(called) == 3
    assert len(stand.attempts(run_id)) == 1


def test_it_is_not_waited_for_longer_than_the_setting(stand: Stand, breakers: CircuitBreakers) -> None:
    failures[:] = [ConnectionResetError()] * 9
    waits: list[float] = []
    given = book("retry: {max_attempts: 9, base: 300ms, cap: 300ms, jitter: none}")
    worker = stand.worker(*AGENTS, breakers=breakers, book=given, inline_retry_seconds=0.85)
    worker.circuits.timing = Timing(monotonic=lambda: sum(waits), sleep=waits.append)
    run_id = run(stand, worker, "read")
    assert stand.run(run_id).state is RunState.FAILED
    assert len(called) == 3
    assert waits == [0.3, 0.3]


def test_its_own_time_limit_holds_for_each_try(stand: Stand, breakers: CircuitBreakers) -> None:
    given = book("retry: {max_attempts: 2, base: 10ms, retry_on: [timeout]}")
    run_id = run(stand, stand.worker(*AGENTS, breakers=breakers, book=given), "read_async")
    assert stand.run(run_id).result == b'"page"'
    assert len(called) == 2


@pytest.mark.parametrize("how", ["read", "careful", "fetch"])
def test_inline_calls_and_tool_steps_share_the_circuit(stand: Stand, breakers: CircuitBreakers, how: str) -> None:
    failures[:] = [ConnectionResetError()] * 9
    given = book("breaker: {consecutive_failures: 4, open_for: {base: 1m}}")
    worker = stand.worker(*AGENTS, breakers=breakers, book=given)
    for _ in range(3):
        run(stand, worker, how)
    assert all(each.state is CircuitState.CLOSED for each in breakers.states())
    run(stand, worker, "fetch" if how != "fetch" else "read")
    assert [(each.circuit, each.state) for each in breakers.states()] == [("inline.fetch", CircuitState.OPEN)]
    later = run(stand, worker, "fetch")
    assert stand.run(later).state is RunState.PARKED
    assert len(called) == 4


def test_without_breakers_retries_stay(stand: Stand) -> None:
    failures[:] = [ConnectionResetError()]
    given = book("retry: {max_attempts: 2, base: 1ms}")
    run_id = run(stand, stand.worker(*AGENTS, breakers=None, book=given), "careful")
    assert stand.run(run_id).result == b'"page"'


def test_a_cancelled_body_says_nothing_of_the_tool(stand: Stand, breakers: CircuitBreakers) -> None:
    begun = threading.Event()

    @tool(name="inline.fetch")
    async def slow() -> None:
        called.append(0)
        begun.set()
        await asyncio.sleep(600)

    @step(name="inline.hurried", timeout=0.2)
    async def hurried() -> None:
        await slow()

    @agent(name="inline.hurrying")
    async def hurrying() -> None:
        await hurried()

    given = book("breaker: {consecutive_failures: 1}")
    worker = stand.worker(slow, hurried, hurrying, breakers=breakers, book=given)
    run_id = stand.submit(hurrying)

    def end_its_time() -> None:
        assert begun.wait(60)
        worker.deadlines.fall_due()

    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(end_its_time)
        stand.serve(worker)
        ended.result()
    assert stand.run(run_id).state is RunState.FAILED
    assert called == [0]
    assert all(each.state is CircuitState.CLOSED for each in breakers.states())
