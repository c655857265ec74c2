"""A simulation of one run: the workers' own process in one thread, a list as the broker, and a clock that jumps.

Owns the order of events: messages first, then the ends of bodies, then the next instant at which anything is due. And
the crash: coroutines, messages and bodies of the process are dropped, and only the store is left.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from paidonce.declarations.registry import Registry
from paidonce.testing.clock import FakeClock
from paidonce.testing.moving import MovingSlices
from paidonce.testing.simulated_bodies import SimulatedBodies
from paidonce.testing.simulated_worker import Fleet, SimulatedWorker
from paidonce_models.errors import InvalidInput
from paidonce_models.store.messages import AdvanceMessage, Message, StepMessage
from paidonce_models.store.queries import read_state
from paidonce_models.store.runs.cancel_run import cancel_run
from paidonce_models.store.simulation import next_due_us
from paidonce_models.store.steps.completion import Acceptance
from paidonce_workers.bodies.body_runner import BodyCancelled
from paidonce_workers.execution.attempt import Execution

MOST_ATTEMPTS: Final = 100_000
MOST_WAITS: Final = 50_000


@dataclass(frozen=True, kw_only=True)
class CrashPlan:
    """Where the process is lost, counted in accepted outcomes and in attempts; see ``AgentTester.run``."""

    crash_after: frozenset[int] = frozenset()
    crash_during: frozenset[int] = frozenset()
    cancel_after: int | None = None


class MessageList:
    """Replaces the broker. Messages are delivered in order, or shuffled, once or twice."""

    def __init__(self, *, shuffle: random.Random | None, twice: bool) -> None:
        self._messages: list[Message] = []
        self._shuffle = shuffle
        self._twice = twice

    def __len__(self) -> int:
        return len(self._messages)

    def publish(self, messages: Sequence[Message]) -> int:
        """Like the workers' publisher."""
        self._messages += [*messages, *messages] if self._twice else messages
        return len(messages)

    def depth(self, queues: Iterable[str]) -> Mapping[str, int]:
        """Unknown: the sweeper then publishes everything that is due."""
        return {}

    def take(self) -> Message:
        """The next message to be delivered."""
        return self._messages.pop(0 if self._shuffle is None else self._shuffle.randrange(len(self._messages)))

    def lose(self) -> None:
        """All messages are lost."""
        self._messages.clear()


