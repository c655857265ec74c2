"""The rules of a circuit on Redis: the Lua scripts against the reference model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from paidonce.policies import BreakerPolicy
from paidonce_workers.breakers.circuit_scripts import CircuitScripts, checker
from paidonce_workers.breakers.circuit_state import CircuitState
from paidonce_workers.breakers.outcome import failure
from paidonce_workers.breakers.redis_connecting import connection_maker
from paidonce_workers.breakers.redis_link import Link
from tests.long_proofs import share_of
from tests.services.valkey import RedisServer
from tests.workers.breakers.machine import CircuitMachine, ForgetfulRules, scenarios
from tests.workers.breakers.oracle import Clock

SCENARIOS_ON_BOTH_SERVERS = share_of(2_000)


@contextmanager
def linked(server: RedisServer, namespace: str) -> Iterator[Link]:
    url = server.url()
    made = Link(make=connection_maker(url, "TEST"), check=checker(namespace), address=url, setting="TEST")
    try:
        yield made
    finally:
        made.close()


class EachAlike:
    """Rules on several servers behind the interface of one: all of them have to answer the same."""

    def __init__(self, each: Sequence[ForgetfulRules]) -> None:
        self._each = each

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def ask(*arguments: object, **options: object) -> object:
            first, *others = [getattr(one, name)(*arguments, **options) for one in self._each]
            assert all(other == first for other in others)
            return first

        return ask


def test_the_scripts_do_what_the_model_does(circuit_server: RedisServer, namespace: str) -> None:
    _compare([circuit_server], namespace, scenarios(30, steps=30))


def test_outcomes_leave_the_window_of_the_script(circuit_server: RedisServer, namespace: str) -> None:
    clock = Clock()
    policy = BreakerPolicy(consecutive_failures=10**6, min_calls=4, failure_rate=0.5, window_seconds=10.0)
    with linked(circuit_server, namespace) as link:
        rules = CircuitScripts(link, namespace, now_us=clock.now_us)

        def fail() -> CircuitState:
            named = {"token": "t", "limit_seconds": 10.0}
            epoch = rules.admit("search", policy, token_us=1_000_000, **named).epoch  # type: ignore[arg-type]
            ended = rules.report("search", policy, failure({"http:503"}), epoch=epoch, chance=0.0, **named)  # type: ignore[arg-type]
            return ended.state

        assert {fail() for _ in range(3)} == {CircuitState.CLOSED}
        clock.forward(10.0)
        assert {fail() for _ in range(3)} == {CircuitState.CLOSED}
        assert fail() is CircuitState.OPEN


@pytest.mark.slow
@pytest.mark.service
@pytest.mark.timeout(2400)
def test_the_scripts_do_what_the_model_does_in_two_thousand_more_on_valkey_and_redis_at_once(
    redis_server: RedisServer, installed_redis: RedisServer, namespace: str
) -> None:
    _compare([redis_server, installed_redis], namespace, scenarios(SCENARIOS_ON_BOTH_SERVERS))


def _compare(servers: Sequence[RedisServer], namespace: str, how_often: settings) -> None:
    with ExitStack() as stack:
        links = [stack.enter_context(linked(server, namespace)) for server in servers]

        def machine() -> CircuitMachine:
            clock = Clock()
            rules = EachAlike([ForgetfulRules(link, namespace, clock) for link in links])
            return CircuitMachine(cast("ForgetfulRules", rules), clock)

        run_state_machine_as_test(machine, settings=how_often)  # type: ignore[no-untyped-call]
