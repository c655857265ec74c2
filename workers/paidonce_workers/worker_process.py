"""What one worker process is made of, wired together in one place; a forked child is wired anew."""

from __future__ import annotations

import functools
import logging
import os
import socket
import sys
import threading
import uuid
from collections.abc import Callable, Hashable, Mapping, Sequence
from enum import StrEnum
from typing import Any

from paidonce.advance import Advancer, AdvanceSettings
from paidonce.celery_app import PaidonceCelery
from paidonce.opening import open_store
from paidonce.policies import describe_failure, policies_from_settings
from paidonce.publishing import Publisher
from paidonce.registry import Registry, default_registry
from paidonce.replay.bounds import bounds_of
from paidonce.replay.cache import MachineCache
from paidonce.replay.slice_threads import SliceThreads
from paidonce.settings import Settings
from paidonce_models.errors import PaidonceError, StatementRefused, StoreError, StoreUnreachable
from paidonce_models.payload_memory import PayloadMemory
from paidonce_models.queues import DEFAULT_NAMESPACE, SUBMIT_QUEUE, broker_queue_name, full_queue_name
from paidonce_models.schema import ensure_schema
from paidonce_models.store.breaker_transitions import record_transition
from paidonce_models.store.leases import LeaseKey, defer_step, hand_back
from paidonce_models.store.messages import AdvanceMessage, Message
from paidonce_models.store.runs_head import read_head
from paidonce_models.store.workers import HeldAgent, Registration, live_workers, register_worker, worker_stopped
from paidonce_workers.blocked_steps import BlockedSteps
from paidonce_workers.breakers import CircuitBreakers, CircuitChange
from paidonce_workers.capture import Installation, install
from paidonce_workers.death_watch import DeathWatch
from paidonce_workers.execution import ExecutionSettings, Executor
from paidonce_workers.heartbeat import Heartbeat
from paidonce_workers.held_leases import HeldLeases
from paidonce_workers.incoming import UnusableMessage, checked_address
from paidonce_workers.isolation.hosts import DrainTimes, IsolationHosts
from paidonce_workers.isolation.orders import Beginning
from paidonce_workers.machinery import Machinery
from paidonce_workers.patience import Patience
from paidonce_workers.price_watch import PriceWatch
from paidonce_workers.resilience import LearnedProviders, StepCircuits
from paidonce_workers.signs_of_life import SignsOfLife
from paidonce_workers.slice_marks import CarefulPeriod, SliceMarks
from paidonce_workers.soon import Soon
from paidonce_workers.sweeper import Sweeper
from paidonce_workers.turn import Kept
from paidonce_workers.witness import Witness

log = logging.getLogger(__name__)

PASS_ON_AFTER_US = 5_000_000
REGISTERED_WITHIN_US = 15_000_000
"""How lately a worker was heard of that counts as alive."""


class Role(StrEnum):
    """What a process that executes steps is."""

    WORKER = "worker"
    POOL_CHILD = "pool_child"
    """Forked by Celery, runs one step at a time: what it isolates may be a child of its own."""
    ISOLATION_HOST = "isolation_host"


