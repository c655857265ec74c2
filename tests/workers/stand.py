"""A worker's parts on a store in memory and a clock that the test moves; no thread, no broker, no waiting."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from sqlalchemy import text

from paidonce.declarations.declaration import AgentDeclaration, StepDeclaration
from paidonce.declarations.registry import Registry
from paidonce.policies.policy_book import PolicyBook
from paidonce.replay.cache import MachineCache
from paidonce.runs.advance_settings import AdvanceSettings
from paidonce.runs.advancer import Advancer
from paidonce.runs.new_run import new_run
from paidonce.settings import Settings
from paidonce.testing.clock import FakeClock
from paidonce.testing.memory_store import open_memory_store
from paidonce_models.database.transactions import Database
from paidonce_models.store.messages import AdvanceMessage, Message, StepMessage
from paidonce_models.store.queries import AttemptView, RunView, StepView, read_attempts, read_run, read_steps
from paidonce_models.store.recovery.workers import HeldAgent, Registration, register_worker
from paidonce_models.store.runs.cancel_run import cancel_run
from paidonce_models.store.runs.submission import submit_run
from paidonce_workers.bodies.body_runner import BodyRunner
from paidonce_workers.execution.executor import ExecutionSettings, Executor
from paidonce_workers.execution.held_leases import HeldLeases
from paidonce_workers.execution.local_schedule import LocalSchedule
from paidonce_workers.execution.store_waits import StoreWaits
from paidonce_workers.recovery.heartbeat import Heartbeat
from paidonce_workers.recovery.sweeper import Sweeper
from paidonce_workers.resilience import LearnedProviders, StepCircuits

LEASE_SECONDS = 10.0
NAMESPACE = "default"
Written = AgentDeclaration[..., Any] | StepDeclaration[..., Any]


@dataclass
class RecordingPublisher:
    """Stands for the broker: what was published, and how long its queues are said to be."""

    messages: deque[Message] = field(default_factory=deque)
    depths: dict[str, int] = field(default_factory=dict)

    def publish(self, messages: Sequence[Message]) -> int:
        self.messages.extend(messages)
        return len(messages)

    def depth(self, queues: Sequence[str]) -> dict[str, int]:
        return {name: self.depths[name] for name in queues if name in self.depths}

    def take(self) -> list[Message]:
        """What was published since the last look."""
        taken = list(self.messages)
        self.messages.clear()
        return taken


@dataclass
class Planned:
    """What a deadline would call."""

    seconds: float
    callback: Callable[[], object]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


class HandMadeDeadlines:
    """Deadlines that fall due when a test says so."""

    def __init__(self) -> None:
        self.planned: list[Planned] = []

    def __len__(self) -> int:
        return len(self.planned)

    def add(self, seconds: float, callback: Callable[[], object]) -> Planned:
        self.planned.append(Planned(seconds, callback))
        return self.planned[-1]

    def fall_due(self) -> None:
        """Call everything that is planned and was not cancelled."""
        planned, self.planned = self.planned, []
        for entry in planned:
            if not entry.cancelled:
                entry.callback()


class StandWorker:
    """One worker process's parts."""

    def __init__(self, stand: Stand, name: str, registry: Registry, **settings: Any) -> None:
        self.name = name
        self.held = HeldLeases()
        self.deadlines = HandMadeDeadlines()
        self.bodies = BodyRunner(deadlines=self.deadlines)  # type: ignore[arg-type]  # what is used of it
        self.local_schedule = LocalSchedule(
            database=stand.database,
            publisher=stand.publisher,  # type: ignore[arg-type]  # as above
            namespace=NAMESPACE,
            deadlines=self.deadlines,  # type: ignore[arg-type]  # as above
        )
        self.store_waits = StoreWaits()
        self.circuits = StepCircuits(
            book=settings.pop("book", None) or PolicyBook(),
            breakers=settings.pop("breakers", None),
            step=registry.step,
            providers=LearnedProviders(stand.database, NAMESPACE),
        )
        self.advancer = Advancer(stand.database, registry, MachineCache(100), AdvanceSettings(), namespace="default")
        limit_bytes = settings.pop("max_payload_bytes", 50 * 2**20)
        self.executor = Executor(
            database=stand.database,
            registry=registry,
            advancer=self.advancer,
            publisher=stand.publisher,  # type: ignore[arg-type]  # as above
            bodies=self.bodies,
            held=self.held,
            local_schedule=self.local_schedule,
            store_waits=self.store_waits,
            circuits=self.circuits,
            prices=settings.pop("prices", None),
            isolation=settings.pop("isolation", None),
            settings=ExecutionSettings(
                namespace="default",
                worker=name,
                lease_seconds=LEASE_SECONDS,
                step_timeout_seconds=900.0,
                max_payload_bytes=limit_bytes,
                **settings,
            ),
        )
        self.heartbeat = Heartbeat(
            database=stand.database,
            held=self.held,
            bodies=self.bodies,
            worker=name,
            registered_as=name,
            lease_seconds=LEASE_SECONDS,
            every_seconds=3.0,
        )

    def serve(self, message: Message) -> None:
        """What the Celery task of the message does."""
        if isinstance(message, StepMessage):
            self.executor.execute(message.run_id, message.position, message.name, message.agent)
        else:
            self.executor.advance(message.run_id)


