"""``paidonce.testing`` runs agents in one process on a fake clock and crashes them anywhere."""

from __future__ import annotations

import asyncio
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import paidonce
from paidonce import Retry, StepFailed, agent, record_usage, step, tool
from paidonce.declarations.current_step import current_step
from paidonce.testing import AgentTester, FakeClock, run_agent
from paidonce_models.errors import HistoryMismatch, InvalidInput, NotReplayable, RunBlocked, RunCancelled, RunFailed
from paidonce_models.states import RunState
from paidonce_models.store.queries import read_attempts
from tests.long_proofs import share_of

tries: list[str] = []


@pytest.fixture(autouse=True)
def _no_tries_left_over() -> None:
    tries.clear()


@step
def double(x: int) -> int:
    return 2 * x


@step
async def triple(x: int) -> int:
    await asyncio.sleep(0)
    return 3 * x


@tool(retry=Retry(max_attempts=3, base_seconds=10, cap_seconds=60))
def flaky(x: int) -> int:
    tries.append("flaky")
    if len(tries) < 3:
        raise ConnectionError("busy")
    return x


@step
def broken() -> int:
    raise ValueError("no")


@step
def paid() -> str:
    record_usage(provider="openai", model="gpt-4o", input_tokens=1000, output_tokens=100)
    return "ok"


@agent
async def sums(n: int) -> int:
    total = 0
    for i in range(n):
        total += await double(i)
    return total + sum(await asyncio.gather(*(triple(i) for i in range(n))))


@agent
async def parent(n: int) -> int:
    return await sums(n) + await double(100)


def test_an_agent_runs_to_its_result_without_any_server() -> None:
    run = run_agent(sums, {"n": 4})
    assert run.result == 2 * 6 + 3 * 6
    assert (run.state, run.completions, run.attempts, run.crashes) == (RunState.SUCCEEDED, 8, 8, 0)
    assert sum(run.executions.values()) == 8
    assert [each.state for each in run.steps] == ["succeeded"] * 8


@pytest.mark.parametrize("crash_after", range(9))
def test_a_crash_after_any_outcome_repeats_no_finished_step(crash_after: int) -> None:
    run = run_agent(sums, {"n": 4}, crash_after=crash_after)
    assert run.result == 30
    assert (run.crashes, list(run.repeated)) == (1, [])
    assert run.completions == 8


def test_a_crash_during_an_attempt_costs_that_attempt_and_no_other() -> None:
    run = run_agent(sums, {"n": 4}, crash_during=3)
    assert run.result == 30
    assert (run.attempts, run.crashes, list(run.repeated)) == (9, 1, [])
    assert run.steps[2].attempts == 2
    assert run.elapsed >= timedelta(seconds=10), "the lease had to run out first"


def test_every_crash_in_turn_comes_to_the_same() -> None:
    with AgentTester() as tester:
        run = tester.run_with_every_crash(parent, {"n": 2})
    assert run.result == 2 + 3 + 200


def test_a_child_run_is_a_run_of_its_own() -> None:
    run = run_agent(parent, {"n": 2})
    assert [(each.kind, each.state) for each in run.steps] == [("agent", "succeeded"), ("step", "succeeded")]
    assert run.steps[0].child_run_id is not None


def test_three_days_of_sleep_take_no_time() -> None:
    @agent
    async def sleeper() -> str:
        before = paidonce.now()
        await asyncio.sleep(3 * 86_400)
        return str(paidonce.now() - before)

    began = time.monotonic()
    run = run_agent(sleeper)
    assert run.result.startswith("3 days")
    assert run.elapsed >= timedelta(days=3)
    assert time.monotonic() - began < 60


def test_retries_wait_on_the_fake_clock() -> None:
    @agent
    async def retrying() -> int:
        return await flaky(7)

    run = run_agent(retrying)
    assert run.result == 7
    assert (run.attempts, run.completions) == (3, 1)
    assert timedelta(0) < run.elapsed < timedelta(minutes=2)


def test_a_failed_step_reaches_the_agent_as_step_failed() -> None:
    @agent
    async def careful() -> str:
        try:
            await broken()
        except StepFailed as error:
            return f"{error.error_type}: {error.error_message} after {error.attempts}"
        return "never"

    assert run_agent(careful, crash_after=1).result == "ValueError: no after 1"


def test_a_failed_agent_tells_its_error_when_its_result_is_asked_for() -> None:
    @agent
    async def careless() -> int:
        return await broken()

    run = run_agent(careless)
    assert run.state is RunState.FAILED
    with pytest.raises(RunFailed, match="ValueError: no"):
        _ = run.result


def test_durations_let_a_timeout_strike() -> None:
    @agent
    async def impatient() -> str:
        try:
            async with asyncio.timeout(60):
                await double(1)
        except TimeoutError:
            return "gave up"
        return "made it"

    assert run_agent(impatient, durations={double: timedelta(seconds=59)}).result == "made it"
    assert run_agent(impatient, durations={double: timedelta(seconds=61)}).result == "gave up"


