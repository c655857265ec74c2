"""One worker process of a simulation: the workers' own parts, without their threads, on a clock that is moved by hand.

Wires what ``paidonce_workers`` wires in a process: executor, policies, circuits, budgets, heartbeat and sweeper. What
their threads would do periodically, the simulation calls: ``beat`` and ``sweep``. Knows no broker: messages go to the
given publisher.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from paidonce.broker.publisher_protocol import MessagePublisher
from paidonce.declarations.registry import Registry
from paidonce.policies.policy_book import PolicyBook
from paidonce.replay.cache import MachineCache
from paidonce.replay.slice_threads import SliceThreads
from paidonce.runs.advance_settings import PYTHON_MINOR, AdvanceSettings
from paidonce.runs.advancer import Advancer
from paidonce_models.budgets import Unit
from paidonce_models.database.transactions import Database
from paidonce_models.queues import full_queue_name
from paidonce_models.store.messages import Message
from paidonce_models.store.recovery.workers import HeldAgent, Registration, register_worker
from paidonce_models.store.steps.claims import Claim
from paidonce_workers.bodies.body_runner import BodyRunner
from paidonce_workers.breakers import CircuitBreakers
from paidonce_workers.execution.executor import ExecutionSettings, Executor
from paidonce_workers.execution.held_leases import HeldLeases
from paidonce_workers.execution.local_schedule import LocalSchedule
from paidonce_workers.execution.store_waits import StoreWaits
from paidonce_workers.process.price_watch import PriceWatch
from paidonce_workers.recovery.heartbeat import Heartbeat
from paidonce_workers.recovery.sweeper import Sweeper
from paidonce_workers.resilience import LearnedProviders, StepCircuits, Timing


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """What the processes of a simulation share, and what survives each of them."""

    database: Database
    publisher: MessagePublisher
    bodies: BodyRunner
    namespace: str
    timing: Timing = field(default_factory=Timing)
    book: PolicyBook = field(default_factory=PolicyBook)
    breakers: CircuitBreakers | None = None
    """One object for all processes, like the Redis of the circuits."""
    guesses: Mapping[Unit, int] = field(default_factory=lambda: dict.fromkeys(Unit, 0))
    advancing: AdvanceSettings = field(default_factory=AdvanceSettings)
    lease_seconds: float = 10.0
    heartbeat_seconds: float = 3.0
    sweep_seconds: float = 2.0
    no_worker_seconds: float = 60.0
    step_timeout_seconds: float = 900.0
    inline_retry_seconds: float = 5.0


class LeftToTheSweeper(LocalSchedule):
    """Retries and timers are only in the store: a simulation sweeps at the instant at which they are due."""

    def retry_step(self, claim: Claim, seconds: float) -> None:
        """It is due in the store."""

    def wake_run(self, run_id: str, wake_at_us: int | None) -> None:
        """It is due in the store."""


class SimulatedWorker:
    """A process. A dead one is dropped, and another one is created under another name."""

    def __init__(
        self,
        fleet: Fleet,
        registry: Registry,
        name: str,
        *,
        store_waits: StoreWaits | None = None,
        slices: SliceThreads | None = None,
        cached_runs: int = 1_000,
    ) -> None:
        self.name = name
        self._fleet = fleet
        self._registry = registry
        self.cache = MachineCache(cached_runs)
        self._prices = PriceWatch(database=fleet.database, namespace=fleet.namespace)
        self.held = HeldLeases()
        self.circuits = StepCircuits(
            book=fleet.book,
            breakers=fleet.breakers,
            step=registry.step,
            providers=LearnedProviders(fleet.database, fleet.namespace, monotonic=fleet.timing.monotonic),
            timing=fleet.timing,
        )
        self.advancer = Advancer(
            fleet.database, registry, self.cache, fleet.advancing, namespace=fleet.namespace, slices=slices
        )
        self.executor = Executor(
            database=fleet.database,
            registry=registry,
            advancer=self.advancer,
            publisher=fleet.publisher,
            bodies=fleet.bodies,
            held=self.held,
            local_schedule=LeftToTheSweeper(
                database=fleet.database,
                publisher=fleet.publisher,
                namespace=fleet.namespace,
                deadlines=fleet.bodies.deadlines,
            ),
            store_waits=store_waits or StoreWaits(),
            circuits=self.circuits,
            prices=self._prices.current,
            settings=ExecutionSettings(
                namespace=fleet.namespace,
                worker=name,
                lease_seconds=fleet.lease_seconds,
                step_timeout_seconds=fleet.step_timeout_seconds,
                max_payload_bytes=fleet.advancing.max_payload_bytes,
                guesses=fleet.guesses,
                inline_retry_seconds=fleet.inline_retry_seconds,
                cancel_grace_seconds=fleet.advancing.cancel_grace_seconds,
                isolates_suspects=False,
            ),
        )
        self._heartbeat = Heartbeat(
            database=fleet.database,
            held=self.held,
            bodies=fleet.bodies,
            worker=name,
            registered_as=name,
            lease_seconds=fleet.lease_seconds,
            every_seconds=fleet.heartbeat_seconds,
            breakers=fleet.breakers,
        )
        self._sweeper = Sweeper(
            database=fleet.database,
            publisher=fleet.publisher,
            namespace=fleet.namespace,
            worker=name,
            shards=1,
            lease_seconds=fleet.lease_seconds,
            every_seconds=fleet.sweep_seconds,
            no_worker_seconds=fleet.no_worker_seconds,
            breakers=fleet.breakers,
            now_seconds=lambda: fleet.timing.now_us() / 1e6,
        )

    def register(self) -> list[Message]:
        """What a worker does before its first message: read its own prices, and register in the store what it holds,
        with its budgets; returns what to publish."""
        self._prices.read()
        agents, steps = list(self._registry.agents), list(self._registry.steps)
        registration = Registration(
            worker=self.name,
            namespace=self._fleet.namespace,
            hostname="simulation",
            pid=1,
            python_minor=PYTHON_MINOR,
            queues=sorted({full_queue_name(each.queue) for each in (*agents, *steps)}),
            agents=[
                HeldAgent(
                    name=held.name,
                    version=held.version,
                    signature=held.signature,
                    queue=full_queue_name(held.queue),
                    limits=held.limits,
                )
                for held in agents
            ],
            steps=[held.name for held in steps],
            bounds=self._fleet.advancing.bounds.by_reason,
        )
        return self._fleet.database.transact(lambda connection: register_worker(connection, registration))

    def beat(self) -> None:
        """One heartbeat: renew leases and probes, stop attempts whose lease was not renewed."""
        self._heartbeat.beat()
        self._heartbeat.renew_probes()

    def sweep(self) -> list[Message]:
        """One sweep; returns what to publish."""
        return self._sweeper.sweep_shard(0)
