"""What an open circuit does to a tool step: it sleeps, its agent is told, or its run ends; and how it wakes."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import redis

from paidonce import CircuitOpen, Retry, StepFailed, agent, tool
from paidonce.policies import BreakerPolicy, describe_failure
from paidonce.policies.file.parsing import parse_policies
from paidonce.policies.policy_book import PolicyBook
from paidonce_models.states import AttemptOutcome, RunState
from paidonce_workers.breakers import CircuitBreakers, CircuitState
from paidonce_workers.recovery.sweeper import Sweeper
from tests.services.valkey import RedisServer
from tests.workers.breakers.conftest import ServerClock
from tests.workers.stand import Stand, StandWorker

OPEN_SECONDS = 60.0
"""Of the circuits' clock; longer than a busy machine needs for what happens while one is open."""
LONG_ENOUGH = 1000.0
"""Of the store's clock, for any due time of these tests."""

called: list[str] = []
state: dict[str, Any] = {"down": True}


class Down(Exception):
    """The tool is down."""


@pytest.fixture(autouse=True)
def tool_is_down() -> None:
    called.clear()
    state.clear()
    state["down"] = True


def call() -> str:
    called.append("search")
    if state["down"]:
        raise state.get("error", Down)("no answer")
    return "found"


@tool(name="circuits.search", retry=Retry(max_attempts=2, base_seconds=0.1, cap_seconds=0.1))
def search() -> str:
    return call()


@agent(name="circuits.searcher")
async def searcher() -> str:
    return str(await search())


@agent(name="circuits.careful")
async def careful() -> str:
    try:
        return str(await search())
    except CircuitOpen as error:
        assert isinstance(error, StepFailed)
        return f"{error.target}, {error.since is not None}, {error.retry_at is not None}"


@agent(name="circuits.impatient")
async def impatient() -> str:
    try:
        async with asyncio.timeout(30):
            return str(await search())
    except TimeoutError:
        return "without it"


@tool(name="circuits.elsewhere")
def elsewhere() -> str:
    return "elsewhere"


@agent(name="circuits.both")
async def both() -> list[str]:
    return list(await asyncio.gather(search(), elsewhere()))


AGENTS = (search, elsewhere, searcher, careful, impatient, both)


def book(more: str = "", breaker: str = "", failures: int = 2) -> PolicyBook:
    keys = f"consecutive_failures: {failures}, min_calls: 1000, open_for: {{base: {OPEN_SECONDS}s, jitter: 0}}{breaker}"
    return parse_policies(f"targets: {{search: {{breaker: {{{keys}}}{more}}}}}", "paidonce.yaml")


def lead(stand: Stand, breakers: CircuitBreakers | None) -> Sweeper:
    sweeper = stand.sweeper(breakers=breakers)
    sweeper.sweep()
    return sweeper


def settle(stand: Stand, worker: StandWorker) -> None:
    """Let everything happen that the store's clock has time for."""
    for _ in range(4):
        stand.serve(worker)
        worker.deadlines.fall_due()
        stand.pass_time(0.2)
    stand.serve(worker)


def forget(server: RedisServer) -> None:
    """What a flush does to the circuits of this test."""
    with redis.Redis.from_url(server.url()) as client:
        keys = list(client.scan_iter("*circuits.search*"))
        assert keys
        client.delete(*keys)


def wake(stand: Stand, worker: StandWorker, sweeper: Sweeper) -> None:
    stand.pass_time(LONG_ENOUGH)
    sweeper.sweep()
    settle(stand, worker)


def test_a_run_whose_tool_is_down_sleeps_and_goes_on_by_itself(
    stand: Stand, breakers: CircuitBreakers, server_clock: ServerClock
) -> None:
    worker = stand.worker(*AGENTS, book=book(), breakers=breakers)
    sweeper = lead(stand, breakers)
    first, second = stand.submit(searcher), stand.submit(searcher)
    settle(stand, worker)
    assert len(called) == 2  # what it takes to open the circuit, and not one call more
    assert {stand.run(first).state, stand.run(second).state} == {RunState.PARKED}
    assert {stand.run(each).state_reason for each in (first, second)} == {"circuit_open"}
    for _ in range(3):
        sweeper.sweep()
        settle(stand, worker)
    assert len(called) == 2

    server_clock.skip(OPEN_SECONDS)
    wake(stand, worker, sweeper)
    assert len(called) == 3  # one probe, on behalf of both
    probed = [each for run_id in (first, second) for each in stand.attempts(run_id)]
    assert [each.outcome for each in probed].count(AttemptOutcome.FAILED) == 3

    state["down"] = False
    server_clock.skip(2 * OPEN_SECONDS)
    wake(stand, worker, sweeper)
    wake(stand, worker, sweeper)
    assert {stand.run(first).state, stand.run(second).state} == {RunState.SUCCEEDED}
    assert len(called) == 5


