"""What a worker does with a step, the test kit does too: each rule of production, seen through ``AgentTester``."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from paidonce import CircuitOpen, Retry, StepFailed, StepTimedOut, agent, record_usage, step, tool
from paidonce.testing import AgentTester, FakeClock, run_agent
from paidonce_models.errors import ConfigurationError, RunBlocked
from paidonce_models.pricing.own_prices import PriceRow
from paidonce_models.states import RunState, StepState
from paidonce_models.store.ledger.prices import add_price_rows
from paidonce_models.store.queries import AttemptView, read_attempts, read_state

calls: list[datetime] = []
CLOCK = FakeClock()


@pytest.fixture(autouse=True)
def _nothing_was_called() -> None:
    calls.clear()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def policies(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        file = tmp_path / "policies.yaml"
        file.write_text(text)
        return file

    return write


def attempts_of(tester: AgentTester, run_id: str, position: int = 1) -> list[AttemptView]:
    with tester.database.read() as connection:
        return read_attempts(connection, run_id, position)


class Refused(Exception):
    """As a client raises it for an answer 4xx or 5xx."""

    def __init__(self, status: int, retry_after: str | None = None) -> None:
        request = httpx.Request("GET", "http://test")
        headers = {} if retry_after is None else {"Retry-After": retry_after}
        super().__init__(str(status))
        self.response = httpx.Response(status, headers=headers, request=request)


# Policies


@tool
def lookup(times: int, status: int, retry_after: str | None = None) -> int:
    """Fails so many times, with this answer."""
    calls.append(datetime.now(UTC))
    if len(calls) <= times:
        raise Refused(status, retry_after)
    return len(calls)


@agent
async def looks_up(times: int, status: int, retry_after: str | None = None) -> int:
    return await lookup(times, status, retry_after)


RETRIES = """
targets:
  lookup:
    retry: {max_attempts: 3, base: 10s, cap: 10s, backoff: constant, jitter: none, retry_on: ["http:5xx", "http:429"]}
