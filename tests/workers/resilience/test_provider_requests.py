"""Steps that call a provider whose circuit is watched: held back before their claim, stopped in their middle."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import openai
import pytest

from paidonce import CircuitOpen, agent, step
from paidonce.policies import BreakerPolicy, describe_failure
from paidonce.policies.file.parsing import parse_policies
from paidonce_models.states import AttemptOutcome, RunState
from paidonce_workers.breakers import CircuitBreakers, CircuitState
from paidonce_workers.capture import capturing
from paidonce_workers.resilience import AttemptCircuits
from tests.services.valkey import RedisServer
from tests.services.waiting import wait_until
from tests.workers.breakers.conftest import ServerClock
from tests.workers.stand import Stand, StandWorker

ANSWER = {
    "id": "c-1",
    "object": "chat.completion",
    "created": 1,
    "model": "gpt-4o-mini",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "yes"}}],
    "usage": {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100},
}
CIRCUIT = "provider:openai"
WATCHED = parse_policies(f"targets: {{'{CIRCUIT}': {{breaker: {{consecutive_failures: 3}}}}}}", "paidonce.yaml")
"""Without it nobody watches the circuit of a provider that no step declares."""
QUICK = parse_policies(
    "targets:\n"
    f"  '{CIRCUIT}': {{breaker: {{consecutive_failures: 2, open_for: {{base: 60s, cap: 60s, jitter: 0}}}}}}\n"
    "  llm.persistent: {retry: {base: 100ms, cap: 100ms}}\n",
    "paidonce.yaml",
)


@dataclass
class Model:
    """An OpenAI-compatible server in this process."""

    url: str = ""
    statuses: list[int] = field(default_factory=list)
    requests: int = 0


@pytest.fixture
def model() -> Iterator[Model]:
    made = Model()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            made.requests += 1
            status = made.statuses.pop(0) if made.statuses else 200
            body = json.dumps(ANSWER if status == 200 else {"error": {"message": "no"}}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    made.url = f"http://127.0.0.1:{server.server_port}/v1"
    with capturing([(f"127.0.0.1:{server.server_port}", "openai")]):
        yield made
    server.shutdown()
    server.server_close()
    thread.join()


def ask(url: str, *, max_retries: int = 0) -> str:
    with openai.OpenAI(base_url=url, api_key="key", max_retries=max_retries) as client:
        done = client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "?"}])
        return str(done.choices[0].message.content)


async def ask_async(url: str) -> str:
    async with httpx.AsyncClient() as client:
        done = await client.post(f"{url}/chat/completions", json={"model": "gpt-4o-mini", "messages": []})
        done.raise_for_status()
        return str(done.json()["choices"][0]["message"]["content"])


@step(name="llm.declared", provider="openai")
def declared(url: str, times: int) -> str:
    return [ask(url) for _ in range(times)][-1]


@step(name="llm.learned")
async def learned(url: str, times: int) -> str:
    return [await ask_async(url) for _ in range(times)][-1]


@step(name="llm.telling", provider="openai", when_open="raise")
def telling(url: str, times: int) -> str:
    return declared.fn(url, times)


@step(name="llm.broken", provider="openai")
def broken(url: str, times: int) -> str:
    raise ConnectionError("of something else")


@agent(name="llm.asker")
async def asker(url: str, how: str, times: int = 1) -> str:
    try:
        steps = {"declared": declared, "learned": learned, "telling": telling, "broken": broken}
        return str(await steps[how](url, times))
    except CircuitOpen as error:
        return f"{error.target} is open"


@step(name="llm.persistent", provider="openai", retry=2)
async def persistent(url: str, times: int) -> str:
    return [await ask_async(url) for _ in range(times)][-1]


@agent(name="llm.patient")
async def patient(url: str) -> str:
    return await persistent(url, 1)


AGENTS = (declared, learned, telling, broken, persistent, asker, patient)


def run(stand: Stand, worker: StandWorker, model: Model, how: str, times: int = 1) -> str:
    run_id = stand.submit(asker, {"url": model.url, "how": how, "times": times})
    stand.serve(worker)
    return run_id


def circuit_is(breakers: CircuitBreakers, state: CircuitState) -> None:
    """Requests report in a thread of the breakers'."""
    wait_until(
        lambda: state in [each.state for each in breakers.states() if each.circuit == CIRCUIT], f"it is {state}", 5
    )


def test_a_declared_provider_holds_its_steps_back(stand: Stand, breakers: CircuitBreakers, model: Model) -> None:
    worker = stand.worker(*AGENTS, breakers=breakers)
    sweeper = stand.sweeper(breakers=breakers)
    breakers.force_open(CIRCUIT, for_seconds=60)
    run_id = run(stand, worker, model, "declared")
    assert stand.run(run_id).state is RunState.PARKED
    assert stand.attempts(run_id) == []
    assert model.requests == 0
    breakers.force_close(CIRCUIT)
    sweeper.sweep()
    stand.serve(worker)
    assert stand.run(run_id).result == b'"yes"'