def test_probes_do_not_use_up_a_steps_tries(stand: Stand, breakers: CircuitBreakers, server_clock: ServerClock) -> None:
    worker = stand.worker(*AGENTS, book=book(), breakers=breakers)
    sweeper = lead(stand, breakers)
    breakers.force_open("circuits.search", for_seconds=OPEN_SECONDS)
    run_id = stand.submit(searcher)
    settle(stand, worker)
    for failed_probes in range(1, 4):
        server_clock.skip(OPEN_SECONDS * 2**failed_probes)
        wake(stand, worker, sweeper)
        assert stand.run(run_id).state is RunState.PARKED
    assert len(stand.attempts(run_id)) == 3 > 2


def test_one_run_alone_survives_an_outage_if_it_has_retries(
    stand: Stand, breakers: CircuitBreakers, server_clock: ServerClock
) -> None:
    """Its last try is the one that opens the circuit."""
    worker = stand.worker(*AGENTS, book=book(), breakers=breakers)
    sweeper = lead(stand, breakers)
    run_id = stand.submit(searcher)
    settle(stand, worker)
    assert stand.run(run_id).state is RunState.PARKED
    assert len(called) == 2
    state["down"] = False
    server_clock.skip(OPEN_SECONDS)
    wake(stand, worker, sweeper)
    assert stand.run(run_id).state is RunState.SUCCEEDED


@pytest.mark.slow
def test_one_that_fails_for_its_own_reasons_does_not_keep_the_others_waiting(
    stand: Stand, breakers: CircuitBreakers, server_clock: ServerClock
) -> None:
    @tool(name="circuits.search", retry=2)
    def picky(what: str) -> str:
        called.append(what)
        if what == "poison":
            raise Down("always")
        return what

    @agent(name="circuits.picker")
    async def picker(what: str) -> str:
        return str(await picky(what))

    worker = stand.worker(picky, picker, book=book(), breakers=breakers)
    sweeper = lead(stand, breakers)
    breakers.force_open("circuits.search", for_seconds=OPEN_SECONDS)
    runs = []
    for what in ("poison", "good", "fine"):
        runs.append(stand.submit(picker, {"what": what}))
        settle(stand, worker)
        stand.pass_time(1)
    server_clock.skip(OPEN_SECONDS)
    for _ in range(4):
        server_clock.skip(2 * OPEN_SECONDS)
        wake(stand, worker, sweeper)
    assert called[:2] == ["poison", "good"]
    assert [stand.run(each).state for each in runs] == [RunState.FAILED, RunState.SUCCEEDED, RunState.SUCCEEDED]


def test_a_delivery_that_finds_nothing_to_do_keeps_no_probe_from_others(
    stand: Stand, breakers: CircuitBreakers
) -> None:
    worker = stand.worker(*AGENTS, book=book(), breakers=breakers)
    state["down"] = False
    run_id = stand.submit(searcher)
    settle(stand, worker)
    breakers.force_open("circuits.search", 0)  # the next call is a probe
    worker.executor.execute(run_id, 1, "circuits.search", "circuits.searcher")
    (found,) = [each for each in breakers.states() if each.circuit == "circuits.search"]
    assert (found.state, found.probes_under_way, len(called)) == (CircuitState.HALF_OPEN, 0, 1)


def test_what_is_parked_is_no_attempt_and_no_money(stand: Stand, breakers: CircuitBreakers) -> None:
    worker = stand.worker(*AGENTS, book=book(), breakers=breakers)
    breakers.force_open("circuits.search", for_seconds=60)
    run_id = stand.submit(searcher)
    settle(stand, worker)
    assert stand.attempts(run_id) == [] and called == []
    assert stand.column("avoided", "calls", run_id) == 1
    assert stand.column("avoided", "cost_nanousd", run_id) is None


def test_raise_tells_the_agent_at_once(stand: Stand, breakers: CircuitBreakers) -> None:
    worker = stand.worker(*AGENTS, book=book(breaker=", when_open: raise"), breakers=breakers)
    breakers.force_open("circuits.search", for_seconds=60)
    run_id = stand.submit(careful)
    settle(stand, worker)
    assert stand.run(run_id).result == b'"circuits.search, True, True"'
    assert called == []


