"""The sweeper: a thread in every worker; for each shard one of them is elected leader, by a lease in the store.

Republishes what is due and unclaimed, fires timers, reclaims what vanished workers
held, releases held steps once their budget has room, and parked steps once their
circuit may have closed. After a store error, or a gap of its own, it waits a full
lease before it reclaims anything, so that a database failover or a suspended machine
does not fence the whole fleet; a process that is known to live is granted a last lease
before its step is reclaimed. The leader of the first shard also adds calls whose
cause is final to the ledger's sums.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from sqlalchemy import Connection, text

from paidonce.broker.publisher_protocol import MessagePublisher
from paidonce_models.database.transactions import Database
from paidonce_models.errors import StatementRefused, StoreError, StoreUnreachable
from paidonce_models.privacy.log_texts import failure_of
from paidonce_models.store.blocking.blocked_runs import block_unheld
from paidonce_models.store.budgets.held_steps import let_go, steps_with_room, tidy_held_steps
from paidonce_models.store.circuits.parked_steps import tidy_parked_steps
from paidonce_models.store.ledger.awaited_calls import settle_left_behind
from paidonce_models.store.ledger.rolling_up import ROLL_UP_BATCH, roll_up
from paidonce_models.store.messages import Message
from paidonce_models.store.recovery.lost_steps import Holding, expired_leases, grant_lease, holding_of, reclaim_step
from paidonce_models.store.recovery.slice_marks import forget_marks_of_ended_runs
from paidonce_models.store.recovery.sweeping import Due, due_timers, fire_timer, lead, resign, take_due
from paidonce_models.store.recovery.witnesses import forget_silent_witnesses
from paidonce_models.store.recovery.workers import forget_workers
from paidonce_models.store.runs.run_states import update_stale_run_states
from paidonce_models.store.steps.leases import LeaseKey
from paidonce_workers.breakers import CircuitBreakers
from paidonce_workers.resilience.parking_lot import ParkingLot

log = logging.getLogger(__name__)

T = TypeVar("T")

GAP_SECONDS = 5.0
REPEATS_THAT_DOUBT_THE_QUEUE = 3
"""A message that was repeated this often is sent even if its queue is not empty: it may not be in there."""
BLOCK_EVERY_SECONDS = 5.0
PROCESSES_REMEMBERED = 1_000
"""How many vanished processes are remembered as having run several steps, because their leases expire one by one."""
ROLL_UP_EVERY_SECONDS = 10.0
ROLL_UP_BATCHES = 5
"""Seconds that a sweep may spend on the ledger's sums; the rest follows in the next one, and queries stay right."""
FORGET_WORKERS_AFTER_US = 7 * 86_400 * 1_000_000

_SERVER_AGE = text("SELECT extract(epoch FROM clock_timestamp() - pg_postmaster_start_time())")