class WorkerProcess:
    """The parts of one process that executes steps."""

    def __init__(
        self,
        *,
        app: PaidonceCelery,
        settings: Settings,
        registry: Registry,
        machinery: Machinery,
        worker: str,
        period: CarefulPeriod,
        role: Role = Role.WORKER,
    ) -> None:
        self.settings = settings
        self.registry = registry
        self.worker = worker
        self.patience = Patience()
        self.database = open_store(settings, pool_size=settings.database_pool_size)
        self.publisher = Publisher(app, settings)
        self.held = HeldLeases()
        self.bodies = machinery.bodies
        self.soon = Soon(
            database=self.database,
            publisher=self.publisher,
            namespace=settings.namespace,
            deadlines=machinery.bodies.deadlines,
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
        # A host finds the code where this process has found it: in the modules that the settings name.
        can_isolate = role is Role.WORKER and bool(settings.agents) and registry is default_registry
        self.isolation = self._isolation_hosts(machinery) if can_isolate else None
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
            # A child of Celery's pool runs one task at a time, all in one thread: an agent has no other there.
            slices=None if role is Role.POOL_CHILD else SliceThreads(),
        )
        self.executor = Executor(
            database=self.database,
            registry=registry,
            advancer=advancer,
            publisher=self.publisher,
            bodies=self.bodies,
            held=self.held,
            soon=self.soon,
            patience=self.patience,
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
        self._capture: Installation | None = None
        self._heartbeat: Heartbeat | None = None
        self._sweeper: Sweeper | None = None
        self._witness = Witness(database=self.database, namespace=settings.namespace, worker=worker)
        self._death_watch: DeathWatch | None = None
        self._blocked_steps: BlockedSteps | None = None

    def _isolation_hosts(self, machinery: Machinery) -> IsolationHosts:
        return IsolationHosts(
            beginning=Beginning(
                settings=self.settings,
                at_once=self.settings.isolated_at_once,
                log_level=logging.getLogger().getEffectiveLevel(),
            ),
            times=DrainTimes(
                interrupt_seconds=machinery.interrupt_seconds, hand_back_seconds=machinery.hand_back_seconds
            ),
        )

    def start_capture(self) -> None:
        """From now on requests to providers inside a step are recorded."""
        self._capture = install(self.settings.provider_hosts)

    def start_prices(self) -> None:
        """From now on calls are priced by the store's own rows as well."""
        self.prices.start()

    def start_breakers(self) -> None:
        """Begin the thread in which moves of circuits are recorded."""
        if self.breakers is not None:
            self.breakers.start()

    def start_witness(self, registered_as: str) -> None:
        """From now on the death of this process is seen at once, and nothing else is taken for it."""
        self._witness.start(registered_as)

    def start_heartbeat(self, registered_as: str) -> None:
        """Renew the leases of this process, on a connection of its own."""
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
        """Take part in leading the sweeping of shards, and in watching for processes that die."""
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
        """Register and begin to sweep. While the store is away that is put off; the consumer does not wait for it."""
        try:
            self.register(queues)
            self._warn_of_submissions_left_behind()
        except StoreUnreachable:
            threading.Thread(
                target=self._take_part_later, args=(queues,), name="paidonce-registration", daemon=True
            ).start()
            return
        self.start_sweeper()

    def _take_part_later(self, queues: Sequence[str]) -> None:
        try:
            self.patience.until_done(lambda: self.register(queues), "the registration of this worker")
        except PaidonceError as error:
            log.error("this worker is not registered: %s", error.message, extra={"event": "not_registered"})
            return
        if not self.patience.stopping:
            self.start_sweeper()

    def _warn_of_submissions_left_behind(self) -> None:
        """Before queues had a namespace in their names, producers of all of them sent to one queue.

        Where nobody takes that one any more its messages, the only copies, would wait without a word.
        """
        namespace = self.settings.namespace
        if namespace == DEFAULT_NAMESPACE:
            return
        with self.database.read() as connection:
            if live_workers(connection, DEFAULT_NAMESPACE, within_us=REGISTERED_WITHIN_US):
                return
        waiting = self.publisher.depth_on_broker([SUBMIT_QUEUE]).get(SUBMIT_QUEUE, 0)
        if waiting:
            log.warning(
                "%d submission(s) wait in the queue %s, which workers of the namespace %s take, and none of those is "
                "alive in this store; those for namespace %s are sent to %s. If they are yours, move them there and "
                "have their producers send there",
                waiting,
                SUBMIT_QUEUE,
                DEFAULT_NAMESPACE,
                namespace,
                broker_queue_name(namespace, SUBMIT_QUEUE),
                extra={"event": "submissions_left_behind"},
            )

    def register(self, queues: Sequence[str]) -> None:
        """Say in the store what this worker holds; runs that were blocked for want of it go on.

        Raises ``StoreUnreachable`` while the store is away.
        """
        ensure_schema(self.database)
        registration = Registration(
            worker=self.worker,
            namespace=self.settings.namespace,
            hostname=socket.gethostname(),
            pid=os.getpid(),
            python_minor=f"{sys.version_info.major}.{sys.version_info.minor}",
            queues=list(queues),
            agents=[
                HeldAgent(
                    name=held.name,
                    version=held.version,
                    signature=held.signature,
                    queue=full_queue_name(held.queue),
                    limits=held.limits,
                )
                for held in self.registry.agents
            ],
            steps=[held.name for held in self.registry.steps],
            bounds=bounds_of(self.settings).by_reason,
        )
        messages = self.database.transact(lambda connection: register_worker(connection, registration))
        self.publisher.publish(messages)

    def stop(self) -> None:
        """Stop the threads and say goodbye; what is held by then runs out of its lease."""
        self.patience.stop()
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
        """Tell the store. The breakers call it in a thread of their own, which nobody waits for."""
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

    # -- hooks of the machinery ------------------------------------------------------

    def hand_back_held(self, keys: list[Hashable]) -> None:
        """Give back steps whose bodies could not be ended in time; a store that is away is waited for."""
        for key in keys:
            if not isinstance(key, LeaseKey):
                continue
            try:
                message = self.patience.until_done(
                    functools.partial(
                        self.database.transact,
                        functools.partial(hand_back, key=key, reason="the worker stopped"),
                    ),
                    f"handing back step {key.position} of run {key.run_id}",
                )
            except StatementRefused as error:  # of this one; the others must not run out of their leases for it
                log.error("%s", error.message, extra={"event": "hand_back_refused", "run_id": key.run_id})
                continue
            if message is not None:
                self.publisher.publish([message])

    def give_away(self, kept: Kept) -> None:
        """Let others do what a thread was to go on with; a store that is away leaves that to the sweeper."""
        message: Message | None = kept.message
        claim = kept.claim
        try:
            if claim is not None:
                self.executor.give_away(claim)
                key = LeaseKey(claim.run_id, claim.position, claim.attempt)
                message = self.database.transact(
                    lambda connection: hand_back(connection, key, reason="the worker stopped before it began")
                )
        except StoreError as error:
            log.warning("%s", error.message, extra={"event": "store_away"})
            return
        finally:
            if claim is not None:
                self.executor.own.release(claim)
        if message is not None:
            self.publisher.publish([message])

    def hand_on_step(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], message: Any) -> bool:
        """A message for code that this worker does not hold: no attempt is made, a worker that holds it gets it."""
        del name, args, message
        try:
            address = checked_address(kwargs, with_step=True)
        except UnusableMessage:
            return False
        run, step = address["run"], address["step"]
        try:
            deferred = self.database.transact(
                lambda connection: defer_step(
                    connection,
                    namespace=self.settings.namespace,
                    run_id=run,
                    position=step,
                    redeliver_us=PASS_ON_AFTER_US,
                )
            )
        except StatementRefused as error:  # no step has such an address: requeued it would come for ever
            if error.is_about_data:
                return False
            raise
        if deferred is None:
            return False
        self.soon.pass_on(deferred.message, deferred.bounces)
        return True

    def hand_on_advance(self, run_id: str) -> None:
        """An advance for an agent that this worker does not hold; while the store is away, the sweeper does it."""
        try:
            with self.database.read() as connection:
                head = read_head(connection, self.settings.namespace, run_id)
        except StoreError as error:
            log.debug("left to the sweeper: %s", error)
            return
        if head is not None and not head.state.is_terminal:
            message = AdvanceMessage(run_id=run_id, agent=head.agent, queue=head.queue, priority=head.priority)
            self.soon.pass_on(message, 1)