"""


def test_retries_of_the_policy_file_hold(policies: Callable[[str], Path]) -> None:
    run = run_agent(looks_up, {"times": 2, "status": 503}, policies=policies(RETRIES))
    assert (run.result, run.attempts, run.elapsed) == (3, 3, timedelta(seconds=20))


def test_a_failure_that_no_matcher_covers_is_not_tried_again(policies: Callable[[str], Path]) -> None:
    run = run_agent(looks_up, {"times": 2, "status": 404}, policies=policies(RETRIES))
    assert (run.state, run.attempts) == (RunState.FAILED, 1)


def test_retry_after_is_waited_for_on_the_fake_clock(policies: Callable[[str], Path]) -> None:
    given = {"times": 1, "status": 429, "retry_after": "120"}
    began = time.monotonic()
    run = run_agent(looks_up, given, policies=policies(RETRIES))
    assert (run.result, run.elapsed) == (2, timedelta(seconds=130))
    assert time.monotonic() - began < 30


def test_the_file_is_found_as_a_worker_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_agent(looks_up, {"times": 2, "status": 503}).state is RunState.FAILED
    (tmp_path / "paidonce.yaml").write_text(RETRIES)
    calls.clear()
    assert run_agent(looks_up, {"times": 2, "status": 503}).result == 3
    (tmp_path / "none.yaml").write_text("")
    monkeypatch.setenv("PAIDONCE_POLICIES", "none.yaml")
    calls.clear()
    assert run_agent(looks_up, {"times": 2, "status": 503}).state is RunState.FAILED


def test_a_file_that_is_named_and_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"missing\.yaml"):
        AgentTester(policies=tmp_path / "missing.yaml")


def test_retries_beyond_their_budget_are_put_off(policies: Callable[[str], Path]) -> None:
    @tool
    def fails(number: int) -> None:
        raise ConnectionError("busy")

    @agent
    async def goes_on() -> int:
        ends = await asyncio.gather(*(fails(number) for number in range(3)), return_exceptions=True)
        return sum(isinstance(end, StepFailed) for end in ends)

    file = policies(
        "targets: {'*fails': {breaker: false, retry: {max_attempts: 2, base: 1s, cap: 1s, jitter: none}, "
        "retry_budget: {ratio: 0, floor_per_second: 0.1}}}"
    )
    run = run_agent(goes_on, policies=file)
    assert (run.result, run.attempts) == (3, 6)
    assert run.elapsed == timedelta(seconds=1 + 20), "one token at once, and one each ten seconds"


def test_policies_that_do_not_fit_the_code_are_refused_as_at_a_workers_start(policies: Callable[[str], Path]) -> None:
    @tool(policy="nowhere")
    def unfit() -> int:
        return 1

    @agent
    async def asks() -> int:
        return await unfit()

    with pytest.raises(ConfigurationError, match="nowhere"):
        run_agent(asks, policies=policies("policies: {}"))


def test_calls_are_priced_by_the_stores_own_rows() -> None:
    @step
    def asks() -> None:
        record_usage(provider="own", model="house-model", input_tokens=1_000_000, output_tokens=0)

    @agent
    async def pays() -> None:
        await asks()

    row = PriceRow(model="house-model", valid_from=datetime(2020, 1, 1, tzinfo=UTC), input_nanousd_per_mtok=7)
    with AgentTester() as tester:
        tester.database.transact(lambda connection: add_price_rows(connection, "default", [row]))
        run = tester.run(pays)
        (attempt,) = attempts_of(tester, run.run_id)
    assert attempt.cost_nanousd == 7


# Time


@step(timeout="30s", retry=Retry(max_attempts=2, base_seconds=0))
def slow() -> str:
    record_usage(provider="openai", model="own", cost_usd="0.01")
    return "done"


@agent
async def waits() -> str:
    try:
        return await slow()
    except StepTimedOut as error:
        return f"out of time after {error.attempts}"


def test_a_body_that_takes_longer_than_its_step_may_is_stopped_at_its_limit_and_its_cost_is_kept() -> None:
    with AgentTester(durations={slow: timedelta(seconds=31)}) as tester:
        run = tester.run(waits)
        attempts = attempts_of(tester, run.run_id)
    assert (run.result, run.elapsed) == ("out of time after 2", timedelta(seconds=60))
    assert [(each.outcome, each.cost_nanousd) for each in attempts] == [("timed_out", 10_000_000)] * 2


def test_a_body_that_takes_all_its_time_succeeds() -> None:
    assert run_agent(waits, durations={slow: timedelta(seconds=30)}).result == "done"


def test_a_body_that_really_hangs_is_stopped_by_the_real_clock() -> None:
    @step(timeout="50ms")
    async def hangs() -> None:
        await asyncio.sleep(3600)

    @agent
    async def is_patient() -> str:
        try:
            await hangs()
        except StepTimedOut:
            return "stopped"
        return "never"

    assert run_agent(is_patient).result == "stopped"


def test_the_total_time_ends_retries_and_cuts_the_last_attempt(policies: Callable[[str], Path]) -> None:
    @step
    def fails() -> None:
        raise ConnectionError("busy")

    @agent
    async def is_patient() -> None:
        await fails()

    file = policies(
        "targets: {'*fails': {timeout: {total: 100s}, "
        "retry: {max_attempts: 9, base: 30s, cap: 30s, backoff: constant, jitter: none}}}"
    )
    run = run_agent(is_patient, policies=file, durations={fails: timedelta(seconds=20)})
    assert (run.state, run.attempts) == (RunState.FAILED, 2)
    assert run.elapsed == timedelta(seconds=20 + 30 + 20), "a third try would begin at 100 s"


def test_a_cancelled_run_stops_the_bodies_that_are_under_way() -> None:
    @step(timeout="2h")
    def takes_an_hour() -> str:
        return "done"

    @agent
    async def leaves() -> str:
        try:
            async with asyncio.timeout(60):
                return await takes_an_hour()
        except TimeoutError:
            await asyncio.sleep(10)
            return "left"

    with AgentTester(durations={takes_an_hour: timedelta(hours=1)}) as tester:
        run = tester.run(leaves)
        (attempt,) = attempts_of(tester, run.run_id)
    assert (run.result, round(run.elapsed.total_seconds())) == ("left", 70)
    assert attempt.outcome == "cancelled"


# Circuits


@tool(retry=Retry(max_attempts=3, base_seconds=1, cap_seconds=1))
def search(down_seconds: float) -> str:
    """Down for so long on the clock of the test."""
    calls.append(CLOCK.now())
    if (CLOCK.now() - calls[0]).total_seconds() < down_seconds:
        raise ConnectionError("down")
    return "found"


@agent
async def searches(down_seconds: float) -> str:
    try:
        return await search(down_seconds)
    except CircuitOpen as error:
        return f"{error.target} is open until {error.retry_at}"


BREAKER = """
targets:
  search:
    breaker: {consecutive_failures: 2, open_for: {base: 60s, cap: 60s, jitter: 0}%s}
    %s
