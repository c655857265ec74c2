"""Feeds an agent the events of its run's history that it has not seen.

The coroutine runs before any transaction opens, speculatively, and is only ever fed genuine events. What it requests is
compared with what others have recorded for the same events; a run whose code and history differ is blocked.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from sqlalchemy import Connection

from paidonce.declarations.registry import Registry
from paidonce.replay.bounds import signature_when_blocked
from paidonce.replay.cache import CacheEntry, MachineCache
from paidonce.replay.history_comparison import compare_with_history
from paidonce.replay.run_replay import Machine
from paidonce.replay.slice_threads import SliceThreads, ThreadBusy
from paidonce.runs.advance_result import Advanced, AdvanceResult
from paidonce.runs.advance_settings import PYTHON_MINOR, AdvanceSettings
from paidonce.user_errors import error_of
from paidonce_models.database.transactions import Database
from paidonce_models.errors import PaidonceError, ReplayError
from paidonce_models.payloads.payload_memory import PayloadMemory
from paidonce_models.states import RunState
from paidonce_models.store.blocking.blocked_runs import block_run
from paidonce_models.store.runs.events import Event, read_events
from paidonce_models.store.runs.history import RecordedStep, read_recorded_steps
from paidonce_models.store.runs.run_log import RunLog, read_log
from paidonce_models.store.runs.runs_head import RunHead, read_head

log = logging.getLogger(__name__)

EVENTS_AT_ONCE = 10_000
EVENTS_IN_ONE_STATEMENT = 100
"""Events read together with the run's head and steps; a longer history is read with a separate statement for each."""


class SliceMarking(Protocol):
    """Records in the store which run's agent is running, at times when that may be what kills processes."""

    @property
    def are_needed(self) -> bool:
        """Whether marks are needed now."""
        raise NotImplementedError

    def around(self, run_id: str, signature: str) -> AbstractContextManager[None]:
        """Mark the run while the agent's code, of this signature, runs in the block."""
        raise NotImplementedError


class LogFeed:
    """Feeds the runs of one process; the caller holds the lock of the run's entry."""

    def __init__(
        self,
        database: Database,
        registry: Registry,
        cache: MachineCache,
        settings: AdvanceSettings,
        memory: PayloadMemory | None,
        *,
        namespace: str,
        marks: SliceMarking | None,
        slices: SliceThreads | None,
    ) -> None:
        """The same parameters as ``Advancer``."""
        self._database = database
        self._registry = registry
        self._cache = cache
        self._settings = settings
        self._memory = memory
        self._namespace = namespace
        self._marks = marks
        self._slices = slices

    @property
    def has_to_mark(self) -> bool:
        """Whether an agent's code may be what kills processes now."""
        return self._marks is not None and self._marks.are_needed

    def catch_up(self, entry: CacheEntry) -> RunHead | AdvanceResult:
        """Read the new events and feed them; the head under which they were read, or the result to return instead."""
        with self._database.read() as connection:
            machine = entry.machine
            log = self._read_on(connection, entry.run_id, machine)
            head = log.head if log is not None else read_head(connection, self._namespace, entry.run_id)
            if head is None or head.state.is_terminal:
                self.forget(entry)
                return AdvanceResult(outcome=Advanced.NO_RUN if head is None else Advanced.DONE)
            if head.state is RunState.BLOCKED and head.state_reason != "no_worker":
                return AdvanceResult()
            declaration = self._registry.agent(head.agent, head.agent_version)
            if declaration is None:
                return AdvanceResult(outcome=Advanced.NOT_HELD)
            if machine is None:
                machine = entry.machine = Machine(
                    head.id,
                    declaration,
                    depth=head.depth,
                    max_depth=self._settings.max_depth,
                    slice_seconds=self._settings.slice_seconds,
                    memory=self._memory,
                    max_payload_bytes=self._settings.max_payload_bytes,
                    bounds=self._settings.bounds,
                    has_begun=head.consumed_seq > 0,
                )
                entry.thread = None if self._slices is None else self._slices.choose()
            entry.head = head
            if log is None:
                events = read_events(
                    connection, head.namespace, head.id, machine.consumed, EVENTS_AT_ONCE, self._memory
                )
            else:
                events = log.events
            # What others have recorded for the events that this machine will have been fed, as far as it goes.
            recorded_seq = min(head.consumed_seq, events[-1].seq if events else machine.consumed)
            recorded: dict[int, RecordedStep] | None = None
            if machine.confirmed < recorded_seq:
                if log is None:
                    recorded = read_recorded_steps(
                        connection, head.id, first=machine.unconfirmed_position, consumed_seq=recorded_seq
                    )
                else:
                    recorded = {
                        step.position: step for step in log.recorded.values() if step.created_seq <= recorded_seq
                    }
        try:
            self.feed(entry, machine, events)
            if recorded is not None:
                compare_with_history(self._database, head, machine, recorded, PYTHON_MINOR)
        except ThreadBusy:
            entry.drop()
            return self.catch_up(entry)
        except ReplayError as error:
            self.block(entry, head, error, declaration.signature)
            return AdvanceResult()
        except BaseException:
            entry.drop()  # partly fed: what it requests does not match its history
            raise
        machine.confirm(recorded_seq)
        return self.catch_up(entry) if events and machine.consumed < head.last_seq else head

    def feed(self, entry: CacheEntry, machine: Machine, events: Sequence[Event]) -> None:
        """Run the agent, in its own thread. Raises ``ThreadBusy``: nothing was fed; another thread must replay it."""
        if not events:
            return machine.feed_all(events)
        with self._marked(machine):
            if self._slices is None or entry.thread is None:
                machine.feed_all(events)
            else:
                self._slices.call(entry.thread, functools.partial(machine.feed_all, events))

    def _marked(self, machine: Machine) -> AbstractContextManager[None]:
        if self._marks is None or not self.has_to_mark:
            return nullcontext()
        return self._marks.around(machine.run_id, machine.declaration.signature)

    def _read_on(self, connection: Connection, run_id: str, machine: Machine | None) -> RunLog | None:
        """The rest of the history in one statement; ``None`` if it is long or there is no run."""
        log = read_log(
            connection,
            self._namespace,
            run_id,
            after=0 if machine is None else machine.consumed,
            first=0 if machine is None else machine.unconfirmed_position,
            most=EVENTS_IN_ONE_STATEMENT,
            memory=self._memory,
        )
        return None if log is None or log.is_cut else log

    def forget(self, entry: CacheEntry) -> None:
        """The run has ended: drop its coroutine and free its place in the cache."""
        entry.drop()
        self._cache.forget(entry.run_id)

    def block(self, entry: CacheEntry, head: RunHead, error: PaidonceError, signature: str) -> None:
        """The run cannot continue in this code: drop its coroutine and block it in the store."""
        entry.drop()
        log.error(
            "run %s is blocked (%s) at step %s; `paidonce show %s` says why",
            head.id,
            error.code,
            error.details.get("step", "-"),
            head.id,
            extra={"event": "run_blocked", "run_id": head.id, "reason": error.code},
        )
        self._database.transact(
            lambda connection: block_run(
                connection,
                run_id=head.id,
                from_seq=head.consumed_seq,
                reason=error.code,
                error=error_of(error),
                signature=signature_when_blocked(error, signature),
            )
        )