class Stand:
    """A store, a broker that is a list, and workers that do what a test says. Use as a context manager."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.database: Database = open_memory_store(self.clock)
        self.publisher = RecordingPublisher()
        self.now_seconds: Callable[[], float] = time.time
        """The clock of the machine that sweepers run on."""
        self._workers: list[StandWorker] = []

    def __enter__(self) -> Stand:
        return self

    def __exit__(self, *exception: object) -> None:
        for worker in self._workers:
            worker.bodies.close()
        self.database.close()

    def worker(self, *declarations: Written, name: str = "worker-1", **settings: Any) -> StandWorker:
        """A worker that holds these steps and agents."""
        registry = Registry()
        for declaration in declarations:
            if isinstance(declaration, AgentDeclaration):
                registry.add_agent(declaration)
            else:
                registry.add_step(declaration)
        self._workers.append(StandWorker(self, name, registry, **settings))
        return self._workers[-1]

    def sweeper(self, name: str = "sweeper-1", **settings: Any) -> Sweeper:
        """A sweeper whose thread is not started."""
        return Sweeper(
            database=settings.pop("database", self.database),
            publisher=self.publisher,  # type: ignore[arg-type]  # what is used of it
            namespace=NAMESPACE,
            worker=name,
            shards=1,
            lease_seconds=LEASE_SECONDS,
            every_seconds=2.0,
            no_worker_seconds=60.0,
            breakers=settings.pop("breakers", None),
            living=lambda: settings.get("living", ()),
            frozen_seconds=settings.get("frozen_seconds", 0.0),
            now_seconds=self.now_seconds,
        )

    def register(self, *declarations: Written, name: str = "worker-1", queues: Sequence[str] = ()) -> list[Message]:
        """Say in the store that a worker holds these; what is to be published then."""
        registration = Registration(
            worker=name,
            namespace=NAMESPACE,
            hostname="stand",
            pid=1,
            python_minor="3",
            queues=queues or ["paidonce.default"],
            agents=[
                HeldAgent(name=each.name, version=each.version, signature=each.signature)
                for each in declarations
                if isinstance(each, AgentDeclaration)
            ],
            steps=[each.name for each in declarations if isinstance(each, StepDeclaration)],
        )
        return self.database.transact(lambda connection: register_worker(connection, registration))

    def submit(
        self, declaration: AgentDeclaration[..., Any], given: Mapping[str, Any] | None = None, *, priority: int = 5
    ) -> str:
        """A run whose first message is on the broker."""
        new = new_run(
            Settings.model_construct(), declaration.name, given or {}, declaration=declaration, priority=priority
        )
        submitted = self.database.transact(lambda connection: submit_run(connection, new))
        self.publisher.publish(
            [AdvanceMessage(run_id=submitted.run_id, agent=declaration.name, queue=submitted.queue, priority=priority)]
        )
        return submitted.run_id

    def cancel(self, run_id: str) -> None:
        """Ask for the run's end."""
        self.publisher.publish(
            self.database.transact(lambda connection: cancel_run(connection, "default", run_id, grace_seconds=60.0))
        )

    def serve(self, worker: StandWorker) -> None:
        """Deliver messages to the worker until none is left."""
        while self.publisher.messages:
            worker.serve(self.publisher.messages.popleft())

    def pass_time(self, seconds: float) -> None:
        """Move the store's clock."""
        self.clock.advance(timedelta(seconds=seconds))

    def run(self, run_id: str) -> RunView:
        with self.database.read() as connection:
            return read_run(connection, "default", run_id)

    def steps(self, run_id: str) -> list[StepView]:
        with self.database.read() as connection:
            return read_steps(connection, "default", run_id)

    def attempts(self, run_id: str, position: int = 1) -> list[AttemptView]:
        with self.database.read() as connection:
            return read_attempts(connection, run_id, position)

    def column(self, table: str, name: str, run_id: str) -> Any:
        """One column of the run's first row in a table."""
        key = "id" if table == "runs" else "run_id"
        with self.database.read() as connection:
            query = text(f"SELECT {name} FROM {table} WHERE {key} = :run_id")
            return connection.execute(query, {"run_id": run_id}).scalars().first()
