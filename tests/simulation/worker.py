"""One worker of the simulated fleet, and the bodies that all of them run.

A worker is the test kit's: the parts of a worker process without their threads. What is its own here is that a store
which is away is asked again at once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy import text

from paidonce.declarations.current_step import current_step
from paidonce.declarations.declaration import StepDeclaration
from paidonce.declarations.registry import Registry
from paidonce.testing.simulated_worker import Fleet, SimulatedWorker
from paidonce_models.database.transactions import Database
from paidonce_models.errors import StoreUnreachable
from paidonce_models.store.steps.leases import LeaseKey
from paidonce_workers.bodies.body_runner import BodyCancelled, BodyRunner, BodyTimedOut
from paidonce_workers.bodies.interrupt import Reason
from paidonce_workers.execution.attempt import Execution
from paidonce_workers.execution.store_waits import StoreWaits
from tests.simulation.programs import OutOfTime, failures_before, interpret, look_up, work

T = TypeVar("T")

STEPS: dict[str, StepDeclaration[..., int]] = {work.name: work, look_up.name: look_up}
_FAILED = text("SELECT failed FROM steps WHERE run_id = :run_id AND position = :position")


class Crash(BaseException):
    """A worker dies. Not an ``Exception``: nothing may catch it but the fleet."""


@dataclass(eq=False)
class UnderWay:
    """A step whose body has run; its worker judges and reports it if it lives to do so."""

    worker: Worker
    execution: Execution

    @property
    def key(self) -> LeaseKey:
        """Its lease."""
        return self.execution.lease.key

    def stop(self, reason: Reason) -> None:
        """Its body has been stopped instead."""
        self.execution.error = BodyCancelled(f"step {self.key.position} of run {self.key.run_id}", reason)


class AskingAgainAtOnce(StoreWaits):
    """Waits for a store that is away without letting time pass."""

    def until_done(self, act: Callable[[], T], what: str, *, unless: type[StoreUnreachable] | None = None) -> T:
        while True:
            try:
                return act()
            except StoreUnreachable:
                continue


class FleetBodies(BodyRunner):
    """Runs plain functions at once, and keeps a list as a counting server would. ``interrupted`` is told of stops."""

    def __init__(self, database: Database, interrupted: Callable[[Hashable, Reason], bool]) -> None:
        super().__init__()
        self._database = database
        self._interrupted = interrupted
        self.executed: list[LeaseKey] = []
        self.spent: set[LeaseKey] = set()

    def run(
        self,
        key: Hashable,
        fn: Callable[..., object],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
        *,
        is_async: bool,
        timeout_seconds: float | None,
        label: str,
    ) -> object:
        step = current_step()
        lease = LeaseKey(step.run_id, step.step, step.attempt)
        self.executed.append(lease)
        if args and args[0]:
            self.spent.add(lease)
        with self._database.read() as connection:
            failed = connection.execute(_FAILED, {"run_id": step.run_id, "position": step.step}).scalar_one()
        token = failures_before.set(failed)
        try:
            return fn(*args, **(kwargs or {}))
        except OutOfTime:
            raise BodyTimedOut(label, timeout_seconds) from None
        finally:
            failures_before.reset(token)

    def interrupt(self, key: Hashable, reason: Reason = Reason.CANCELLED) -> bool:
        return self._interrupted(key, reason)


class Worker(SimulatedWorker):
    """A process. One that has died is replaced by a new one under another name."""

    def __init__(self, fleet: Fleet, name: str, *, holds_agents: bool, cache_size: int) -> None:
        self.holds_agents = holds_agents
        self.is_alive = True
        self.is_frozen = False
        registry = Registry()
        for declaration in STEPS.values():
            registry.add_step(declaration)
        if holds_agents:
            registry.add_agent(interpret)
        super().__init__(fleet, registry, name, store_waits=AskingAgainAtOnce(), cached_runs=cache_size)