def test_fail_ends_the_run_with_that_reason(stand: Stand, breakers: CircuitBreakers) -> None:
    worker = stand.worker(*AGENTS, book=book(breaker=", when_open: fail"), breakers=breakers)
    breakers.force_open("circuits.search", for_seconds=60)
    run_id = stand.submit(careful)
    settle(stand, worker)
    run = stand.run(run_id)
    assert run.state is RunState.FAILED and run.error is not None
    assert (run.error["type"], run.error["details"]["target"]) == ("CircuitOpen", "circuits.search")
    assert called == []


def test_after_the_longest_wait_the_agent_is_told(stand: Stand, breakers: CircuitBreakers) -> None:
    worker = stand.worker(*AGENTS, book=book(more=", park: {max: 1h}"), breakers=breakers)
    sweeper = lead(stand, breakers)
    breakers.force_open("circuits.search")
    run_id = stand.submit(careful)
    settle(stand, worker)
    stand.pass_time(3500)
    sweeper.sweep()
    settle(stand, worker)
    assert stand.run(run_id).state is RunState.PARKED
    stand.pass_time(200)
    sweeper.sweep()
    settle(stand, worker)
    assert stand.run(run_id).result == b'"circuits.search, True, False"'


@pytest.mark.parametrize("ends", [CircuitBreakers.force_close, CircuitBreakers.reset])
def test_a_circuit_that_is_closed_by_hand_lets_everything_go(
    stand: Stand, breakers: CircuitBreakers, ends: Callable[[CircuitBreakers, str], None]
) -> None:
    worker = stand.worker(*AGENTS, book=book(), breakers=breakers)
    sweeper = lead(stand, breakers)
    breakers.force_open("circuits.search")
    runs = [stand.submit(searcher) for _ in range(3)]
    settle(stand, worker)
    assert {stand.run(each).state for each in runs} == {RunState.PARKED}
    state["down"] = False
    ends(breakers, "circuits.search")
    sweeper.sweep()
    settle(stand, worker)
    assert {stand.run(each).state for each in runs} == {RunState.SUCCEEDED}


def test_parked_runs_wake_where_the_breakers_were_switched_off(stand: Stand, breakers: CircuitBreakers) -> None:
    worker = stand.worker(*AGENTS, book=book(), breakers=breakers)
    breakers.force_open("circuits.search")
    run_id = stand.submit(searcher)
    settle(stand, worker)
    state["down"] = False
    without = stand.worker(*AGENTS, name="worker-2")
    lead(stand, None)
    settle(stand, without)
    assert stand.run(run_id).state is RunState.SUCCEEDED


def test_after_an_outage_they_are_let_go_in_a_ramp_oldest_first(stand: Stand, breakers: CircuitBreakers) -> None:
    worker = stand.worker(*AGENTS, book=book(), breakers=breakers)
    sweeper = lead(stand, breakers)
    breakers.force_open("circuits.search")
    runs = []
    for _ in range(15):
        runs.append(stand.submit(searcher))
        settle(stand, worker)
        stand.pass_time(1)
    state["down"] = False
    breakers.force_close("circuits.search")
    let_go = []
    for _ in range(3):
        sweeper.sweep()
        settle(stand, worker)
        let_go.append([stand.run(each).state for each in runs].count(RunState.SUCCEEDED))
        done = [stand.run(each).state is RunState.SUCCEEDED for each in runs]
        assert done == sorted(done, reverse=True)
    assert let_go == [4, 12, 15]


@pytest.mark.parametrize("somebody_called", [False, True])
def test_a_circuit_that_redis_has_forgotten_is_found_out_by_one_probe(
    stand: Stand,
    breakers: CircuitBreakers,
    server_clock: ServerClock,
    redis_server: RedisServer,
    somebody_called: bool,
) -> None:
    worker = stand.worker(*AGENTS, book=book(failures=5), breakers=breakers)
    sweeper = lead(stand, breakers)
    breakers.force_open("circuits.search")
    runs = [stand.submit(searcher) for _ in range(8)]
    settle(stand, worker)
    forget(redis_server)
    if somebody_called:  # and so made a fresh circuit
        with breakers.guard("circuits.search", BreakerPolicy()):
            pass
    sweeper.sweep()
    settle(stand, worker)
    assert len(called) == 1
    assert {stand.run(each).state for each in runs} == {RunState.PARKED}
    assert {stand.column("steps", "failed", each) for each in runs} == {0}
    state["down"] = False
    server_clock.skip(3 * OPEN_SECONDS)
    for _ in range(4):
        wake(stand, worker, sweeper)
    assert {stand.run(each).state for each in runs} == {RunState.SUCCEEDED}


