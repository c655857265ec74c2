"""``AgentTester``: agents in one process, on a fake clock, with no broker, crashed wherever a test wants.

Owns the interface of a test: the store in memory, the policies, the run's submission, the requested crashes and the
report. The simulation runs the workers' own parts; once the run has come to rest, it is replayed twice.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Collection, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from paidonce.declarations.declaration import AgentDeclaration, Declaration
from paidonce.declarations.policy_checks import refuse_misfits
from paidonce.declarations.registry import AnyAgent, Registry, default_registry
from paidonce.policies import describe_failure
from paidonce.policies.file.parsing import policies_from_settings
from paidonce.policies.policy_book import PolicyBook
from paidonce.runs.advance_settings import AdvanceSettings
from paidonce.runs.new_run import new_run
from paidonce.settings import Settings, load_settings
from paidonce.testing.agent_run import AgentRun
from paidonce.testing.clock import FakeClock
from paidonce.testing.memory_store import open_memory_store
from paidonce.testing.moving import in_new_thread
from paidonce.testing.reach import steps_in_reach
from paidonce.testing.replaying import check_replays
from paidonce.testing.simulated_bodies import SimulatedBodies
from paidonce.testing.simulated_worker import Fleet
from paidonce.testing.simulation import CrashPlan, MessageList, Simulation
from paidonce_models.database.transactions import Database
from paidonce_models.store.messages import AdvanceMessage
from paidonce_models.store.queries import read_run, read_steps
from paidonce_models.store.runs.submission import submit_run
from paidonce_models.store.simulation import family_of
from paidonce_workers.breakers import CircuitBreakers
from paidonce_workers.capture import capturing
from paidonce_workers.resilience import Timing

V = TypeVar("V")


class AgentTester:
    """Runs agents on a store in memory. Use as a context manager, or ``close`` it.

    ``fakes`` replace the bodies of steps and tools (by declaration or name), so that a
    test calls no model. ``durations`` let a step's body take time on the fake clock.
    ``policies`` names a policy file; by default it is that of ``PAIDONCE_POLICIES``, or
    ``paidonce.yaml`` in the current folder if it exists, as for a worker. ``seed`` shuffles
    the order in which messages are delivered, and ``twice`` delivers each one twice.
    ``moves_threads`` runs each slice of an agent in a new thread and then replays the run
    in one, which shows what depends on the thread. The same arguments give the same run.
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
        policies: Path | str | None = None,
    ) -> None:
        self.clock = clock or FakeClock()
        self._book = _policies(policies)
        self.database = database or open_memory_store(self.clock)
        self._owns_database = database is None
        self._registry = registry
        self._settings = settings or AdvanceSettings()
        # Defaults only, except for policies: a test must not depend on the environment of whoever runs it.
        self._submit_settings = Settings.model_construct()
        self._namespace = self._submit_settings.namespace
        self._moves_threads = moves_threads
        self._random = random.Random(0 if seed is None else seed)
        self._bodies = SimulatedBodies(
            clock=self.clock, fakes=_by_name(fakes or {}), durations=_by_name(durations or {})
        )
        self._messages = MessageList(shuffle=None if seed is None else random.Random(seed), twice=twice)
        self._breakers = self._closed_circuits()

    def __enter__(self) -> AgentTester:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the store, unless it was passed in, and forget the circuits."""
        self._breakers.close()
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
        """Submit a run and continue until it rests, then replay it and its children twice.

        ``crash_after=n`` loses the process once the n-th outcome of a step is committed (0:
        once the run is submitted), with every coroutine and message it held;
        ``crash_during=n`` loses it after the body of the n-th attempt ran and before its
        outcome is written. ``cancel_after=n`` requests the run's cancellation after the n-th
        outcome. Raises ``NotReplayable`` or ``HistoryMismatch`` if the agent cannot be
        replayed.
        """
        declaration = self._known(agent)
        registry = _registry_with(self._registry, declaration)
        refuse_misfits(self._book, steps_in_reach(declaration))
        plan = CrashPlan(
            crash_after=_numbers(crash_after), crash_during=_numbers(crash_during), cancel_after=cancel_after
        )
        new = new_run(self._submit_settings, declaration.name, input or {}, declaration=declaration)
        started_us = self.clock.now_us()
        self._bodies.begin_run()
        self._messages.lose()
        with capturing():
            simulation = Simulation(
                fleet=self._fleet(),
                registry=registry,
                clock=self.clock,
                messages=self._messages,
                bodies=self._bodies,
                plan=plan,
                moves_threads=self._moves_threads,
            )
            run_id = self.database.transact(lambda connection: submit_run(connection, new)).run_id
            simulation.go(
                run_id, AdvanceMessage(run_id=run_id, agent=declaration.name, queue=new.queue, priority=new.priority)
            )
        with self.database.read() as connection:
            family = family_of(connection, run_id)
        for member in family:
            replays = functools.partial(check_replays, self.database, registry, self._namespace, member, self._settings)
            if self._moves_threads:
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

        Raises ``AssertionError`` if a crash changes the run's result or a finished step ran
        again; returns the undisturbed run.
        """
        undisturbed = self._run_anew(agent, input)
        crashes = [{"crash_after": number} for number in range(undisturbed.completions + 1)]
        crashes += [{"crash_during": number} for number in range(1, undisturbed.attempts + 1)]
        for crash in crashes:
            crashed = self._run_anew(agent, input, **crash)
            expected: tuple[object, ...] = (undisturbed.state, undisturbed.value, undisturbed.error, [])
            found = (crashed.state, crashed.value, crashed.error, list(crashed.repeated))
            if found != expected:
                raise AssertionError(f"with {crash} the run came to {found}, undisturbed to {expected}")
        return undisturbed

    def _run_anew(
        self, agent: AgentDeclaration[..., Any] | str, given: Mapping[str, Any] | None, **crash: int
    ) -> AgentRun:
        """Run with circuits that know nothing of earlier runs."""
        self._breakers.close()
        self._breakers = self._closed_circuits()
        return self.run(agent, given, **crash)

    def _fleet(self) -> Fleet:
        return Fleet(
            database=self.database,
            publisher=self._messages,
            bodies=self._bodies,
            namespace=self._namespace,
            timing=Timing(
                now_us=self.clock.now_us,
                monotonic=self._bodies.monotonic,
                uniform=self._random.uniform,
                sleep=self._bodies.sleep,
                sleep_async=self._bodies.sleep_async,
            ),
            book=self._book,
            breakers=self._breakers,
            guesses=self._submit_settings.guesses,
            advancing=self._settings,
        )

    def _closed_circuits(self) -> CircuitBreakers:
        """Circuits and retry budgets without history, on the fake clock."""
        return CircuitBreakers(
            None,
            namespace=self._namespace,
            classify=describe_failure,
            probe_seconds=self._submit_settings.lease_seconds,
            now_us=self.clock.now_us,
            chance=self._random.random,
        )

    def _known(self, agent: AgentDeclaration[..., Any] | str) -> AnyAgent:
        return self._registry.known_agent(agent) if isinstance(agent, str) else agent

    def _report(self, run_id: str, declaration: AnyAgent, simulation: Simulation, elapsed_us: int) -> AgentRun:
        with self.database.read() as connection:
            run = read_run(connection, self._namespace, run_id)
            steps = read_steps(connection, self._namespace, run_id)
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
            executions=self._bodies.executions,
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
    policies: Path | str | None = None,
) -> AgentRun:
    """Run one agent in a separate simulation; see ``AgentTester``."""
    with AgentTester(fakes=fakes, durations=durations, policies=policies) as tester:
        return tester.run(agent, input, crash_after=crash_after, crash_during=crash_during, cancel_after=cancel_after)


def _policies(file: Path | str | None) -> PolicyBook:
    """The policies of the file, or those that a worker would find here."""
    return policies_from_settings(load_settings(policies=file))


def _by_name(values: Mapping[Any, V]) -> dict[str, V]:
    return {key if isinstance(key, str) else key.name: value for key, value in values.items()}


def _numbers(value: int | Collection[int]) -> frozenset[int]:
    return frozenset({value} if isinstance(value, int) else value)


def _registry_with(registry: Registry, agent: AnyAgent) -> Registry:
    """``registry`` with the agent under test taking precedence over others of its name."""
    copied = Registry()
    for step in registry.steps:
        copied.add_step(step)
    for each in registry.agents:
        if (each.name, each.version) != (agent.name, agent.version):
            copied.add_agent(each)
    copied.add_agent(agent)
    return copied
