"""The cached queues of agents: no older than a second, and never an absence."""

from __future__ import annotations

from paidonce.runs.agent_queues import FRESH_SECONDS, MOST_CACHED, AgentQueues
from paidonce_models.database.schema import upgrade
from paidonce_models.database.transactions import Database
from paidonce_models.queues import DEFAULT_QUEUE
from paidonce_models.store.recovery.workers import HeldAgent, Registration, register_worker


class Stand:
    """A store in memory, workers that register in it, and a clock of the producer's."""

    def __init__(self) -> None:
        self.database = Database("sqlite://")
        upgrade(self.database)
        self.seconds = 100.0

    def register(self, queue: str, *agents: str, namespace: str = "default") -> None:
        registration = Registration(
            worker=f"{namespace}-{queue}",
            namespace=namespace,
            hostname="h",
            pid=1,
            python_minor="3.11",
            queues=[queue],
            agents=[HeldAgent(name=name, version="1", signature="s", queue=queue) for name in agents],
        )
        self.database.transact(lambda connection: register_worker(connection, registration))

    def queues(self, namespace: str = "default") -> AgentQueues:
        return AgentQueues(namespace, now_seconds=lambda: self.seconds)


def test_a_changed_queue_is_seen_within_a_second() -> None:
    stand = Stand()
    stand.register("paidonce.old", "research")
    queues = stand.queues()
    assert queues.queue_of(stand.database, "research") == "paidonce.old"
    stand.register("paidonce.new", "research")
    stand.seconds += FRESH_SECONDS * 0.9
    assert queues.queue_of(stand.database, "research") == "paidonce.old"
    stand.seconds += FRESH_SECONDS * 0.2
    assert queues.queue_of(stand.database, "research") == "paidonce.new"


def test_that_nobody_holds_an_agent_is_asked_each_time() -> None:
    """When the first worker registers, it moves only those runs that are there by then."""
    stand = Stand()
    queues = stand.queues()
    assert queues.queue_of(stand.database, "research") == DEFAULT_QUEUE
    stand.register("paidonce.new", "research")
    assert queues.queue_of(stand.database, "research") == "paidonce.new"


def test_each_namespace_has_its_own() -> None:
    stand = Stand()
    stand.register("paidonce.ours", "research", namespace="ours")
    stand.register("paidonce.theirs", "research", namespace="theirs")
    assert stand.queues("ours").queue_of(stand.database, "research") == "paidonce.ours"
    assert stand.queues("theirs").queue_of(stand.database, "research") == "paidonce.theirs"


def test_names_without_end_are_forgotten() -> None:
    stand = Stand()
    names = [f"agent-{number}" for number in range(MOST_CACHED + 10)]
    stand.register("paidonce.x", *names)
    queues = stand.queues()
    for name in names[: MOST_CACHED // 100] + names:
        queues.queue_of(stand.database, name)
    assert len(queues._cached) <= MOST_CACHED
