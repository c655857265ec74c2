"""``AgentTester``: agents in one process, on a fake clock, with no broker, crashed wherever a test wants.

Owns what a test says and what it is told: the store in memory, the run's
submission, the crashes asked for and the report. The simulated fleet does the
work; once the run has come to rest, it is replayed twice.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Collection, Mapping
from datetime import timedelta
from typing import Any, TypeVar

from sqlalchemy import Connection

from paidonce.advance import AdvanceSettings
from paidonce.declarations import AgentDeclaration, Declaration
from paidonce.registry import AnyAgent, Registry, default_registry
from paidonce.settings import Settings
from paidonce.submission import new_run
from paidonce.testing.agent_run import AgentRun
from paidonce.testing.attempts import Executor
from paidonce.testing.clock import FakeClock
from paidonce.testing.memory_store import open_memory_store
from paidonce.testing.moving import in_new_thread
from paidonce.testing.replaying import check_replays
from paidonce.testing.simulation import CrashPlan, Fleet, Simulation
from paidonce_models.database import Database
from paidonce_models.store.budget_rules import declare_budgets
from paidonce_models.store.messages import AdvanceMessage
from paidonce_models.store.queries import read_run, read_steps
from paidonce_models.store.simulation import family_of
from paidonce_models.store.submission import submit_run

V = TypeVar("V")


class AgentTester:
    """Runs agents on a store in memory. Use as a context manager, or ``close`` it.

    ``fakes`` stand in for the bodies of steps and tools (by declaration or
    name), so that a test calls no model. ``durations`` let a step's body take
    time on the fake clock. ``seed`` shuffles the order in which messages are
    delivered, and ``twice`` delivers each one twice. ``moves_threads`` runs each
    slice of an agent in a new thread and then replays the run in one, which shows what
    depends on the thread it runs in. The same arguments give the same run.
    """

    def __init__(
        self,
        *,
        fakes: Mapping[Declaration[..., Any] | str, Callable[..., Any]] | None = None,
        durations: Mapping[Declaration[..., Any] | str, timedelta] | None = None,
        seed: int | None = None,
        twice: bool = False,
        moves_threads: bool = False,
        clock: FakeClock | None = None,
        registry: Registry = default_registry,
        database: Database | None = None,
        settings: AdvanceSettings | None = None,
    ) -> None:
        self.clock = clock or FakeClock()
        self.database = database or open_memory_store(self.clock)
        self._owns_database = database is None
        self._registry = registry
        self._settings = settings or AdvanceSettings()
        # Defaults only: a test must not depend on the environment of who runs it.
        self._submit_settings = Settings.model_construct()
        self._fleet = Fleet(
            database=self.database,
            clock=self.clock,
            settings=self._settings,
            executor=Executor(
                worker="paidonce.testing",
                now_us=self.clock.now_us,
                uniform=random.Random(0 if seed is None else seed).uniform,
                limit_bytes=self._settings.max_payload_bytes,
                fakes=_by_name(fakes or {}),
            ),
            durations=_by_name(durations or {}),
            shuffle=None if seed is None else random.Random(seed),
            twice=twice,
            moves_threads=moves_threads,
            namespace=self._submit_settings.namespace,
            guesses=self._submit_settings.guesses,
        )

    def __enter__(self) -> AgentTester:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Forget the store, unless it was handed over."""
        if self._owns_database:
            self.database.close()

    def run(
        self,
        agent: AgentDeclaration[..., Any] | str,
        input: Mapping[str, Any] | None = None,  # noqa: A002 # the public name of the argument, as in Client.submit
        *,
        crash_after: int | Collection[int] = (),
        crash_during: int | Collection[int] = (),
        cancel_after: int | None = None,
    ) -> AgentRun:
        """Submit a run and go on until it rests, then replay it and its children twice.

        ``crash_after=n`` loses the process once the n-th outcome of a step is
        committed (0: once the run is submitted), with every coroutine and
        message it held; ``crash_during=n`` loses it after the body of the n-th
        attempt ran and before its outcome is written. ``cancel_after=n``
        requests the run's cancellation after the n-th outcome. Raises
        ``NotReplayable`` or ``HistoryMismatch`` where the agent cannot be replayed.
        """
        declaration = self._known(agent)
        registry = _registry_with(self._registry, declaration)
        plan = CrashPlan(
            crash_after=_numbers(crash_after), crash_during=_numbers(crash_during), cancel_after=cancel_after
        )
        simulation = Simulation(self._fleet, registry, plan)
        new = new_run(self._submit_settings, declaration.name, input or {}, declaration=declaration)
        started_us = self.clock.now_us()
        self.database.transact(lambda connection: self._declare_limits(connection, registry))
        run_id = self.database.transact(lambda connection: submit_run(connection, new)).run_id
        simulation.go(
            run_id, AdvanceMessage(run_id=run_id, agent=declaration.name, queue=new.queue, priority=new.priority)
        )
        with self.database.read() as connection:
            family = family_of(connection, run_id)
        for member in family:
            replays = functools.partial(
                check_replays, self.database, registry, self._fleet.namespace, member, self._settings
            )
            if self._fleet.moves_threads:
                in_new_thread(replays)
            else:
                replays()
        return self._report(run_id, declaration, simulation, self.clock.now_us() - started_us)

    def run_with_every_crash(
        self,
        agent: AgentDeclaration[..., Any] | str,
        input: Mapping[str, Any] | None = None,  # noqa: A002 # as in run
    ) -> AgentRun:
        """Run once undisturbed, then once with a crash after each outcome and once with a crash during each attempt.

        Raises ``AssertionError`` where a crash changes what the run comes to or
        a finished step ran again; returns the undisturbed run.
        """
        undisturbed = self.run(agent, input)
        crashes = [{"crash_after": number} for number in range(undisturbed.completions + 1)]
        crashes += [{"crash_during": number} for number in range(1, undisturbed.attempts + 1)]
        for crash in crashes:
            crashed = self.run(agent, input, **crash)
            expected: tuple[object, ...] = (undisturbed.state, undisturbed.value, undisturbed.error, [])
            found = (crashed.state, crashed.value, crashed.error, list(crashed.repeated))
            if found != expected:
                raise AssertionError(f"with {crash} the run came to {found}, undisturbed to {expected}")
        return undisturbed

    def _declare_limits(self, connection: Connection, registry: Registry) -> None:
        """As a worker does that holds these agents."""
        for agent in registry.agents:
            declare_budgets(connection, self._fleet.namespace, agent.name, agent.limits)

    def _known(self, agent: AgentDeclaration[..., Any] | str) -> AnyAgent:
        return self._registry.known_agent(agent) if isinstance(agent, str) else agent

    def _report(self, run_id: str, declaration: AnyAgent, simulation: Simulation, elapsed_us: int) -> AgentRun:
        with self.database.read() as connection:
            run = read_run(connection, self._fleet.namespace, run_id)
            steps = read_steps(connection, self._fleet.namespace, run_id)
        value = None
        if run.result is not None:
            value = declaration.result_codec.decode(run.result, f"result of run {run_id}")
        return AgentRun(
            run_id=run_id,
            agent=declaration.name,
            state=run.state,
            value=value,
            error=run.error,
            steps=steps,
            executions=simulation.executions,
            attempts=simulation.attempts,
            completions=simulation.completions,
            crashes=simulation.crashes,
            repeated=simulation.repeated,
            elapsed=timedelta(microseconds=elapsed_us),
        )


