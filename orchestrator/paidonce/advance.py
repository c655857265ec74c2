"""Advancing runs: feeding an agent the events it has not seen, and writing what it asks for.

The coroutine runs before the transaction opens, speculatively; the transaction
is guarded by what the log was when it was read. Whoever loses that race reads
on and tries again: his coroutine has only been fed genuine events. The one
exception is ``complete``, which feeds an event that is about to be written; if
the log moved on, that coroutine is dropped.

Sits between the store's statements and the workers; executes no step, publishes nothing.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from sqlalchemy import Connection

from paidonce.registry import Registry
from paidonce.replay.bounds import RunBounds, signature_when_blocked, too_many_runs
from paidonce.replay.cache import CacheEntry, MachineCache
from paidonce.replay.comparison import compare_with_history
from paidonce.replay.machine import Machine
from paidonce.replay.progress import progress_of
from paidonce.replay.slice_threads import SliceThreads, ThreadBusy
from paidonce.taking_on import TakeOn, claim_taken
from paidonce.user_errors import error_of
from paidonce_models.database import Database
from paidonce_models.errors import PaidonceError, ReplayError, StatementRefused, StoreUnreachable, TooManyRuns
from paidonce_models.payload_memory import PayloadMemory
from paidonce_models.states import RunState
from paidonce_models.store.advancing import Progress, write_progress
from paidonce_models.store.blocking import block_run
from paidonce_models.store.bounds import runs_below
from paidonce_models.store.claims import Claim
from paidonce_models.store.completion import (
    Acceptance,
    Completion,
    LogGap,
    complete_alone,
    complete_with_progress,
    record_refused,
    step_event_data,
)
from paidonce_models.store.events import Event, EventKind, read_events
from paidonce_models.store.history import RecordedStep, read_recorded_steps
from paidonce_models.store.messages import Message
from paidonce_models.store.run_log import RunLog, read_log
from paidonce_models.store.runs_head import RunHead, read_head
from paidonce_models.store.single_statement import (
    complete_by_itself,
    complete_together,
    fits_alone,
    fits_as_advance,
    fits_together,
    write_advance,
)

log = logging.getLogger(__name__)

PYTHON_MINOR = f"{sys.version_info.major}.{sys.version_info.minor}"
EVENTS_AT_ONCE = 10_000
EVENTS_IN_ONE_STATEMENT = 100
"""As many are read together with the run's head and steps; a longer log has less to carry with a statement for each."""

_Write = Callable[[Connection, RunHead, Progress], Sequence[Message] | None]


class Advanced(StrEnum):
    """What came of an advance."""

    DONE = "done"
    NOT_HELD = "not_held"
    NO_RUN = "no_run"
    """The namespace has no such run."""
    BUSY = "busy"
    """Another thread of this process advances the run and will see what there is to see."""


@dataclass(kw_only=True, slots=True)
class AdvanceResult:
    """The messages to publish, and the run's earliest timer if this advance set one."""

    outcome: Advanced = Advanced.DONE
    messages: list[Message] = field(default_factory=list)
    wake_at_us: int | None = None
    acceptance: Acceptance | None = None
    claim: Claim | None = None
    """The next step, where the completion's commit claimed it too; it is not among the messages."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdvanceSettings:
    """The settings that replay depends on."""

    max_depth: int = 10
    slice_seconds: float = 5.0
    max_payload_bytes: int = 50 * 2**20
    cancel_grace_seconds: float = 60.0
    """What the ``finally`` of child runs that a parent cancels may take."""
    bounds: RunBounds = field(default_factory=RunBounds)
    """How much one run may ask for."""


class SliceMarking(Protocol):
    """Says in the store which run's agent is running, in times in which that may be what ends processes."""

    @property
    def are_needed(self) -> bool:
        """Whether such a time is now."""
        raise NotImplementedError

    def around(self, run_id: str, signature: str) -> AbstractContextManager[None]:
        """The time in which the agent's code, of this signature, runs."""
        raise NotImplementedError


class _Overtaken(Exception):
    """Rolls back a transaction whose guard failed."""

    def __init__(self, acceptance: Acceptance | None = None) -> None:
        super().__init__(acceptance)
        self.acceptance = acceptance


