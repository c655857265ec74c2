"""``WorkerProcess``: all parts of one process that executes steps, wired in one place.

``process_per_pid`` makes one for the worker and one for each child that is forked from it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from enum import StrEnum

from paidonce.broker.celery_app import PaidonceCelery
from paidonce.broker.publisher import Publisher
from paidonce.declarations.registry import Registry, default_registry
from paidonce.policies import describe_failure
from paidonce.policies.file.parsing import policies_from_settings
from paidonce.replay.bounds import bounds_of
from paidonce.replay.cache import MachineCache
from paidonce.replay.slice_threads import SliceThreads
from paidonce.runs.advance_settings import AdvanceSettings
from paidonce.runs.advancer import Advancer
from paidonce.settings import Settings
from paidonce.store_access import open_store
from paidonce_models.errors import PaidonceError, StoreError, StoreUnreachable
from paidonce_models.payloads.payload_memory import PayloadMemory
from paidonce_models.store.circuits.breaker_transitions import record_transition
from paidonce_models.store.recovery.workers import (
    worker_stopped,
)
from paidonce_workers.breakers import CircuitBreakers, CircuitChange
from paidonce_workers.capture import Installation, install
from paidonce_workers.execution.blocked_step_retries import BlockedSteps
from paidonce_workers.execution.executor import ExecutionSettings, Executor
from paidonce_workers.execution.held_leases import HeldLeases
from paidonce_workers.execution.local_schedule import LocalSchedule
from paidonce_workers.execution.store_waits import StoreWaits
from paidonce_workers.isolation_hosts.hosts import DrainTimes, IsolationHosts
from paidonce_workers.isolation_hosts.orders import Beginning
from paidonce_workers.process.price_watch import PriceWatch
from paidonce_workers.process.registration import WorkerRegistration
from paidonce_workers.process.released_steps import ReleasedSteps
from paidonce_workers.process.worker_parts import WorkerParts
from paidonce_workers.recovery.death_watch import DeathWatch
from paidonce_workers.recovery.heartbeat import Heartbeat
from paidonce_workers.recovery.marked_slices import CarefulPeriod, SliceMarks
from paidonce_workers.recovery.signs_of_life import SignsOfLife
from paidonce_workers.recovery.sweeper import Sweeper
from paidonce_workers.recovery.witness import Witness
from paidonce_workers.resilience import LearnedProviders, StepCircuits

log = logging.getLogger(__name__)


class Role(StrEnum):
    """The role of a process that executes steps."""

    WORKER = "worker"
    POOL_CHILD = "pool_child"
    """Forked by Celery, runs one step at a time: it may isolate a step in its own child."""
    ISOLATION_HOST = "isolation_host"


class WorkerProcess:
    """The parts of one process that executes steps."""

    def __init__(
        self,
        *,
        app: PaidonceCelery,
        settings: Settings,
        registry: Registry,
        parts: WorkerParts,
        worker: str,
        period: CarefulPeriod,
        role: Role = Role.WORKER,
        host_program: str | None = None,
    ) -> None:
        """``host_program`` is the module that isolation hosts run; without it there are none."""
        self.settings = settings
        self.registry = registry
        self.worker = worker
        self.store_waits = StoreWaits()
        self.database = open_store(settings, pool_size=settings.database_pool_size)
        self.publisher = Publisher(app, settings)
        self.held = HeldLeases()
        self.bodies = parts.bodies
        self.local_schedule = LocalSchedule(
            database=self.database,
            publisher=self.publisher,
            namespace=settings.namespace,
            deadlines=parts.bodies.deadlines,
        )
        self.prices = PriceWatch(database=self.database, namespace=settings.namespace)
        self.breakers = CircuitBreakers.of(settings, describe_failure) if settings.breakers else None
        self.circuits = StepCircuits(
            book=policies_from_settings(settings),
            breakers=self.breakers,
            step=registry.step,
            providers=LearnedProviders(self.database, settings.namespace),
        )
        if self.breakers is not None:
            self.breakers.subscribe(self._note_transition)
        # A host finds the code where this process found it: in the modules that the settings name.
        can_isolate = role is Role.WORKER and bool(settings.agents) and registry is default_registry
        self.isolation = (
            self._isolation_hosts(parts, host_program) if can_isolate and host_program is not None else None
        )
        memory = PayloadMemory()
        self._signs = SignsOfLife(self.database, settings.namespace)
        self._marks = SliceMarks(
            database=self.database,
            namespace=settings.namespace,
            worker=worker,
            period=period,
            signs=self._signs,
        )
        advancer = Advancer(
            self.database,
            registry,
            MachineCache(settings.cache_size),
            AdvanceSettings(
                max_depth=settings.max_depth,
                slice_seconds=settings.slice_seconds,
                max_payload_bytes=settings.max_payload_bytes,
                cancel_grace_seconds=settings.cancel_grace_seconds,
                bounds=bounds_of(settings),
            ),
            memory,
            namespace=settings.namespace,
            marks=self._marks,
            # A child of Celery's pool runs one task at a time, all in one thread: an agent has no other thread there.
            slices=None if role is Role.POOL_CHILD else SliceThreads(),
        )
        self.executor = Executor(
            database=self.database,
            registry=registry,
            advancer=advancer,
            publisher=self.publisher,
            bodies=self.bodies,
            held=self.held,
            local_schedule=self.local_schedule,
            store_waits=self.store_waits,
            settings=ExecutionSettings(
                namespace=settings.namespace,
                worker=worker,
                lease_seconds=settings.lease_seconds,
                step_timeout_seconds=settings.step_timeout_seconds,
                max_payload_bytes=settings.max_payload_bytes,
                modules=tuple(settings.agents),
                provider_hosts=settings.provider_hosts,
                guesses=settings.guesses,
                inline_retry_seconds=settings.inline_retry_seconds,
                cancel_grace_seconds=settings.cancel_grace_seconds,
                isolates_all=role is Role.ISOLATION_HOST,
            ),
            isolation=self.isolation,
            circuits=self.circuits,
            prices=self.prices.current,
            memory=memory,
        )
        self.released_steps = ReleasedSteps(
            database=self.database, publisher=self.publisher, executor=self.executor, store_waits=self.store_waits
        )
        self._registration = WorkerRegistration(
            database=self.database, publisher=self.publisher, settings=settings, registry=registry, worker=worker
        )
        self._capture: Installation | None = None
        self._heartbeat: Heartbeat | None = None
        self._sweeper: Sweeper | None = None
        self._witness = Witness(database=self.database, namespace=settings.namespace, worker=worker)
        self._death_watch: DeathWatch | None = None
        self._blocked_steps: BlockedSteps | None = None

    def _isolation_hosts(self, parts: WorkerParts, program: str) -> IsolationHosts:
        return IsolationHosts(
            program=program,
            beginning=Beginning(
                settings=self.settings,
                at_once=self.settings.isolated_at_once,
                log_level=logging.getLogger().getEffectiveLevel(),
            ),
            times=DrainTimes(interrupt_seconds=parts.interrupt_seconds, hand_back_seconds=parts.hand_back_seconds),
        )

    def start_capture(self) -> None:
        """Start recording requests to providers inside a step."""
        self._capture = install(self.settings.provider_hosts)

    def start_prices(self) -> None:
        """Start pricing calls by the store's own rows as well."""
        self.prices.start()

    def start_breakers(self) -> None:
        """Start the thread that records moves of circuits."""
        if self.breakers is not None:
            self.breakers.start()

    def start_witness(self, registered_as: str) -> None:
        """From now on the death of this process is detected at once, and nothing else is mistaken for it."""
        self._witness.start(registered_as)

    def start_heartbeat(self, registered_as: str) -> None:
        """Start renewing the leases of this process, on a separate connection."""
        self._heartbeat = Heartbeat(
            database=self.database if self.database.is_sqlite else open_store(self.settings),
            held=self.held,
            bodies=self.bodies,
            worker=self.worker,
            registered_as=registered_as,
            lease_seconds=self.settings.lease_seconds,
            every_seconds=self.settings.heartbeat_seconds,
            breakers=self.breakers,
        )
        self._heartbeat.start()

    def start_sweeper(self) -> None:
        """Take part in the leader election for sweeping, and watch for processes that die."""
        self._sweeper = Sweeper(
            database=self.database,
            publisher=self.publisher,
            namespace=self.settings.namespace,
            worker=self.worker,
            shards=self.settings.shards,
            lease_seconds=self.settings.lease_seconds,
            every_seconds=self.settings.sweep_seconds,
            no_worker_seconds=self.settings.no_worker_seconds,
            breakers=self.breakers,
            frozen_seconds=self.settings.frozen_seconds,
            living=self._signs.living,
        )
        self._death_watch = DeathWatch(
            database=self.database,
            publisher=self.publisher,
            namespace=self.settings.namespace,
            worker=self.worker,
            signs=self._signs,
            sweeper=self._sweeper,
            marks=self._marks,
        )
        self._sweeper.start()
        self._death_watch.start()
        self._blocked_steps = BlockedSteps(
            database=self.database,
            publisher=self.publisher,
            registry=self.registry,
            namespace=self.settings.namespace,
            max_payload_bytes=self.settings.max_payload_bytes,
        )
        self._blocked_steps.start()

    def take_part(self, queues: Sequence[str]) -> None:
        """Register and start sweeping. While the store is away this is postponed; the consumer does not wait for it."""
        try:
            self._registration.register(queues)
            self._registration.warn_of_submissions_left_behind()
        except StoreUnreachable:
            threading.Thread(
                target=self._take_part_later, args=(queues,), name="paidonce-registration", daemon=True
            ).start()
            return
        self.start_sweeper()

    def _take_part_later(self, queues: Sequence[str]) -> None:
        try:
            self.store_waits.until_done(lambda: self._registration.register(queues), "the registration of this worker")
        except PaidonceError as error:
            log.error("this worker is not registered: %s", error.message, extra={"event": "not_registered"})
            return
        if not self.store_waits.stopping:
            self.start_sweeper()

    def stop(self) -> None:
        """Stop the threads and deregister; leases still held expire."""
        self.store_waits.stop()
        if self._death_watch is not None:
            self._death_watch.stop()
        if self._blocked_steps is not None:
            self._blocked_steps.stop()
        if self._sweeper is not None:
            self._sweeper.stop()
        if self._heartbeat is not None:
            self._heartbeat.stop()
        if self._capture is not None:
            self._capture.uninstall()
        self.executor.close()
        self.prices.stop()
        if self.breakers is not None:
            self.breakers.close()
        try:
            self.database.transact(lambda connection: worker_stopped(connection, self.worker))
        except StoreError:
            return
        finally:
            self._witness.stop()

    def _note_transition(self, change: CircuitChange) -> None:
        """Record it in the store. The breakers call this in a dedicated thread, so nothing waits for it."""
        try:
            self.database.transact(
                lambda connection: record_transition(
                    connection,
                    namespace=self.settings.namespace,
                    circuit=change.circuit,
                    from_state=change.source.value,
                    to_state=change.target.value,
                    reason=change.reason,
                    worker=self.worker,
                )
            )
        except StoreError as error:
            log.warning(
                "circuit %s went from %s to %s (%s), which could not be recorded: %s",
                change.circuit,
                change.source.value,
                change.target.value,
                change.reason,
                error.message,
                extra={"event": "transition_not_recorded", "circuit": change.circuit},
            )