def test_while_redis_is_away_nobody_wakes_before_it_is_due(stand: Stand, breakers: CircuitBreakers) -> None:
    worker = stand.worker(*AGENTS, book=book(), breakers=breakers)
    breakers.force_open("circuits.search", 60)
    run_id = stand.submit(searcher)
    settle(stand, worker)
    away = CircuitBreakers("redis://127.0.0.1:1", namespace="away", classify=describe_failure, probe_seconds=10.0)
    sweeper = lead(stand, away)
    assert stand.run(run_id).state is RunState.PARKED
    stand.pass_time(61)
    sweeper.sweep()
    away.close()
    assert stand.run(run_id).state is RunState.RUNNING


@pytest.mark.slow
def test_while_redis_is_away_they_wake_by_their_own_due_time(stand: Stand, private_redis: RedisServer) -> None:
    breakers = CircuitBreakers(private_redis.url(), namespace="away", classify=describe_failure, probe_seconds=10.0)
    server_clock = ServerClock(breakers)
    worker = stand.worker(*AGENTS, book=book(failures=3), breakers=breakers)
    sweeper = lead(stand, breakers)
    runs = [stand.submit(searcher) for _ in range(10)]
    settle(stand, worker)
    assert {stand.run(each).state for each in runs} == {RunState.PARKED}
    private_redis.stop()
    wake(stand, worker, sweeper)
    assert len(called) == 3  # this process knows that it was open
    server_clock.skip(OPEN_SECONDS)
    wake(stand, worker, sweeper)
    assert {stand.run(each).state for each in runs} == {RunState.PARKED}
    assert len(called) == 4
    state["down"] = False
    for _ in range(5):
        server_clock.skip(2 * OPEN_SECONDS)
        wake(stand, worker, sweeper)
    assert {stand.run(each).state for each in runs} == {RunState.SUCCEEDED}
    breakers.close()


def test_a_cancelled_run_sleeps_no_longer(stand: Stand, breakers: CircuitBreakers) -> None:
    worker = stand.worker(*AGENTS, book=book(), breakers=breakers)
    breakers.force_open("circuits.search")
    run_id = stand.submit(searcher)
    settle(stand, worker)
    stand.cancel(run_id)
    settle(stand, worker)
    assert stand.run(run_id).state is RunState.CANCELLED


def test_an_agents_own_time_limit_goes_on_while_its_step_sleeps(stand: Stand, breakers: CircuitBreakers) -> None:
    worker = stand.worker(*AGENTS, book=book(), breakers=breakers)
    sweeper = lead(stand, breakers)
    breakers.force_open("circuits.search")
    run_id = stand.submit(impatient)
    settle(stand, worker)
    assert stand.run(run_id).state is RunState.PARKED
    stand.pass_time(10)
    sweeper.sweep()
    settle(stand, worker)
    assert stand.run(run_id).state is RunState.PARKED
    stand.pass_time(40)
    sweeper.sweep()
    settle(stand, worker)
    assert stand.run(run_id).result == b'"without it"'
    assert [each.state for each in stand.steps(run_id)] == ["cancelled"]


def test_what_does_not_need_the_tool_goes_on(stand: Stand, breakers: CircuitBreakers) -> None:
    worker = stand.worker(*AGENTS, book=book(), breakers=breakers)
    sweeper = lead(stand, breakers)
    breakers.force_open("circuits.search")
    run_id = stand.submit(both)
    settle(stand, worker)
    assert [each.state for each in stand.steps(run_id)] == ["parked", "succeeded"]
    state["down"] = False
    breakers.force_close("circuits.search")
    sweeper.sweep()
    settle(stand, worker)
    assert stand.run(run_id).result == b'["found","elsewhere"]'


def test_tools_of_one_circuit_stand_and_fall_together(stand: Stand, breakers: CircuitBreakers) -> None:
    shared = parse_policies("targets: {'*': {circuit: shop}}", "paidonce.yaml")
    worker = stand.worker(*AGENTS, book=shared, breakers=breakers)
    breakers.force_open("shop", for_seconds=60)
    run_id = stand.submit(searcher)
    settle(stand, worker)
    assert stand.run(run_id).state is RunState.PARKED


def http_error(status: int, **headers: str) -> Callable[[str], Exception]:
    """What a client raises for an answer of this status."""

    class Answered(Exception):
        def __init__(self, message: str) -> None:
            super().__init__(message)
            self.status_code = status
            self.headers = headers

    return Answered


def test_answers_404_do_not_open_a_circuit(stand: Stand, breakers: CircuitBreakers) -> None:
    state["error"] = http_error(404)
    worker = stand.worker(*AGENTS, book=book(), breakers=breakers)
    runs = [stand.submit(searcher) for _ in range(6)]
    for _ in range(3):
        settle(stand, worker)
    assert {stand.run(each).state for each in runs} == {RunState.FAILED}
    assert len(called) == 12
    assert [each.state for each in breakers.states()] in ([], [CircuitState.CLOSED])