class Advancer:
    """Advances the runs of one process. Safe to use from many threads."""

    def __init__(
        self,
        database: Database,
        registry: Registry,
        cache: MachineCache,
        settings: AdvanceSettings | None = None,
        memory: PayloadMemory | None = None,
        *,
        namespace: str,
        marks: SliceMarking | None = None,
        slices: SliceThreads | None = None,
    ) -> None:
        """``namespace``: whose runs are advanced; any other's do not exist for it, whoever asks.

        ``marks`` ``None``: nobody would count deaths against a run. ``slices`` run the agents; ``None``: the calling
        thread does, of which there should be one.
        """
        self._marks = marks
        self._slices = slices
        self._database = database
        self._namespace = namespace
        self._registry = registry
        self._cache = cache
        self._settings = settings or AdvanceSettings()
        self._memory = memory

    def holds(self, agent: str) -> bool:
        """Whether this process holds some version of the agent."""
        return self._registry.agent(agent) is not None

    # -- advance -------------------------------------------------------------------

    def advance(self, run_id: str) -> AdvanceResult:
        """Feed the run every event it has not consumed. Returns what to publish once this is done."""
        entry = self._cache.entry(run_id)
        entry.requests += 1
        result = AdvanceResult(outcome=Advanced.BUSY)
        while entry.lock.acquire(blocking=False):
            if entry.evicted:
                entry.lock.release()
                entry = self._cache.entry(run_id)
                entry.requests += 1
                continue
            try:
                served = entry.requests
                step = self._advance_locked(entry)
            finally:
                entry.lock.release()
            result.outcome = step.outcome
            result.messages += step.messages
            if step.wake_at_us is not None:
                result.wake_at_us = step.wake_at_us
            if entry.requests == served:
                break
        return result

    def _advance_locked(self, entry: CacheEntry) -> AdvanceResult:
        while True:
            head = self._catch_up(entry)
            if isinstance(head, AdvanceResult):
                return head
            machine = entry.machine
            if machine is None or machine.consumed <= head.consumed_seq:
                return AdvanceResult()
            progress = progress_of(
                machine,
                from_seq=head.consumed_seq,
                python_minor=PYTHON_MINOR,
                limit_bytes=self._settings.max_payload_bytes,
                cancel_grace_seconds=self._settings.cancel_grace_seconds,
            )

            single = self._database.has_single_statements and fits_as_advance(head, progress)
            act = write_advance if single else write_progress

            def write(
                connection: Connection, act: _Write = act, head: RunHead = head, progress: Progress = progress
            ) -> Sequence[Message]:
                self._check_room(connection, head, progress)
                messages = act(connection, head, progress)
                if messages is None:
                    raise _Overtaken
                return messages

            try:
                messages = self._database.transact(write, single=single)
            except _Overtaken:
                continue
            except TooManyRuns as error:
                self._block(entry, head, error, machine.declaration.signature)
                return AdvanceResult()
            except StatementRefused as error:
                if not error.is_about_data:
                    raise
                # Tried again it would be refused again, at every message: a person must see it.
                declaration = self._registry.agent(head.agent, head.agent_version)
                self._block(entry, head, error, "" if declaration is None else declaration.signature)
                return AdvanceResult()
            self._remember(progress)
            self._warn_of_many_steps(head, progress)
            self._settle(entry, machine)
            return AdvanceResult(messages=list(messages), wake_at_us=progress.wake_at_us)

    def _remember(self, progress: Progress | None, completion: Completion | None = None) -> None:
        """After the commit: these rows are in the store and need not be sent again."""
        if self._memory is None:
            return
        if completion is not None and completion.result is not None:
            self._memory.stored(completion.result.rows)
        if progress is not None:
            for step in progress.new_steps:
                self._memory.stored(step.arguments.rows)

    def _check_room(self, connection: Connection, head: RunHead, progress: Progress) -> None:
        """Raise ``TooManyRuns`` where the root of this run has no room for the child runs that it asks for.

        Siblings that ask at the same moment do not see each other's and may go over the limit by what they ask for.
        """
        asked = sum(1 for step in progress.new_steps if step.kind == "agent")
        limit = self._settings.bounds.max_runs
        if asked and runs_below(connection, head.root_run_id, most=limit + 1) + asked > limit:
            raise too_many_runs(head.id, head.root_run_id, limit=limit)

    def _warn_of_many_steps(self, head: RunHead, progress: Progress) -> None:
        """Say once for a run that it has become long: in the commit with the step of that number, which is one."""
        bounds = self._settings.bounds
        if any(step.position == bounds.warn_steps for step in progress.new_steps):
            log.warning(
                "run %s of agent %r has asked for %s steps; at %s it is blocked (PAIDONCE_MAX_STEPS). Is it endless?",
                head.id,
                head.agent,
                f"{bounds.warn_steps:,}",
                f"{bounds.max_steps:,}",
                extra={"event": "many_steps", "run_id": head.id, "step": bounds.warn_steps},
            )

    def _settle(self, entry: CacheEntry, machine: Machine) -> None:
        machine.confirm(machine.consumed)
        if machine.outcome is not None:
            entry.drop()
            self._cache.forget(entry.run_id)

    def _catch_up(self, entry: CacheEntry) -> RunHead | AdvanceResult:
        """Read the log on and feed it; the head it was read under, or what to answer instead."""
        with self._database.read() as connection:
            machine = entry.machine
            log = self._read_on(connection, entry.run_id, machine)
            head = log.head if log is not None else read_head(connection, self._namespace, entry.run_id)
            if head is None or head.state.is_terminal:
                self._forget(entry)
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
            # What was recorded of the events this machine will have been fed: by others, as far as it goes.
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
            self._feed(entry, machine, events)
            if recorded is not None:
                compare_with_history(self._database, head, machine, recorded, PYTHON_MINOR)
        except ThreadBusy:
            entry.drop()
            return self._catch_up(entry)
        except ReplayError as error:
            self._block(entry, head, error, declaration.signature)
            return AdvanceResult()
        except BaseException:
            entry.drop()  # fed in part: what it asks for is not what its log leads to
            raise
        machine.confirm(recorded_seq)
        return self._catch_up(entry) if events and machine.consumed < head.last_seq else head

    def _feed(self, entry: CacheEntry, machine: Machine, events: Sequence[Event]) -> None:
        """Run the agent, in its own thread. Raises ``ThreadBusy``: nothing was fed; another thread must replay it."""
        if not events:
            return machine.feed_all(events)
        with self._marked(machine):
            if self._slices is None or entry.thread is None:
                machine.feed_all(events)
            else:
                self._slices.call(entry.thread, functools.partial(machine.feed_all, events))

    def _marked(self, machine: Machine) -> AbstractContextManager[None]:
        if self._marks is None or not self._marks.are_needed:
            return nullcontext()
        return self._marks.around(machine.run_id, machine.declaration.signature)

    def _read_on(self, connection: Connection, run_id: str, machine: Machine | None) -> RunLog | None:
        """A short rest of the log in one statement; ``None`` where it is long or there is no run."""
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

    def _forget(self, entry: CacheEntry) -> None:
        entry.drop()
        self._cache.forget(entry.run_id)

    def _block(self, entry: CacheEntry, head: RunHead, error: PaidonceError, signature: str) -> None:
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

    # -- complete --------------------------------------------------------------------

    def complete(
        self, completion: Completion, *, recorded_at_us: Callable[[], int], take_on: TakeOn | None = None
    ) -> AdvanceResult:
        """Record how an attempt ended and go on with its run; one commit where the run waits for this step only.

        ``recorded_at_us`` estimates the store's clock. A completion that the
        store refuses is recorded as fenced or cancelled, with its spend. May be
        called again after ``StoreUnreachable``: an attempt that was accepted already says so. Where it is one
        commit, one new step may be claimed in it: see ``take_on``. Raises ``StatementRefused`` where the store
        refuses the completion itself; what it refuses of the advance is not the attempt's fault.
        """
        if completion.is_final and self.holds(completion.claim.agent) and not self._must_go_apart(completion.claim):
            entry = self._cache.entry(completion.claim.run_id)
            if entry.lock.acquire(blocking=False):
                try:
                    together = (
                        None if entry.evicted else self._complete_together(entry, completion, recorded_at_us, take_on)
                    )
                except StoreUnreachable:
                    raise
                except StatementRefused:  # the completion or the advance: apart it shows which
                    together = None
                except Exception as error:  # noqa: BLE001 - whatever the advance met, the result was paid
                    entry.drop()
                    together = None
                    _log_apart(completion, error)
                finally:
                    entry.lock.release()
                if together is not None:
                    return together
        acceptance = self._complete_alone(completion)
        if acceptance is not Acceptance.ACCEPTED or not completion.is_final:
            return AdvanceResult(acceptance=acceptance)
        self._remember(None, completion)
        try:
            result = self.advance(completion.claim.run_id)
        except StatementRefused as error:  # not of the completion, which is written: the sweeper asks again
            _log_apart(completion, error)
            result = AdvanceResult()
        result.acceptance = acceptance
        return result

    def _must_go_apart(self, claim: Claim) -> bool:
        """Whether the agent's code may be what ended the step's process before: then the result is committed first."""
        return claim.lost > 0 or (self._marks is not None and self._marks.are_needed)

    def _complete_alone(self, completion: Completion) -> Acceptance:
        if self._database.has_single_statements and fits_alone(completion):
            accepted = self._database.transact(
                lambda connection: complete_by_itself(connection, completion), single=True
            )
            if accepted is not None:
                return accepted
        try:
            return self._database.transact(lambda connection: complete_alone(connection, completion))
        except LogGap:
            return self._database.transact(lambda connection: record_refused(connection, completion))

    def _complete_together(
        self,
        entry: CacheEntry,
        completion: Completion,
        recorded_at_us: Callable[[], int],
        take_on: TakeOn | None,
    ) -> AdvanceResult | None:
        """The completion and its advance in one commit, or ``None`` where they must go apart."""
        claim = completion.claim
        machine = entry.machine
        if machine is None or entry.head is None or machine.consumed < claim.consumed_seq:
            if isinstance(self._catch_up(entry), AdvanceResult):
                return None
            machine = entry.machine
        head = entry.head
        if machine is None or head is None or machine.commands or not machine.waits_only_for(claim.position):
            return None
        from_seq = machine.consumed
        at_us = recorded_at_us()
        try:
            event = Event(
                seq=from_seq + 1,
                kind=EventKind.STEP_SUCCEEDED if completion.succeeded else EventKind.STEP_FAILED,
                recorded_at_us=at_us,
                position=claim.position,
                attempts=claim.attempt,
                payload=completion.result_json,
                data=step_event_data(completion),
            )
            self._feed(entry, machine, [event])
        except (ReplayError, ThreadBusy):
            entry.drop()  # recorded alone, then met again by the advance that blocks the run or replays it elsewhere
            return None
        except BaseException:
            entry.drop()
            raise
        progress = progress_of(
            machine,
            from_seq=from_seq,
            python_minor=PYTHON_MINOR,
            limit_bytes=self._settings.max_payload_bytes,
            cancel_grace_seconds=self._settings.cancel_grace_seconds,
        )

        single = self._database.has_single_statements and fits_together(completion, head, progress)
        # A step that draws on a budget is claimed by itself: its claim reserves, or holds it.
        taken = None if take_on is None or head.has_budgets else take_on.choose(progress)
        claimant = None if take_on is None else take_on.claimant

        act = complete_together if single else complete_with_progress

        def write(connection: Connection) -> Sequence[Message]:
            self._check_room(connection, head, progress)
            acceptance, messages = act(connection, completion, head, progress, at_us, taken=taken, claimant=claimant)
            if acceptance is not Acceptance.ACCEPTED:
                raise _Overtaken(acceptance)
            return messages

        try:
            messages = self._database.transact(write, single=single)
        except (_Overtaken, TooManyRuns):
            entry.drop()  # recorded alone, then met again by the advance, which goes on or blocks the run
            return None
        except BaseException:
            entry.drop()
            raise
        self._remember(progress, completion)
        self._warn_of_many_steps(head, progress)
        self._settle(entry, machine)
        return AdvanceResult(
            messages=list(messages),
            wake_at_us=progress.wake_at_us,
            acceptance=Acceptance.ACCEPTED,
            claim=None if taken is None else claim_taken(head, progress, taken, at_us),
        )


def _log_apart(completion: Completion, error: Exception) -> None:
    log.error(
        "step %d of run %s: its end is written without the advance that it leads to, which failed: %s",
        completion.claim.position,
        completion.claim.run_id,
        error.message if isinstance(error, PaidonceError) else type(error).__name__,
        extra={"event": "advance_failed", "run_id": completion.claim.run_id, "step": completion.claim.position},
    )
