"""A simulated fleet: what broker, workers and sweeper do to a run, in one thread and on a fake clock.

Owns the list of messages that stands for the broker, the jumps of the clock
that stand for waiting, and the crash: every cached coroutine and every message
is dropped, the store is what is left. What is written is written by the
workers' own statements: claim, complete, advance, renew, take back, fire,
publish again.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from paidonce.advance import Advancer, AdvanceSettings
from paidonce.claiming import Claimer
from paidonce.registry import Registry
from paidonce.replay.cache import MachineCache
from paidonce.testing.attempts import Executor
from paidonce.testing.clock import FakeClock
from paidonce.testing.moving import MovingSlices
from paidonce_models.budgets import Unit
from paidonce_models.database import Database
from paidonce_models.errors import InvalidInput
from paidonce_models.store.cancel_run import cancel_run
from paidonce_models.store.claims import Claimant
from paidonce_models.store.completion import Acceptance, Completion
from paidonce_models.store.held_steps import let_go, steps_with_room
from paidonce_models.store.leases import LeaseKey, renew_leases
from paidonce_models.store.messages import AdvanceMessage, Message, StepMessage
from paidonce_models.store.queries import read_state
from paidonce_models.store.simulation import next_due_us
from paidonce_models.store.sweeping import company_of, due_timers, expired_leases, fire_timer, take_back, take_due

LEASE_US: Final = 10_000_000
MOST_ATTEMPTS: Final = 100_000
MOST_WAITS: Final = 50_000
CACHED_RUNS: Final = 1_000


@dataclass(frozen=True, kw_only=True)
class CrashPlan:
    """Where the process is lost, counted in accepted outcomes and in attempts; see ``AgentTester.run``."""

    crash_after: frozenset[int] = frozenset()
    crash_during: frozenset[int] = frozenset()
    cancel_after: int | None = None


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """What outlives a simulated process: the store, the clock and how bodies run and messages travel."""

    database: Database
    clock: FakeClock
    settings: AdvanceSettings
    executor: Executor
    durations: Mapping[str, timedelta]
    shuffle: random.Random | None
    twice: bool
    moves_threads: bool
    namespace: str
    guesses: Mapping[Unit, int]


class Simulation:
    """One run's way from submission to rest."""

    def __init__(self, fleet: Fleet, registry: Registry, plan: CrashPlan) -> None:
        self._fleet = fleet
        self._clock = fleet.clock
        self._database = fleet.database
        self._registry = registry
        self._plan = plan
        self._messages: list[Message] = []
        # Attempts whose body ran and whose outcome is due later on the fake clock.
        self._under_way: list[tuple[int, int, Completion]] = []
        self._ordinals = itertools.count()
        self._accepted: set[tuple[str, int]] = set()
        self.executions: Counter[str] = Counter()
        self.repeated: list[str] = []
        self.attempts = 0
        self.completions = 0
        self.crashes = 0
        self._waits = 0
        self._run_id = ""
        self._start_process()

    def go(self, run_id: str, first: Message) -> None:
        """Deliver messages, outcomes and what the sweeper finds until the run rests."""
        self._run_id = run_id
        self._publish([first])
        if 0 in self._plan.crash_after:
            self._crash()
        if self._plan.cancel_after == 0:
            self._cancel()
        while True:
            if self._messages:
                self._deliver(self._messages.pop(self._next_message()))
            elif self._under_way and self._under_way[0][0] <= self._clock.now_us():
                self._finish(heapq.heappop(self._under_way)[2])
            elif self._has_ended() or not self._wait():
                return

    # -- a worker -------------------------------------------------------------------

    def _start_process(self) -> None:
        self._cache = MachineCache(CACHED_RUNS)
        self._slices = MovingSlices() if self._fleet.moves_threads else None
        self._advancer = Advancer(
            self._database,
            self._registry,
            self._cache,
            self._fleet.settings,
            namespace=self._fleet.namespace,
            slices=self._slices,
        )
        claimant = Claimant(namespace=self._fleet.namespace, worker=self._fleet.executor.worker, lease_us=LEASE_US)
        self._claimer = Claimer(self._database, self._registry, claimant, self._fleet.guesses)

    def _crash(self) -> None:
        """Lose all that only this process knew; the store and the clock are what is left."""
        self.crashes += 1
        self._messages.clear()
        self._under_way.clear()
        self._cache.clear()
        self._start_process()

    def _publish(self, messages: list[Message]) -> None:
        self._messages += messages * 2 if self._fleet.twice else messages

    def _next_message(self) -> int:
        shuffle = self._fleet.shuffle
        return 0 if shuffle is None else shuffle.randrange(len(self._messages))

    def _deliver(self, message: Message) -> None:
        if isinstance(message, AdvanceMessage):
            self._publish(self._advancer.advance(message.run_id).messages)
        else:
            self._execute(message)

    def _execute(self, message: StepMessage) -> None:
        claim = self._claimer.claim(message.run_id, message.position)
        if claim is None:
            return
        declaration = self._registry.step(claim.name)
        if declaration is None:
            raise InvalidInput(f"no step is named {claim.name!r}; import the module that defines it")
        self.attempts += 1
        if self.attempts > MOST_ATTEMPTS:
            raise InvalidInput(
                f"run {self._run_id} made more than {MOST_ATTEMPTS} attempts; does the agent ever return?"
            )
        self.executions[claim.name] += 1
        if (claim.run_id, claim.position) in self._accepted:
            self.repeated.append(f"{claim.name} (step {claim.position} of run {claim.run_id})")
        completion = self._fleet.executor.execute(claim, declaration)
        if self.attempts in self._plan.crash_during:
            self._crash()
            return
        duration = self._fleet.durations.get(claim.name, timedelta(0))
        ready_at_us = self._clock.now_us() + duration // timedelta(microseconds=1)
        heapq.heappush(self._under_way, (ready_at_us, next(self._ordinals), completion))

    def _finish(self, completion: Completion) -> None:
        result = self._advancer.complete(completion, recorded_at_us=self._clock.now_us)
        self._publish(result.messages)
        if result.acceptance is not Acceptance.ACCEPTED or not completion.is_final:
            return
        self._accepted.add((completion.claim.run_id, completion.claim.position))
        self.completions += 1
        if self.completions in self._plan.crash_after:
            self._crash()
        if self.completions == self._plan.cancel_after:
            self._cancel()

    def _cancel(self) -> None:
        namespace, run_id = self._fleet.namespace, self._run_id
        self._publish(
            self._database.transact(lambda connection: cancel_run(connection, namespace, run_id, grace_seconds=60.0))
        )

    # -- time ------------------------------------------------------------------------

    def _has_ended(self) -> bool:
        with self._database.read() as connection:
            return read_state(connection, self._fleet.namespace, self._run_id)[0].is_terminal

    def _wait(self) -> bool:
        """Let time pass until something is due and sweep; False where nothing ever will be."""
        self._waits += 1
        if self._waits > MOST_WAITS:
            raise InvalidInput(f"run {self._run_id} waited more than {MOST_WAITS} times; does the agent ever return?")
        self._renew()
        with self._database.read() as connection:
            due_us = next_due_us(connection, self._fleet.namespace)
        outcome_us = self._under_way[0][0] if self._under_way else None
        instants = [instant for instant in (due_us, outcome_us) if instant is not None]
        if not instants:
            let_go_now = self._let_go()
            self._publish(let_go_now)
            return bool(let_go_now)
        self._clock.advance_to_us(min(instants))
        # A worker's heartbeat goes on while its bodies run.
        self._renew()
        self._publish(self._sweep())
        return True

    def _renew(self) -> None:
        claims = [completion.claim for _, _, completion in self._under_way]
        held = [LeaseKey(claim.run_id, claim.position, claim.attempt) for claim in claims]
        if held:
            self._database.transact(
                lambda connection: renew_leases(
                    connection, worker=self._fleet.executor.worker, held=held, lease_us=LEASE_US
                )
            )

    def _sweep(self) -> list[Message]:
        place: dict[str, Any] = {"namespace": self._fleet.namespace, "shard": 0}
        found: list[Message] = []
        with self._database.read() as connection:
            timers = due_timers(connection, **place)
            expired = [(key, company_of(connection, key)[1]) for key in expired_leases(connection, **place)]
        for timer in timers:
            fired = self._database.transact(functools.partial(fire_timer, run_id=timer.run_id))
            found += [] if fired is None else [fired]
        for key, held in expired:
            taken = self._database.transact(
                functools.partial(take_back, key=key, why="the simulated process crashed", alone=held == 1)
            )
            found += [] if taken is None else [taken]
        found += self._let_go()
        return found + [
            due.message for due in self._database.transact(lambda connection: take_due(connection, **place))
        ]

    def _let_go(self) -> list[Message]:
        """Steps that a budget has held and that it has room for now."""
        with self._database.read() as connection:
            found = steps_with_room(connection, namespace=self._fleet.namespace, shard=0)
        messages: list[Message] = []
        for key in found:
            message = self._database.transact(functools.partial(let_go, key=key))
            messages += [] if message is None else [message]
        return messages