def test_a_failure_says_when_the_circuit_is_tried_again(stand: Stand, breakers: CircuitBreakers) -> None:
    state["error"] = http_error(429, **{"Retry-After": "90"})
    worker = stand.worker(*AGENTS, book=book(), breakers=breakers)
    runs = [stand.submit(searcher) for _ in range(3)]
    settle(stand, worker)
    (circuit,) = breakers.states()
    assert circuit.retry_at is not None
    assert 30 < (circuit.retry_at - circuit.at).total_seconds() <= 91
    assert circuit.reason == "failures in a row: 2 (http:429 Answered)"
    stand.pass_time(120)
    settle(stand, worker)
    assert len(called) == 2
    assert {stand.run(each).state for each in runs} >= {RunState.PARKED}


def test_what_paidonce_refuses_is_no_failure_of_the_tool(stand: Stand, breakers: CircuitBreakers) -> None:
    @tool(name="circuits.search")
    def unstorable() -> Any:
        called.append("unstorable")
        return object()

    @agent(name="circuits.unstored")
    async def unstored() -> None:
        await unstorable()

    worker = stand.worker(unstorable, unstored, book=book(), breakers=breakers)
    runs = [stand.submit(unstored) for _ in range(4)]
    settle(stand, worker)
    assert {stand.run(each).state for each in runs} == {RunState.BLOCKED}
    assert len(called) == 4
    assert [each.state for each in breakers.states()] in ([], [CircuitState.CLOSED])


def test_the_total_time_leaves_out_what_was_parked(stand: Stand, breakers: CircuitBreakers) -> None:
    worker = stand.worker(*AGENTS, book=book(more=", timeout: {total: 30s}"), breakers=breakers)
    sweeper = lead(stand, breakers)
    run_id = stand.submit(searcher)
    stand.serve(worker)
    breakers.force_open("circuits.search")
    stand.pass_time(1)
    settle(stand, worker)
    assert stand.run(run_id).state is RunState.PARKED
    stand.pass_time(3000)
    state["down"] = False
    breakers.force_close("circuits.search")
    sweeper.sweep()
    settle(stand, worker)
    assert stand.run(run_id).state is RunState.SUCCEEDED


def test_no_retry_is_begun_that_the_total_time_has_no_room_for(stand: Stand, breakers: CircuitBreakers) -> None:
    more = ", timeout: {total: 1m}, retry: {max_attempts: 9, base: 50s, cap: 50s, jitter: none}"
    worker = stand.worker(*AGENTS, book=book(more=more), breakers=None)
    run_id = stand.submit(searcher)
    for _ in range(5):
        settle(stand, worker)
        stand.pass_time(50)
    assert stand.run(run_id).state is RunState.FAILED
    assert len(called) == 2


def test_a_retry_brings_the_budget_of_retries_nothing(stand: Stand, breakers: CircuitBreakers) -> None:
    more = ", retry: {max_attempts: 2, base: 1ms, cap: 1ms, jitter: none}, retry_budget: {ratio: 1}"
    worker = stand.worker(*AGENTS, book=book(more=more, failures=99), breakers=breakers)
    stand.submit(searcher)
    stand.serve(worker)
    assert breakers._budgets._counted == {}, "the first attempt was told of with its retry"
    state["down"] = False
    settle(stand, worker)
    assert (len(called), breakers._budgets._counted) == (2, {})


def test_retries_beyond_the_fleets_budget_are_put_off_and_made(stand: Stand, breakers: CircuitBreakers) -> None:
    more = (
        ", retry: {max_attempts: 2, base: 1ms, cap: 1ms, jitter: none}, retry_budget: {ratio: 0, floor_per_second: 1}"
    )
    worker = stand.worker(*AGENTS, book=book(more=more, failures=99), breakers=breakers)
    runs = [stand.submit(searcher) for _ in range(30)]
    stand.serve(worker)
    due = sorted((stand.column("steps", "due_at_us", each) - stand.clock.now_us()) / 1e6 for each in runs)
    assert due[0] < 1
    assert due[-1] > 10
    assert all(later - sooner < 1.5 for sooner, later in itertools.pairwise(due))
    state["down"] = False
    stand.pass_time(120)
    lead(stand, breakers)
    settle(stand, worker)
    assert {stand.run(each).state for each in runs} == {RunState.SUCCEEDED}
    assert len(called) == 60