@pytest.mark.slow
def test_an_hour_long_step_keeps_its_lease() -> None:
    @step(timeout="2h")
    def slowly() -> str:
        return "done"

    @agent
    async def waits() -> str:
        return await slowly()

    run = run_agent(waits, durations={slowly: timedelta(hours=1)})
    assert (run.attempts, run.result, run.elapsed) == (1, "done", timedelta(hours=1))


def test_fakes_stand_in_for_bodies() -> None:
    async def ten(x: int) -> int:
        return 10

    assert run_agent(sums, {"n": 2}, fakes={double: ten, triple: lambda x: 1}).result == 22


def test_every_message_twice_and_in_any_order_changes_nothing() -> None:
    for seed in range(5):
        with AgentTester(seed=seed, twice=True) as tester:
            run = tester.run(parent, {"n": 3}, crash_after=2)
        assert run.result == 6 + 9 + 200
        assert list(run.repeated) == []


def test_a_cancelled_agent_may_await_steps_in_its_finally() -> None:
    @agent
    async def tidy() -> int:
        try:
            return await double(1) + await double(2)
        finally:
            await triple(1)

    run = run_agent(tidy, cancel_after=1)
    assert run.state is RunState.CANCELLED
    assert run.executions["test_tester.triple"] + run.executions[triple.name] >= 1
    with pytest.raises(RunCancelled):
        _ = run.result


def test_an_agent_that_waits_for_nothing_is_blocked() -> None:
    @agent
    async def stuck() -> None:
        await asyncio.Event().wait()

    run = run_agent(stuck)
    assert run.state is RunState.BLOCKED
    with pytest.raises(RunBlocked, match="Deadlock"):
        _ = run.result


def test_use_of_the_clock_is_named_with_its_line() -> None:
    @agent
    async def late(n: int) -> int:
        await double(n)
        return int(time.time())

    line = late.line + 3
    with pytest.raises(NotReplayable, match=rf"test_tester\.py:{line} in .*late: time\.time\(\).*paidonce\.now"):
        run_agent(late, {"n": 1})


def test_reading_a_file_in_an_agent_is_named_with_its_line() -> None:
    @agent
    async def reader() -> str:
        return Path(__file__).read_text()[:3]  # noqa: ASYNC240 # the mistake under test

    with pytest.raises(NotReplayable, match=r"test_tester\.py:\d+ in .*open\(.*@step"):
        run_agent(reader)


def test_clocks_and_files_in_steps_are_allowed() -> None:
    @step
    def look() -> int:
        Path(__file__).read_text()
        return int(time.time())

    @agent
    async def looks() -> int:
        return await look()

    assert run_agent(looks).result > 0


def test_what_no_watch_sees_shows_as_a_difference() -> None:
    calls: list[int] = []

    @agent
    async def counts() -> int:
        calls.append(1)
        return await double(len(calls))

    with pytest.raises(HistoryMismatch, match="history holds"):
        run_agent(counts)


def test_now_uuid_and_random_are_the_same_on_replay() -> None:
    @agent
    async def draws() -> list[str]:
        drawn = [str(paidonce.uuid()), str(paidonce.random()), paidonce.now().isoformat()]
        await double(1)
        return [*drawn, str(paidonce.uuid())]

    clock = FakeClock(datetime(2027, 5, 1, tzinfo=UTC))
    with AgentTester(clock=clock) as tester:
        drawn = tester.run(draws, crash_after=1).result
    assert len(set(drawn)) == 4
    assert drawn[2].startswith("2027-05-01")


def test_usage_of_a_step_is_in_the_store() -> None:
    @agent
    async def pays() -> str:
        return await paid()

    with AgentTester() as tester:
        run = tester.run(pays)
        with tester.database.read() as connection:
            (attempt,) = read_attempts(connection, run.run_id, 1)
    assert (attempt.calls, attempt.input_tokens, attempt.cost_nanousd) == (1, 1000, 1000 * 2_500 + 100 * 10_000)


def test_a_request_to_a_provider_is_recorded_as_in_a_worker() -> None:
    answer = {"model": "gpt-4o", "usage": {"prompt_tokens": 1000, "completion_tokens": 100}}

    @step
    def asks() -> int:
        with httpx.Client(transport=httpx.MockTransport(lambda _: httpx.Response(200, json=answer))) as client:
            return client.post("https://api.openai.com/v1/chat/completions", json={"model": "gpt-4o"}).status_code

    @agent
    async def pays() -> int:
        return await asks()

    with AgentTester() as tester:
        run = tester.run(pays)
        with tester.database.read() as connection:
            (attempt,) = read_attempts(connection, run.run_id, 1)
    assert (attempt.calls, attempt.input_tokens, attempt.cost_nanousd) == (1, 1000, 1000 * 2_500 + 100 * 10_000)