def run_agent(
    agent: AgentDeclaration[..., Any] | str,
    input: Mapping[str, Any] | None = None,  # noqa: A002 # as in AgentTester.run
    *,
    crash_after: int | Collection[int] = (),
    crash_during: int | Collection[int] = (),
    cancel_after: int | None = None,
    fakes: Mapping[Declaration[..., Any] | str, Callable[..., Any]] | None = None,
    durations: Mapping[Declaration[..., Any] | str, timedelta] | None = None,
) -> AgentRun:
    """Run one agent in a simulation of its own; see ``AgentTester``."""
    with AgentTester(fakes=fakes, durations=durations) as tester:
        return tester.run(agent, input, crash_after=crash_after, crash_during=crash_during, cancel_after=cancel_after)


def _by_name(values: Mapping[Any, V]) -> dict[str, V]:
    return {key if isinstance(key, str) else key.name: value for key, value in values.items()}


def _numbers(value: int | Collection[int]) -> frozenset[int]:
    return frozenset({value} if isinstance(value, int) else value)


def _registry_with(registry: Registry, agent: AnyAgent) -> Registry:
    """What ``registry`` holds, with the agent under test in front of others of its name."""
    copied = Registry()
    for step in registry.steps:
        copied.add_step(step)
    for each in registry.agents:
        if (each.name, each.version) != (agent.name, agent.version):
            copied.add_agent(each)
    copied.add_agent(agent)
    return copied
