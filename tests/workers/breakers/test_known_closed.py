"""A closed circuit is asked about at most every quarter of a second; everything else at once."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from paidonce.policies import BreakerPolicy
from paidonce_workers.breakers import circuit_decisions
from paidonce_workers.breakers.circuit_breakers import CircuitBreakers
from paidonce_workers.breakers.circuit_scripts import CircuitScripts
from paidonce_workers.breakers.circuit_state import Answer, CircuitState, Verdict
from paidonce_workers.breakers.outcome import SUCCESS, failure
from tests.services.valkey import RedisServer
from tests.workers.breakers.conftest import MakeBreakers

POLICY = BreakerPolicy(consecutive_failures=2, open_base_seconds=60.0, probes=1)
DOWN = failure(frozenset({"ConnectionError"}))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The circuits that Redis has been asked about."""
    circuits: list[str] = []
    admit = CircuitScripts.admit

    def counted(self: CircuitScripts, circuit: str, *given: object, **options: object) -> object:
        circuits.append(circuit)
        return admit(self, circuit, *given, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(CircuitScripts, "admit", counted)
    return circuits


@pytest.fixture
def stop_the_clock(monkeypatch: pytest.MonkeyPatch, patient: None) -> Callable[[float], None]:
    """Lets seconds pass for what a process has heard; nothing else does."""
    monkeypatch.setattr(circuit_decisions, "CLOSED_SECONDS", 1000.0)

    def passes(seconds: float) -> None:
        monkeypatch.setattr(circuit_decisions, "CLOSED_SECONDS", 1000.0 if seconds < 0.25 else 0.0)

    return passes


def call(breakers: CircuitBreakers, token: str = "t", *, fails: bool = False) -> Verdict:
    admission = breakers.admit("search", POLICY, token=token)
    if admission.is_admitted:
        breakers.report(admission, DOWN if fails else SUCCESS)
    return admission.verdict


def test_a_closed_circuit_is_not_asked_about_again_within_a_quarter_of_a_second(
    breakers: CircuitBreakers, asked: list[str], stop_the_clock: Callable[[float], None]
) -> None:
    assert circuit_decisions.CLOSED_SECONDS == 1000.0
    for _ in range(5):
        assert call(breakers) is Verdict.ADMITTED
    assert asked == ["search"]
    stop_the_clock(0.3)
    assert call(breakers) is Verdict.ADMITTED
    assert asked == ["search", "search"]


def test_in_production_that_is_a_quarter_of_a_second() -> None:
    assert circuit_decisions.CLOSED_SECONDS == 0.25


def test_failures_count_at_once_and_the_process_that_opened_it_permits_nothing_more(
    breakers: CircuitBreakers, stop_the_clock: Callable[[float], None]
) -> None:
    assert call(breakers) is Verdict.ADMITTED
    assert [call(breakers, fails=True) for _ in range(2)] == [Verdict.ADMITTED] * 2
    assert call(breakers) is Verdict.REFUSED


def test_another_process_sees_an_opening_when_it_asks_or_reports_and_counts_nothing_twice(
    circuit_server: RedisServer, make_breakers: MakeBreakers, stop_the_clock: Callable[[float], None]
) -> None:
    one, other = make_breakers(circuit_server.url()), make_breakers(circuit_server.url())
    assert call(one) is call(other) is Verdict.ADMITTED
    assert [call(one, fails=True) for _ in range(2)] == [Verdict.ADMITTED] * 2
    assert call(other) is Verdict.ADMITTED, "it has not heard yet"
    assert call(other) is Verdict.REFUSED, "its report has been answered"


def test_a_half_open_circuit_is_asked_about_each_time_and_permits_one_probe_for_the_fleet(
    circuit_server: RedisServer, make_breakers: MakeBreakers, stop_the_clock: Callable[[float], None]
) -> None:
    one, other = make_breakers(circuit_server.url()), make_breakers(circuit_server.url())
    assert call(one) is call(other) is Verdict.ADMITTED
    one.force_open("search", 0)
    stop_the_clock(0.3)
    verdicts = [each.admit("search", POLICY, token=token).verdict for each, token in ((one, "a"), (other, "b"))]
    assert verdicts == [Verdict.PROBE, Verdict.REFUSED]


def test_a_circuit_of_which_redis_could_not_be_told_is_decided_here(
    private_redis: RedisServer, make_breakers: MakeBreakers, stop_the_clock: Callable[[float], None]
) -> None:
    breakers = make_breakers(private_redis.url())
    assert call(breakers) is Verdict.ADMITTED
    private_redis.stop()
    assert [call(breakers, fails=True) for _ in range(3)][:2] == [Verdict.ADMITTED] * 2
    assert call(breakers) is Verdict.REFUSED


def test_how_old_it_is_counts_from_the_question(breakers: CircuitBreakers, asked: list[str]) -> None:
    breakers.admit("search", POLICY, token="t")
    answer, _ = breakers._seen["search"]
    breakers._seen["search"] = (answer, time.monotonic() - 0.26)
    breakers.admit("search", POLICY, token="t")
    assert asked == ["search", "search"]


def test_a_circuit_that_redis_has_forgotten_is_asked_about_and_counts_again(
    breakers: CircuitBreakers, namespace: str, asked: list[str], stop_the_clock: Callable[[float], None]
) -> None:
    assert call(breakers) is Verdict.ADMITTED
    assert breakers._link is not None
    breakers._link.command("DEL", f"paidonce:{namespace}:breaker:search", limit_seconds=20.0)
    assert [call(breakers, fails=True) for _ in range(3)] == [Verdict.ADMITTED] * 3, "one is lost with the key"
    assert call(breakers) is Verdict.REFUSED


def test_an_opening_is_not_forgotten_for_an_older_answer_that_arrives_later(breakers: CircuitBreakers) -> None:
    def heard(state: CircuitState, now_us: int) -> None:
        answer = Answer(verdict=Verdict.COUNTED, state=state, epoch=1, now_us=now_us)
        breakers._hear("search", answer, is_shared=True, at_seconds=time.monotonic())

    heard(CircuitState.OPEN, 2_000_000)
    heard(CircuitState.CLOSED, 1_999_999)
    assert breakers._known_closed("search", time.monotonic()) is None
    heard(CircuitState.CLOSED, 2_000_001)
    assert breakers._known_closed("search", time.monotonic()) is not None