"""


def test_a_step_whose_circuit_opens_is_parked_and_goes_on_when_a_probe_succeeds(
    policies: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = policies(BREAKER % ("", ""))
    with AgentTester(policies=file) as tester:
        monkeypatch.setattr(f"{__name__}.CLOCK", tester.clock)
        run = tester.run(searches, {"down_seconds": 100})
        attempts = attempts_of(tester, run.run_id)
    assert run.result == "found"
    seconds = [round((at - calls[0]).total_seconds()) for at in calls]
    assert seconds[2:] == [seconds[1] + 60, seconds[1] + 120], "a probe a minute"
    assert [each.outcome for each in attempts] == ["failed", "failed", "failed", "accepted"]


def test_a_step_that_was_parked_for_as_long_as_it_may_tells_its_agent(
    policies: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with AgentTester(policies=policies(BREAKER % ("", "park: {max: 10m}"))) as tester:
        monkeypatch.setattr(f"{__name__}.CLOCK", tester.clock)
        run = tester.run(searches, {"down_seconds": 1e6})
    assert "search is open until" in run.result
    assert timedelta(minutes=10) <= run.elapsed < timedelta(minutes=12)


def test_an_open_circuit_raises_in_the_agent_where_its_policy_says_so(
    policies: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with AgentTester(policies=policies(BREAKER % (", when_open: raise", ""))) as tester:
        monkeypatch.setattr(f"{__name__}.CLOCK", tester.clock)
        run = tester.run(searches, {"down_seconds": 1e6})
        assert "search is open until 2026-01-01" in run.result
        assert len(calls) == 2, "the third try found the circuit open"
        calls.clear()
        assert tester.run(searches, {"down_seconds": 0}).attempts == 0, "circuits belong to the tester, not to the run"


def test_an_open_circuit_ends_the_run_where_its_policy_says_so(
    policies: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with AgentTester(policies=policies(BREAKER % (", when_open: fail", ""))) as tester:
        monkeypatch.setattr(f"{__name__}.CLOCK", tester.clock)
        run = tester.run(searches, {"down_seconds": 1e6})
    assert run.state is RunState.FAILED
    assert run.error is not None and run.error["code"] == "circuit_open"


def test_a_crash_while_a_step_is_parked_or_probed_changes_nothing(
    policies: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for crash in range(1, 5):
        calls.clear()
        with AgentTester(policies=policies(BREAKER % ("", ""))) as tester:
            monkeypatch.setattr(f"{__name__}.CLOCK", tester.clock)
            run = tester.run(searches, {"down_seconds": 100}, crash_during=crash)
        assert (run.result, run.crashes) == ("found", 1)


def test_a_watched_providers_circuit_parks_the_step_that_asks_it() -> None:
    answers = iter([500] * 5 + [200])

    @step(provider="openai", retry=Retry(max_attempts=6, base_seconds=1, cap_seconds=1))
    async def asks() -> int:
        transport = httpx.MockTransport(lambda _: httpx.Response(next(answers), json={"model": "gpt-4o"}))
        async with httpx.AsyncClient(transport=transport) as client:
            answer = await client.post("https://api.openai.com/v1/chat/completions", json={"model": "gpt-4o"})
        answer.raise_for_status()
        return answer.status_code

    @agent
    async def plans() -> int:
        return await asks()

    with AgentTester() as tester:
        run = tester.run(plans)
        attempts = attempts_of(tester, run.run_id)
    assert (run.result, len(attempts)) == (200, 6)
    assert run.elapsed > timedelta(seconds=12), "five failures opened the circuit for 15 s"


def test_a_tool_inside_a_step_is_tried_again_in_place_and_takes_time_on_the_fake_clock_only(
    policies: Callable[[str], Path],
) -> None:
    @tool
    def shaky() -> int:
        calls.append(datetime.now(UTC))
        if len(calls) < 3:
            raise ConnectionError("busy")
        return len(calls)

    @step
    def uses() -> int:
        return shaky.call()

    @agent
    async def works() -> int:
        return await uses()

    file = policies("targets: {'*shaky': {retry: {max_attempts: 3, base: 1s, cap: 1s, jitter: none}}}")
    run = run_agent(works, policies=file)
    assert (run.result, run.attempts, run.elapsed) == (3, 1, timedelta(seconds=2))


# Steps that stand still


class Client:
    """Nothing that can be stored."""

    def __init__(self) -> None:
        self.lock = threading.Lock()


def test_a_result_that_cannot_be_stored_blocks_the_step_and_is_not_paid_again() -> None:
    @step(retry=3)
    def makes() -> int:
        return Client()  # type: ignore[return-value]  # the mistake under test

    @agent
    async def wants() -> int:
        return await makes()

    run = run_agent(wants)
    assert (run.state, run.attempts) == (RunState.BLOCKED, 1)
    assert [each.state for each in run.steps] == [StepState.BLOCKED]
    with pytest.raises(RunBlocked):
        _ = run.result


def test_a_body_that_nobody_has_worked_for_blocks_the_step() -> None:
    async def later() -> int:
        return 1

    @step
    def forgets() -> int:
        return later()  # type: ignore[return-value]  # the mistake under test

    @agent
    async def wants() -> int:
        return await forgets()

    run = run_agent(wants)
    assert (run.state, run.steps[0].state) == (RunState.BLOCKED, StepState.BLOCKED)


@step(delivery="at_most_once")
def sends() -> str:
    return "sent"


@agent
async def sender() -> str:
    return await sends()


def test_an_at_most_once_step_that_was_under_way_in_a_crash_is_unknown() -> None:
    with AgentTester() as tester:
        run = tester.run(sender, crash_during=1)
        with tester.database.read() as connection:
            assert read_state(connection, "default", run.run_id) == (RunState.WAITING, "unknown_outcome")
    assert (run.state, run.attempts, run.steps[0].state) == (RunState.WAITING, 1, StepState.UNKNOWN)
    with pytest.raises(RunBlocked, match="waiting"):
        _ = run.result


def test_an_at_most_once_step_that_runs_out_of_time_is_unknown() -> None:
    run = run_agent(sender, durations={sends: timedelta(hours=1)})
    assert (run.state, run.steps[0].state) == (RunState.WAITING, StepState.UNKNOWN)


def test_a_step_that_takes_its_process_along_fails_after_max_lost() -> None:
    @step(max_lost=3)
    def deadly() -> int:
        return 1

    @agent
    async def careful() -> str:
        try:
            return str(await deadly())
        except StepFailed as error:
            return error.error_type

    run = run_agent(careful, crash_during=range(1, 4))
    assert (run.result, run.attempts, run.crashes) == ("AttemptsLost", 3, 3)
    assert run_agent(careful, crash_during=range(1, 3)).result == "1"


# One process


LOCK = asyncio.Lock()


@step
async def locked(label: str) -> int:
    """Contended, so that the lock belongs to the event loop of its first use."""

    async def inner() -> None:
        async with LOCK:
            await asyncio.sleep(0)

    await asyncio.gather(inner(), inner())
    return id(asyncio.get_running_loop())


@agent
async def locks() -> list[int]:
    return [await locked("first"), *await asyncio.gather(locked("second"), locked("third"))]


def test_a_lock_of_a_module_serves_every_call_of_every_tester() -> None:
    with AgentTester() as tester:
        loops = {*tester.run(locks).result, *tester.run(locks, crash_after=1).result}
    assert len(loops | {*run_agent(locks).result}) == 1


def test_a_client_of_a_module_keeps_its_connections_between_calls() -> None:
    connections: list[Any] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    client = httpx.AsyncClient()
    address: list[int] = []

    @step
    async def asks(number: int) -> str:
        if not address:
            server = await asyncio.start_server(serve, "127.0.0.1", 0)
            address.append(server.sockets[0].getsockname()[1])
            connections.append(server)
        return (await client.get(f"http://127.0.0.1:{address[0]}/")).text

    @step
    async def closes() -> None:
        await client.aclose()
        for each in reversed(connections):
            each.close()
            await each.wait_closed()

    @agent
    async def asks_twice() -> list[str]:
        return [await asks(1), await asks(2)]

    @agent
    async def ends() -> None:
        await closes()

    assert run_agent(asks_twice).result == ["ok", "ok"]
    assert run_agent(asks_twice).result == ["ok", "ok"]
    assert len(connections) == 2, "the server and one connection"
    run_agent(ends)


def test_what_ends_a_test_ends_it_from_within_a_body() -> None:
    def gives_up() -> str:
        pytest.fail("seen enough")

    def is_interrupted() -> str:
        raise KeyboardInterrupt

    with pytest.raises(pytest.fail.Exception, match="seen enough"):
        run_agent(sender, fakes={sends: gives_up})
    with pytest.raises(KeyboardInterrupt):
        run_agent(sender, fakes={sends: is_interrupted}, durations={sends: timedelta(hours=1)})


def test_a_body_that_exits_is_a_failure_of_its_step() -> None:
    def exits() -> str:
        raise SystemExit(1)

    assert run_agent(sender, fakes={sends: exits}).state is RunState.FAILED


def test_when_a_circuit_closes_the_steps_that_wait_follow_in_a_ramp(
    policies: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    @agent
    async def searches_often() -> list[str]:
        return list(await asyncio.gather(*(search(100) for _ in range(20))))

    with AgentTester(policies=policies(BREAKER % ("", ""))) as tester:
        monkeypatch.setattr(f"{__name__}.CLOCK", tester.clock)
        assert tester.run(searches_often).result == ["found"] * 20
    at = Counter(round((each - calls[0]).total_seconds()) for each in calls)
    assert at == {0: 20, 60: 1, 120: 1, 122: 4, 124: 8, 126: 7}, "a probe a minute, then a ramp"