def test_a_step_that_its_provider_holds_back_keeps_no_probe_of_its_own_circuit(
    stand: Stand, breakers: CircuitBreakers, model: Model
) -> None:
    book = parse_policies("targets: {llm.declared: {breaker: true}}", "paidonce.yaml")
    worker = stand.worker(*AGENTS, breakers=breakers, book=book)
    breakers.force_open(CIRCUIT, for_seconds=60)
    breakers.force_open("llm.declared", 0)  # the next call is a probe
    assert stand.run(run(stand, worker, model, "declared")).state is RunState.PARKED
    own = {each.circuit: each for each in breakers.states()}["llm.declared"]
    assert (own.state, own.probes_under_way) == (CircuitState.HALF_OPEN, 0)


def test_a_step_that_says_raise_is_told(stand: Stand, breakers: CircuitBreakers, model: Model) -> None:
    worker = stand.worker(*AGENTS, breakers=breakers)
    breakers.force_open(CIRCUIT, for_seconds=60)
    run_id = run(stand, worker, model, "telling")
    assert stand.run(run_id).result == b'"provider:openai is open"'
    assert model.requests == 0


def test_a_provider_is_learned_from_what_the_step_has_called(
    stand: Stand, breakers: CircuitBreakers, model: Model
) -> None:
    first = stand.worker(*AGENTS, breakers=breakers, book=WATCHED)
    assert stand.run(run(stand, first, model, "learned")).state is RunState.SUCCEEDED
    breakers.force_open(CIRCUIT, for_seconds=60)
    assert stand.run(run(stand, first, model, "learned")).state is RunState.PARKED
    # Another process has it from the store.
    second = stand.worker(*AGENTS, breakers=breakers, book=WATCHED, name="worker-2")
    held = run(stand, second, model, "learned")
    assert stand.run(held).state is RunState.PARKED
    assert stand.attempts(held) == []
    assert model.requests == 1


def test_nobody_watches_a_provider_that_is_not_named(stand: Stand, breakers: CircuitBreakers, model: Model) -> None:
    worker = stand.worker(*AGENTS, breakers=breakers)
    model.statuses[:] = [500] * 20
    for _ in range(8):
        run(stand, worker, model, "learned")
    assert model.requests == 8
    assert CIRCUIT not in [each.circuit for each in breakers.states()]


@pytest.mark.parametrize("how", ["declared", "learned"])
def test_failed_requests_open_the_circuit(stand: Stand, breakers: CircuitBreakers, model: Model, how: str) -> None:
    worker = stand.worker(*AGENTS, breakers=breakers, book=WATCHED)
    model.statuses[:] = [500, 503, 429]
    for _ in range(3):
        assert stand.run(run(stand, worker, model, how)).state is RunState.FAILED
    circuit_is(breakers, CircuitState.OPEN)
    assert stand.run(run(stand, worker, model, "declared")).state is RunState.PARKED
    assert model.requests == 3


@pytest.mark.parametrize("how", ["declared", "learned"])
def test_a_bad_request_does_not(stand: Stand, breakers: CircuitBreakers, model: Model, how: str) -> None:
    worker = stand.worker(*AGENTS, breakers=breakers, book=WATCHED)
    model.statuses[:] = [400, 404, 400, 404, 422, 400]
    for _ in range(6):
        run(stand, worker, model, how)
    time.sleep(0.2)
    assert CircuitState.OPEN not in [each.state for each in breakers.states()]


def test_a_step_that_fails_without_a_request_says_nothing_of_its_provider(
    stand: Stand, breakers: CircuitBreakers, model: Model
) -> None:
    worker = stand.worker(*AGENTS, breakers=breakers, book=WATCHED)
    for _ in range(4):
        assert stand.run(run(stand, worker, model, "broken")).state is RunState.FAILED
    (found,) = [each for each in breakers.states() if each.circuit == CIRCUIT]
    assert (found.state, found.consecutive_failures) == (CircuitState.CLOSED, 0)