class Simulation:
    """One run from submission to rest."""

    def __init__(
        self,
        *,
        fleet: Fleet,
        registry: Registry,
        clock: FakeClock,
        messages: MessageList,
        bodies: SimulatedBodies,
        plan: CrashPlan,
        moves_threads: bool,
    ) -> None:
        """``messages`` and ``bodies`` are the fleet's."""
        self._fleet = fleet
        self._registry = registry
        self._clock = clock
        self._messages = messages
        self._bodies = bodies
        self._plan = plan
        self._moves_threads = moves_threads
        self._under_way: list[Execution] = []
        """Steps whose bodies have run and end later on the clock."""
        self._accepted: set[tuple[str, int]] = set()
        self.repeated: list[str] = []
        self.attempts = 0
        self.completions = 0
        self.crashes = 0
        self._waits = 0
        self._swept_due_us: int | None = None
        self._run_id = ""
        self._names = (f"paidonce.testing-{number}" for number in itertools.count(1))
        bodies.on_execution = self._note_execution
        self._worker = self._start_process()

    def go(self, run_id: str, first: Message) -> None:
        """Deliver messages, outcomes and what the sweeper finds until the run rests."""
        self._run_id = run_id
        self._messages.publish([first])
        if 0 in self._plan.crash_after:
            self._crash()
        if self._plan.cancel_after == 0:
            self._cancel()
        while True:
            if self._messages:
                self._deliver(self._messages.take())
            elif self._ends_now():
                self._finish(self._under_way.pop(self._next_to_end()))
            elif self._has_ended() or not self._wait():
                return

    # -- a process -------------------------------------------------------------------

    def _start_process(self) -> SimulatedWorker:
        slices = MovingSlices() if self._moves_threads else None
        worker = SimulatedWorker(self._fleet, self._registry, next(self._names), slices=slices)
        self._messages.publish(worker.register())
        return worker

    def _crash(self) -> None:
        """Lose everything that only this process knew; the store, the circuits and the clock remain."""
        self.crashes += 1
        self._messages.lose()
        self._under_way.clear()
        self._bodies.lose()
        self._worker.cache.clear()
        self._worker = self._start_process()

    def _deliver(self, message: Message) -> None:
        if isinstance(message, AdvanceMessage):
            self._worker.executor.advance(message.run_id)
        else:
            self._execute(message)

    def _execute(self, message: StepMessage) -> None:
        if self._registry.step(message.name) is None:
            raise InvalidInput(f"no step is named {message.name!r}; import the module that defines it")
        execution = self._worker.executor.begin(message.run_id, message.position, message.name, message.agent)
        if execution is None:
            return
        self.attempts += 1
        if self.attempts > MOST_ATTEMPTS:
            raise InvalidInput(
                f"run {self._run_id} made more than {MOST_ATTEMPTS} attempts; does the agent ever return?"
            )
        if self.attempts in self._plan.crash_during:
            self._crash()
        else:
            self._under_way.append(execution)

    def _note_execution(self, run_id: str, name: str, position: int) -> None:
        if (run_id, position) in self._accepted:
            self.repeated.append(f"{name} (step {position} of run {run_id})")

    def _finish(self, execution: Execution) -> None:
        claim = execution.claim
        reason = self._bodies.forget(execution.lease.key)
        if reason is not None:
            execution.error = BodyCancelled(f"step {claim.position} ({claim.name}) of run {claim.run_id}", reason)
        recorded = self._worker.executor.finish(execution)
        if recorded is None or recorded.acceptance is not Acceptance.ACCEPTED or not recorded.completion.is_final:
            return
        self._accepted.add((claim.run_id, claim.position))
        self.completions += 1
        if self.completions in self._plan.crash_after:
            self._crash()
        if self.completions == self._plan.cancel_after:
            self._cancel()

    def _cancel(self) -> None:
        namespace, run_id = self._fleet.namespace, self._run_id
        grace_seconds = self._fleet.advancing.cancel_grace_seconds
        self._messages.publish(
            self._fleet.database.transact(
                lambda connection: cancel_run(connection, namespace, run_id, grace_seconds=grace_seconds)
            )
        )

    # -- time ------------------------------------------------------------------------

    def _has_ended(self) -> bool:
        with self._fleet.database.read() as connection:
            return read_state(connection, self._fleet.namespace, self._run_id)[0].is_terminal

    def _ends_at_us(self, execution: Execution) -> int:
        return self._bodies.ends_at_us.get(execution.lease.key, self._clock.now_us())

    def _next_to_end(self) -> int:
        return min(range(len(self._under_way)), key=lambda place: self._ends_at_us(self._under_way[place]))

    def _wait(self) -> bool:
        """Let time pass until something is due, as a worker's heartbeat and sweeper see it; False if nothing is."""
        self._waits += 1
        if self._waits > MOST_WAITS:
            raise InvalidInput(f"run {self._run_id} waited more than {MOST_WAITS} times; does the agent ever return?")
        if self._under_way:
            self._worker.beat()
        with self._fleet.database.read() as connection:
            due_us = next_due_us(connection, self._fleet.namespace)
        sweep_us = due_us
        if due_us is not None and due_us == self._swept_due_us:  # the last sweep has left some work to the next one
            sweep_us = self._clock.now_us() + round(self._fleet.sweep_seconds * 1e6)
        instants = [instant for instant in (sweep_us, *map(self._ends_at_us, self._under_way)) if instant is not None]
        if instants:
            self._clock.advance_to_us(min(instants))
            self._worker.beat()  # heartbeats continue while bodies run
        found = self._worker.sweep()
        self._swept_due_us = due_us if due_us is not None and due_us <= self._clock.now_us() else None
        self._messages.publish(found)
        return bool(instants or found)

    def _ends_now(self) -> bool:
        return any(self._ends_at_us(execution) <= self._clock.now_us() for execution in self._under_way)
