"""The rules of a circuit: the reference model against the documentation, and the Lua scripts against the model."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from paidonce_workers.breakers.connecting import connection_maker
from paidonce_workers.breakers.link import Link
from paidonce_workers.breakers.own_threads import ThreadStarter
from paidonce_workers.breakers.rules_on_redis import RulesOnRedis, checker
from tests.services.valkey import RedisServer
from tests.workers.breakers.machine import CircuitMachine
from tests.workers.breakers.oracle import Clock

FEW = settings(max_examples=80, stateful_step_count=30, suppress_health_check=list(HealthCheck))
SCENARIOS_OF_THE_MODEL = 1_000
SCENARIOS_ON_EACH_SERVER = 2_000


def many(scenarios: int) -> settings:
    return settings(FEW, max_examples=scenarios, stateful_step_count=40)


@pytest.fixture
def link(circuit_server: RedisServer, namespace: str) -> Iterator[Link]:
    url = circuit_server.url()
    starter = ThreadStarter()
    made = Link(
        make=connection_maker(url, "TEST"),
        check=checker(namespace),
        address=url,
        setting="TEST",
        tell=lambda news: news(),
        begin=starter.begin,
    )
    yield made
    made.close()
    starter.close()


def test_the_model_keeps_the_documented_rules() -> None:
    run_state_machine_as_test(CircuitMachine, settings=FEW)  # type: ignore[no-untyped-call]


def test_the_scripts_do_what_the_model_does(link: Link, namespace: str) -> None:
    _compare(link, namespace, FEW)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_model_keeps_the_documented_rules_in_a_thousand_scenarios() -> None:
    run_state_machine_as_test(CircuitMachine, settings=many(SCENARIOS_OF_THE_MODEL))  # type: ignore[no-untyped-call]


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_scripts_do_what_the_model_does_in_two_thousand_scenarios_on_each_server(
    link: Link, namespace: str
) -> None:
    _compare(link, namespace, many(SCENARIOS_ON_EACH_SERVER))


def _compare(link: Link, namespace: str, how_often: settings) -> None:
    def machine() -> CircuitMachine:
        clock = Clock()
        return CircuitMachine(RulesOnRedis(link, namespace, now_us=clock.now_us), clock)

    run_state_machine_as_test(machine, settings=how_often)  # type: ignore[no-untyped-call]