class WorkerProcesses:
    """The wiring of whatever process asks: the worker's own, or a forked child's, made at first use."""

    def __init__(
        self,
        *,
        app: PaidonceCelery,
        settings: Settings,
        registry: Registry,
        machinery: Machinery,
        role: Role = Role.WORKER,
    ) -> None:
        """``role`` is that of this process; those forked from it are children of its pool."""
        self._role = role
        self._pid = os.getpid()
        self._app = app
        self._settings = settings
        self._registry = registry
        self._machinery = machinery
        self._lock = threading.Lock()
        self._made: dict[int, WorkerProcess] = {}
        self.registered_as = ""
        self._period = CarefulPeriod()

    def current(self) -> WorkerProcess:
        """This process's wiring; its heartbeat runs."""
        pid = os.getpid()
        process = self._made.get(pid)
        if process is None:
            with self._lock:
                process = self._made.get(pid)
                if process is None:
                    process = self._make(pid)
        return process

    def drain_isolated(self, seconds: float) -> Callable[[], object]:
        """Let this process's isolation hosts end within so many seconds; returns what waits for that."""
        process = self._made.get(os.getpid())
        if process is None or process.isolation is None:
            return lambda: None
        process.isolation.drain(seconds)
        return process.isolation.wait

    def _make(self, pid: int) -> WorkerProcess:
        worker = f"{socket.gethostname()}:{pid}:{uuid.uuid4().hex[:6]}"
        process = WorkerProcess(
            app=self._app,
            settings=self._settings,
            registry=self._registry,
            machinery=self._machinery,
            worker=worker,
            period=self._period,
            role=self._role if pid == self._pid else Role.POOL_CHILD,
        )
        if not self.registered_as:
            self.registered_as = worker
        # A forked child keeps its parent's wiring unused: dropping it would close connections they share.
        self._made[pid] = process
        process.start_capture()
        process.start_prices()
        process.start_breakers()
        process.start_witness(self.registered_as)
        process.start_heartbeat(self.registered_as)
        return process