def test_a_step_knows_which_attempt_it_is() -> None:
    @step
    def who() -> list[int]:
        return [current_step().step, current_step().attempt]

    @agent
    async def asks() -> list[int]:
        return await who()

    assert run_agent(asks, crash_during=1).result == [1, 2]


def test_it_runs_inside_a_tests_own_event_loop() -> None:
    async def body() -> int:
        result: int = run_agent(sums, {"n": 2}).result
        return result

    assert asyncio.run(body()) == 5


def test_input_that_does_not_fit_is_refused_at_once() -> None:
    with pytest.raises(InvalidInput, match="sums"):
        run_agent(sums, {"m": 4})


@agent
async def mixed(plan: list[str]) -> list[str]:
    seen: list[str] = []
    for what in plan:
        if what == "step":
            seen.append(str(await double(len(seen))))
        elif what == "gather":
            seen += [str(each) for each in await asyncio.gather(*(triple(i) for i in range(3)))]
        elif what == "first":
            tasks = [asyncio.ensure_future(call) for call in (double(1), triple(1))]
            done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in pending:
                task.cancel()
            seen.append(str(len(done) + len(pending)))
        elif what == "failure":
            try:
                await broken()
            except StepFailed as error:
                seen.append(error.error_type)
        elif what == "child":
            seen.append(str(await sums(2)))
        else:
            await asyncio.sleep(5)
            seen.append(what)
    return seen


any_lives = given(
    st.lists(st.sampled_from(["step", "gather", "first", "failure", "child", "sleep"]), max_size=6),
    st.sets(st.integers(0, 12), max_size=4),
    st.sets(st.integers(1, 12), max_size=3),
    st.integers(0, 99),
    st.booleans(),
)


@settings(max_examples=5)
@any_lives
def test_no_crash_and_no_order_of_delivery_changes_an_agents_result(
    plan: list[str], crash_after: set[int], crash_during: set[int], seed: int, twice: bool
) -> None:
    expect_the_same(plan, crash_after, crash_during, seed, twice)


@pytest.mark.slow
@pytest.mark.timeout(600)
@settings(max_examples=share_of(40))
@any_lives
def test_none_of_many_crashes_and_orders_of_delivery_changes_an_agents_result(
    plan: list[str], crash_after: set[int], crash_during: set[int], seed: int, twice: bool
) -> None:
    expect_the_same(plan, crash_after, crash_during, seed, twice)


def expect_the_same(plan: list[str], crash_after: set[int], crash_during: set[int], seed: int, twice: bool) -> None:
    expected = run_agent(mixed, {"plan": plan}).result
    with AgentTester(seed=seed, twice=twice) as tester:
        run = tester.run(mixed, {"plan": plan}, crash_after=crash_after, crash_during=crash_during)
    assert run.result == expected
    assert list(run.repeated) == []


# Budgets


@step(max_cost_usd="0.01")
def costly(number: int) -> int:
    record_usage(provider="openai", model="own", cost_usd="0.01")
    return number


@agent(budget_usd="0.03")
async def spender(steps: int) -> int:
    return sum([await costly(number) for number in range(steps)])


@agent(max_steps=2)
async def runaway() -> None:
    while True:
        await double(1)


def test_a_budget_pauses_the_run_before_the_step_that_it_has_no_room_for() -> None:
    run = run_agent(spender, {"steps": 5})
    assert (run.state, run.executions[costly.name]) == (RunState.PAUSED, 3)
    assert [each.state for each in run.steps] == ["succeeded"] * 3 + ["held"]
    with pytest.raises(RunBlocked, match="paused"):
        assert run.result


def test_a_budget_that_suffices_changes_nothing_wherever_it_crashes() -> None:
    with AgentTester() as tester:
        assert tester.run_with_every_crash(spender, {"steps": 3}).result == 3


def test_a_runaway_loop_stops_before_its_next_step() -> None:
    run = run_agent(runaway)
    assert (run.state, run.executions[double.name]) == (RunState.PAUSED, 2)


@agent(name="kept-by-thread")
async def kept_by_thread() -> int:
    """Relies on the thread: right in a worker, and wrong wherever its next slice is in another one."""
    kept: Any = threading.local()
    kept.number = 1
    await asyncio.sleep(1)
    return int(getattr(kept, "number", 0))


def test_an_agent_that_depends_on_its_thread_is_found_where_threads_are_moved() -> None:
    with AgentTester() as tester:
        assert tester.run(kept_by_thread).result == 1
    with AgentTester(moves_threads=True) as tester, pytest.raises(HistoryMismatch, match="the thread it runs in"):
        tester.run(kept_by_thread)


@pytest.mark.slow
def test_an_agent_that_does_not_depend_on_its_thread_runs_the_same_where_threads_are_moved() -> None:
    with AgentTester(moves_threads=True) as tester:
        assert tester.run_with_every_crash(parent, {"n": 2}).result == 205