class Sweeper:
    """The sweeper of one worker."""

    def __init__(
        self,
        *,
        database: Database,
        publisher: MessagePublisher,
        namespace: str,
        worker: str,
        shards: int,
        lease_seconds: float,
        every_seconds: float,
        no_worker_seconds: float,
        breakers: CircuitBreakers | None = None,
        frozen_seconds: float = 0.0,
        living: Callable[[], Sequence[str]] = list,
        now_seconds: Callable[[], float] = time.time,
    ) -> None:
        """``living`` returns the processes that are known to be alive; their leases last ``frozen_seconds``."""
        self._now_seconds = now_seconds
        self._database = database
        self._publisher = publisher
        self._namespace = namespace
        self._worker = worker
        self._shards = shards
        self._lease_seconds = lease_seconds
        self._every_seconds = every_seconds
        self._no_worker_seconds = no_worker_seconds
        self._company: deque[str] = deque(maxlen=PROCESSES_REMEMBERED)
        self._parking = ParkingLot(database, namespace, breakers)
        self._lead_us = int(max(2.5 * every_seconds, 3.0) * 1e6)
        self._lease_us = int(lease_seconds * 1e6)
        self._frozen_us = int(max(frozen_seconds - 2 * lease_seconds, 0.0) * 1e6)  # one is granted at the end
        self._granted: dict[int, dict[LeaseKey, int]] = {}
        self._living = living
        self._stopping = threading.Event()
        self._due = threading.Event()
        self._led_until = 0.0
        self._thread = threading.Thread(target=self._serve, name="paidonce-sweeper", daemon=True)
        self._last_sweep: float | None = None
        self._take_back_from = 0.0
        self._block_from = self._now_seconds() + BLOCK_EVERY_SECONDS
        self._roll_up_from = self._now_seconds() + ROLL_UP_EVERY_SECONDS

    def start(self) -> None:
        """Start sweeping."""
        self._thread.start()

    def stop(self) -> None:
        """Stop and give up leadership, so that another worker need not wait for it to expire."""
        self._stopping.set()
        self._due.set()
        self._thread.join(timeout=5)
        try:
            self._database.transact(
                lambda connection: resign(connection, namespace=self._namespace, leader=self._worker)
            )
        except StoreError as error:
            log.debug("the leadership is left to expire: %s", error)

    def _serve(self) -> None:
        while True:
            try:
                self.sweep()
            except StoreError as error:
                self._be_careful(f"the store could not be reached ({error.message})")
            except Exception as error:  # noqa: BLE001 - told by type and place
                self._be_careful("a sweep failed")
                log.error("a sweep failed: %s", failure_of(error), extra={"event": "sweep_failed"})
            if self._wait(self._every_seconds):
                return

    def _wait(self, seconds: float) -> bool:
        """Wait for the next sweep; True if there is none."""
        self._due.wait(seconds)
        self._due.clear()
        return self._stopping.is_set()

    def sweep_now(self) -> None:
        """Start the next sweep now."""
        self._due.set()

    def leads(self) -> bool:
        """Whether this worker leads the first shard."""
        return self._now_seconds() < self._led_until

    def is_careful(self) -> bool:
        """Whether nothing may be concluded from missing heartbeats, because the store was away."""
        return self._now_seconds() < self._take_back_from

    def _be_careful(self, why: str) -> None:
        if self._now_seconds() >= self._take_back_from:
            log.warning(
                "no step is reclaimed for %.0f s: %s",
                self._lease_seconds,
                why,
                extra={"event": "careful"},
            )
        self._take_back_from = self._now_seconds() + self._lease_seconds

    def _notice_gap(self) -> None:
        # The system's clock, because the monotonic one stops while a machine is suspended.
        now = self._now_seconds()
        if self._last_sweep is None:
            self._notice_young_server()
        elif abs(now - self._last_sweep - self._every_seconds) > GAP_SECONDS:
            self._be_careful(f"the last sweep was {now - self._last_sweep:.0f} s ago")
        self._last_sweep = now

    def _notice_young_server(self) -> None:
        """A worker that has just started saw no outage; a database server younger than a lease indicates one."""
        if self._database.is_sqlite:
            return
        with self._database.read() as connection:
            age = float(connection.execute(_SERVER_AGE).scalar_one())
        if age < self._lease_seconds:
            self._be_careful(f"the database server started {age:.0f} s ago")

    def sweep(self) -> None:
        """Sweep the shards that this worker leads once."""
        self._notice_gap()
        messages: list[Message] = []
        leads_first = False
        for shard in range(self._shards):
            asked = self._now_seconds()
            leads = self._database.transact(lambda connection, shard=shard: self._lead(connection, shard))  # type: ignore[misc]
            if self._now_seconds() - asked > GAP_SECONDS:
                # Whoever held the store's lock delayed heartbeats too, and it is chance which write comes first now.
                self._be_careful(f"the store took {self._now_seconds() - asked:.0f} s to respond")
            if leads:
                messages += self.sweep_shard(shard)
                leads_first = leads_first or shard == 0
        self._last_sweep = self._now_seconds()
        if leads_first:
            self._led_until = self._last_sweep + self._lead_us / 1e6
        self._publisher.publish(messages)
        if leads_first and self._now_seconds() >= self._roll_up_from:
            self._roll_up()

    def _lead(self, connection: Connection, shard: int) -> bool:
        return lead(connection, namespace=self._namespace, shard=shard, leader=self._worker, lease_us=self._lead_us)

    def sweep_shard(self, shard: int) -> list[Message]:
        """Sweep one shard as its leader; returns the messages to publish."""
        messages: list[Message] = []
        if self._now_seconds() >= self._take_back_from:
            messages += self._reclaim(shard)
        with self._database.read() as connection:
            timers = due_timers(connection, namespace=self._namespace, shard=shard)
        for timer in timers:
            fired = self._one_of_many(partial(fire_timer, run_id=timer.run_id))
            if fired is not None:
                messages.append(fired)
        due = self._database.transact(lambda connection: take_due(connection, namespace=self._namespace, shard=shard))
        messages += self._worth_publishing(due)
        messages += self._let_go(shard)
        messages += self._parking.sweep(shard)
        if self._now_seconds() >= self._block_from:
            self._block_from = self._now_seconds() + BLOCK_EVERY_SECONDS
            self._block(shard)
            self._database.transact(lambda connection: self._tidy(connection, shard))
            self._database.transact(self._forget)
            self._database.transact(lambda connection: settle_left_behind(connection, self._namespace))
        return messages

    def _one_of_many(self, act: Callable[[Connection], T]) -> T | None:
        """One transaction of a sweep; a row that the store refuses must not keep the others from being served."""
        try:
            return self._database.transact(act)
        except StatementRefused as error:
            log.error("a row is left out of the sweep: %s", error.message, extra={"event": "sweep_refused"})
            return None

    def _let_go(self, shard: int) -> list[Message]:
        """Schedule steps that a budget has held and has room for now."""
        with self._database.read() as connection:
            found = steps_with_room(connection, namespace=self._namespace, shard=shard)
        messages: list[Message] = []
        for key in found:
            message = self._one_of_many(partial(let_go, key=key))
            if message is not None:
                messages.append(message)
        return messages

    def _tidy(self, connection: Connection, shard: int) -> None:
        tidy_held_steps(connection, namespace=self._namespace, shard=shard)
        tidy_parked_steps(connection, namespace=self._namespace, shard=shard)
        update_stale_run_states(connection, namespace=self._namespace, shard=shard)

    def _forget(self, connection: Connection) -> None:
        forget_workers(connection, self._namespace, after_us=FORGET_WORKERS_AFTER_US)
        forget_silent_witnesses(connection, self._namespace, after_us=FORGET_WORKERS_AFTER_US)
        forget_marks_of_ended_runs(connection, self._namespace)

    def _roll_up(self) -> None:
        """Add calls with a final cause to the sums that cost queries read; the next sweep does the rest."""
        for _ in range(ROLL_UP_BATCHES):
            try:
                rolled = self._database.transact(lambda connection: roll_up(connection, self._namespace))
            except StoreUnreachable:
                raise
            except Exception as error:  # noqa: BLE001 - sums that lag are slow and right, the sweep goes on
                log.error(
                    "the ledger's sums could not be kept: %s", failure_of(error), extra={"event": "roll_up_failed"}
                )
                rolled = 0
            if rolled < ROLL_UP_BATCH:
                self._roll_up_from = self._now_seconds() + ROLL_UP_EVERY_SECONDS
                return

    def _reclaim(self, shard: int) -> list[Message]:
        living = self._living()
        granted = self._granted.setdefault(shard, {})
        with self._database.read() as connection:
            expired = [
                holding_of(connection, key)
                for key in expired_leases(
                    connection, namespace=self._namespace, shard=shard, living=living, frozen_us=self._frozen_us
                )
            ]
            on_grant = [holding_of(connection, key) for key in granted]
        for holding in on_grant:
            if holding.expires_at_us != granted[holding.key]:
                del granted[holding.key]  # it was renewed, or the attempt has ended
        lost = {holding.key: holding for holding in expired if holding.owner not in living}
        lost |= {holding.key: holding for holding in on_grant if holding.key in granted and holding.has_expired}
        for holding in expired:
            if holding.key not in lost and holding.key not in granted:
                self._grant(granted, holding)
        return self._lose(list(lost.values()))

    def _grant(self, granted: dict[LeaseKey, int], holding: Holding) -> None:
        """A last lease for a living process: it may be the store that took none of its heartbeats.

        What this sweep writes may be taken where a heartbeat was refused, as its rows are smaller.
        """
        until = self._one_of_many(partial(grant_lease, holding=holding, lease_us=self._lease_us))
        if until is not None:
            granted[holding.key] = until

    def _lose(self, expired: list[Holding]) -> list[Message]:
        self._company.extend({holding.owner for holding in expired if holding.held > 1})
        messages: list[Message] = []
        why = f"no heartbeat from the worker for {self._lease_seconds:g} s"
        for holding in expired:
            key, alone = holding.key, holding.owner not in self._company
            reclaim: Callable[[Connection], Message | None] = partial(reclaim_step, key=key, why=why, alone=alone)
            message = self._one_of_many(reclaim)
            log.warning(
                "step %d of run %s: attempt %d is lost, no heartbeat came from its worker",
                key.position,
                key.run_id,
                key.attempt,
                extra={"event": "attempt_lost", "run_id": key.run_id, "step": key.position},
            )
            if message is not None:
                messages.append(message)
        return messages

    def _worth_publishing(self, due: list[Due]) -> list[Message]:
        """Leave out what most probably waits in its queue: repeating a backlog only makes it longer."""
        if not due:
            return []
        waiting = Counter(entry.message.queue for entry in due)
        depths = self._publisher.depth(waiting)
        return [
            entry.message
            for entry in due
            if depths.get(entry.message.queue, 0) < waiting[entry.message.queue]
            or entry.repeats >= REPEATS_THAT_DOUBT_THE_QUEUE
        ]

    def _block(self, shard: int) -> None:
        patience_us = int(self._no_worker_seconds * 1e6)
        blocked = self._database.transact(
            lambda connection: block_unheld(connection, namespace=self._namespace, shard=shard, patience_us=patience_us)
        )
        if blocked:
            log.error(
                "%d run(s) are blocked: no live worker holds their code; `paidonce runs --state blocked` lists them",
                blocked,
                extra={"event": "no_worker"},
            )