@pytest.mark.parametrize("how", ["declared", "learned"])
def test_one_found_open_in_mid_step_short_circuits_it_and_its_spend_is_kept(
    stand: Stand, breakers: CircuitBreakers, model: Model, how: str
) -> None:
    worker = stand.worker(*AGENTS, breakers=breakers, book=WATCHED)

    def open_after_the_first() -> None:
        wait_until(lambda: model.requests >= 1, "the first request", 10)
        breakers.force_open(CIRCUIT, for_seconds=60)

    thread = threading.Thread(target=open_after_the_first)
    thread.start()
    run_id = run(stand, worker, model, how, 10_000)
    thread.join()
    (attempt,) = stand.attempts(run_id)
    assert attempt.outcome == AttemptOutcome.SHORT_CIRCUITED
    assert stand.column("attempts", "cost_nanousd", run_id) == model.requests * (1000 * 150 + 100 * 600)
    assert stand.column("avoided", "calls", run_id) == 1
    assert stand.run(run_id).state is RunState.PARKED
    # It does not count as a try, and the step begins anew when the circuit is closed.
    assert stand.column("steps", "failed", run_id) == 0


@pytest.mark.parametrize("how", ["declared", "learned"])
def test_a_probe_of_a_provider_does_not_use_up_a_steps_tries(
    stand: Stand, breakers: CircuitBreakers, server_clock: ServerClock, model: Model, how: str
) -> None:
    """Neither of these steps has a second try."""
    worker = stand.worker(*AGENTS, breakers=breakers, book=QUICK)
    sweeper = stand.sweeper(breakers=breakers)
    run(stand, worker, model, how)  # what it calls can be learned
    breakers.force_open(CIRCUIT, for_seconds=0)
    model.statuses[:] = [503] * 3
    run_id = run(stand, worker, model, how)
    for probes in (1, 2, 3):
        assert stand.run(run_id).state is RunState.PARKED
        assert len(stand.attempts(run_id)) == probes
        circuit_is(breakers, CircuitState.OPEN)
        server_clock.skip(60)
        stand.pass_time(60)
        sweeper.sweep()
        stand.serve(worker)
    assert stand.run(run_id).result == b'"yes"'
    assert stand.column("steps", "failed", run_id) == 0
    assert model.requests == 5


def test_a_run_whose_last_try_opens_its_providers_circuit_sleeps_with_the_others(
    stand: Stand, breakers: CircuitBreakers, server_clock: ServerClock, model: Model
) -> None:
    worker = stand.worker(*AGENTS, breakers=breakers, book=QUICK)
    sweeper = stand.sweeper(breakers=breakers)
    model.statuses[:] = [503, 503]
    run_id = stand.submit(patient, {"url": model.url})
    for _ in range(4):
        stand.serve(worker)
        worker.deadlines.fall_due()
        stand.pass_time(0.5)
    assert (stand.run(run_id).state, model.requests) == (RunState.PARKED, 2)
    server_clock.skip(60)
    stand.pass_time(60)
    sweeper.sweep()
    stand.serve(worker)
    assert stand.run(run_id).result == b'"yes"'


def test_a_clients_own_error_around_it_is_seen_through(stand: Stand, breakers: CircuitBreakers, model: Model) -> None:
    """The openai client wraps what a transport raises into an ``APIConnectionError``."""

    @step(name="llm.declared", provider="openai", when_open="raise")
    def wrapped(url: str, times: int) -> str:
        ask(url)  # what it was claimed for
        breakers.force_open(CIRCUIT, for_seconds=60)
        with pytest.raises(openai.APIConnectionError):
            ask(url)
        return ask(url)

    @agent(name="llm.wrapping")
    async def wrapping(url: str) -> str:
        try:
            return str(await wrapped(url, 1))
        except CircuitOpen as error:
            return f"{error.target} is open"

    worker = stand.worker(wrapped, wrapping, breakers=breakers)
    run_id = stand.submit(wrapping, {"url": model.url})
    stand.serve(worker)
    assert stand.run(run_id).result == b'"provider:openai is open"'
    assert [each.outcome for each in stand.attempts(run_id)] == [AttemptOutcome.SHORT_CIRCUITED]
    assert model.requests == 1


def test_a_request_that_is_a_probe_keeps_its_place_while_it_lasts(stand: Stand, redis_server: RedisServer) -> None:
    """However long: the heartbeat renews it, as it does the probes of inline tools."""
    breakers = CircuitBreakers(
        redis_server.url(), namespace=f"test-{uuid.uuid4().hex[:12]}", classify=describe_failure, probe_seconds=60
    )
    server_clock = ServerClock(breakers)
    try:
        circuits = stand.worker(*AGENTS, breakers=breakers, book=WATCHED).circuits
        attempt = AttemptCircuits(circuits, learned, circuits.no_gate, inline_retry_seconds=0)
        request = attempt.request("openai")
        assert request is not None
        breakers.force_open(CIRCUIT, 0)
        request.begin()
        for _ in range(9):
            server_clock.skip(10)
            breakers.renew()
            assert not breakers.admit(CIRCUIT, BreakerPolicy(), token="another").is_admitted
        request.answered(200, {})
        circuit_is(breakers, CircuitState.CLOSED)
    finally:
        breakers.close()
