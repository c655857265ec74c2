"""What a host does with its orders: a few at once, none twice, and an end in bounded time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from paidonce_workers.bodies.body_runner import BodyCancelled, BodyRunner
from paidonce_workers.bodies.interrupt import Reason
from paidonce_workers.isolation_hosts.hosting import Hosting
from paidonce_workers.isolation_hosts.orders import Order, drain_line, order_line, read_order
from tests.services.waiting import wait_until

LIMIT_SECONDS = 30.0


@dataclass
class Bodies:
    """Stands for the executor: each step's body waits until it is let go or interrupted."""

    runner: BodyRunner = field(default_factory=BodyRunner)
    began: list[int] = field(default_factory=list)
    handed_back: list[int] = field(default_factory=list)
    go: dict[int, threading.Event] = field(default_factory=dict)

    def execute(self, order: Order) -> None:
        self.began.append(order.position)
        go = self.go.setdefault(order.position, threading.Event())

        def body() -> None:
            while not go.wait(0.01):
                pass

        try:
            self.runner.run(order.position, body, is_async=False, timeout_seconds=None, label=str(order.position))
        except BodyCancelled as error:
            assert error.reason is Reason.HANDED_BACK
            self.handed_back.append(order.position)

    def let_go(self, position: int) -> None:
        self.go.setdefault(position, threading.Event()).set()


@pytest.fixture
def bodies() -> Iterator[Bodies]:
    made = Bodies()
    yield made
    for go in made.go.values():
        go.set()
    made.runner.close()


def order(position: int) -> Order:
    return Order(run_id="r", position=position, name="step", agent="agent")


def hosting(bodies: Bodies, at_once: int = 2) -> Hosting:
    return Hosting(execute=bodies.execute, bodies=bodies.runner, at_once=at_once)


def drain_in_thread(host: Hosting, seconds: float) -> threading.Thread:
    thread = threading.Thread(target=host.drain, args=(seconds,), kwargs={"interrupt_seconds": LIMIT_SECONDS})
    thread.start()
    return thread


def test_a_few_run_at_once_and_the_rest_in_order(bodies: Bodies) -> None:
    host = hosting(bodies)
    for position in range(1, 6):
        host.take(order(position))
    wait_until(lambda: len(bodies.began) == 2, "as many run as may", LIMIT_SECONDS)
    bodies.let_go(2)
    wait_until(lambda: len(bodies.began) == 3, "the next one runs", LIMIT_SECONDS)
    for position in range(1, 6):
        bodies.let_go(position)
    wait_until(lambda: host.idle_seconds > 0, "all have run", LIMIT_SECONDS)
    assert sorted(bodies.began) == [1, 2, 3, 4, 5] and set(bodies.began[:2]) == {1, 2}


def test_a_second_order_for_what_waits_or_runs_does_nothing(bodies: Bodies) -> None:
    host = hosting(bodies, at_once=1)
    for position in (1, 1, 2, 2, 1):
        host.take(order(position))
    for position in (1, 2):
        bodies.let_go(position)
    wait_until(lambda: host.idle_seconds > 0, "all have run", LIMIT_SECONDS)
    assert bodies.began == [1, 2]
    host.take(order(1))
    wait_until(lambda: bodies.began == [1, 2, 1], "a later order is another delivery", LIMIT_SECONDS)


def test_a_drain_waits_for_what_runs_and_forgets_what_waits(bodies: Bodies) -> None:
    host = hosting(bodies, at_once=1)
    host.take(order(1))
    host.take(order(2))
    wait_until(lambda: bodies.began == [1], "the first runs", LIMIT_SECONDS)
    draining = drain_in_thread(host, LIMIT_SECONDS)
    bodies.let_go(1)
    draining.join(LIMIT_SECONDS)
    assert not draining.is_alive()
    host.take(order(3))
    assert (bodies.began, bodies.handed_back) == ([1], [])


def test_a_drain_hands_back_what_does_not_end_in_time(bodies: Bodies) -> None:
    host = hosting(bodies)
    host.take(order(1))
    wait_until(lambda: bodies.began == [1], "it runs", LIMIT_SECONDS)
    host.drain(0.05, interrupt_seconds=LIMIT_SECONDS)
    assert bodies.handed_back == [1]


def test_a_drain_that_waits_can_be_told_to_hurry(bodies: Bodies) -> None:
    host = hosting(bodies)
    host.take(order(1))
    wait_until(lambda: bodies.began == [1], "it runs", LIMIT_SECONDS)
    draining = drain_in_thread(host, 3600.0)
    wait_until(lambda: host._is_draining, "it drains", LIMIT_SECONDS)
    host.drain(0, interrupt_seconds=0)
    draining.join(LIMIT_SECONDS)
    assert not draining.is_alive() and bodies.handed_back == [1]


def test_orders_survive_the_way() -> None:
    assert read_order(order_line(order(7))) == order(7)
    assert read_order(drain_line(1.5)) == 1.5
