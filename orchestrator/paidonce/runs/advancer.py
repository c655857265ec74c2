"""Advances runs: feeds an agent the events it has not seen, and records what it requests.

The coroutine runs before the transaction opens, speculatively; the transaction's guard
is that the event history has not changed since it was read. Whoever loses that race
reads the new events and retries: its coroutine has only been fed genuine events. The one
exception is ``complete``, which feeds an event that is about to be written; if the
history has changed, that coroutine is dropped.

Sits between the store's statements and the workers; executes no step and publishes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from sqlalchemy import Connection

from paidonce.declarations.registry import Registry
from paidonce.replay.bounds import too_many_runs
from paidonce.replay.cache import CacheEntry, MachineCache
from paidonce.replay.progress import progress_of
from paidonce.replay.run_replay import Machine
from paidonce.replay.slice_threads import SliceThreads, ThreadBusy
from paidonce.runs.advance_result import Advanced, AdvanceResult
from paidonce.runs.advance_settings import PYTHON_MINOR, AdvanceSettings
from paidonce.runs.eager_claims import EagerClaim, claim_written
from paidonce.runs.log_feed import LogFeed, SliceMarking
from paidonce_models.database.transactions import Database
from paidonce_models.errors import PaidonceError, ReplayError, StatementRefused, StoreUnreachable, TooManyRuns
from paidonce_models.payloads.payload_memory import PayloadMemory
from paidonce_models.store.blocking.run_limits import runs_below
from paidonce_models.store.commits.committer import Committer
from paidonce_models.store.commits.items import (
    Item,
    advance_item,
    completion_item,
    fits_alone,
    fits_as_advance,
    fits_together,
    together_item,
)
from paidonce_models.store.messages import AdvanceMessage, Message
from paidonce_models.store.runs.advancing import Progress, step_messages
from paidonce_models.store.runs.events import Event, EventKind
from paidonce_models.store.runs.runs_head import RunHead
from paidonce_models.store.steps.claims import Claim
from paidonce_models.store.steps.completion import (
    Acceptance,
    Completion,
    LogGap,
    advance_and_claim,
    complete_alone,
    complete_with_progress,
    record_refused,
    step_event_data,
)

log = logging.getLogger(__name__)


class _Overtaken(Exception):
    """Rolls back a transaction whose guard failed."""

    def __init__(self, acceptance: Acceptance | None = None) -> None:
        super().__init__(acceptance)
        self.acceptance = acceptance


class Advancer:
    """Advances the runs of one process. Thread-safe."""

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
        """``namespace``: whose runs are advanced; those of others do not exist for it.

        ``marks`` ``None``: deaths are not counted against runs. ``slices`` run the agents; ``None``: the calling thread
        does, and there should be only one.
        """
        self._database = database
        self._registry = registry
        self._cache = cache
        self._settings = settings or AdvanceSettings()
        self._committer = None if database.is_sqlite else Committer(database)
        self._memory = memory
        self._feed = LogFeed(
            database, registry, cache, self._settings, memory, namespace=namespace, marks=marks, slices=slices
        )

    def holds(self, agent: str) -> bool:
        """Whether this process holds some version of the agent."""
        return self._registry.agent(agent) is not None

    # -- advance -------------------------------------------------------------------

    def advance(self, run_id: str, eager_claim: EagerClaim | None = None) -> AdvanceResult:
        """Feed the run every event it has not consumed. Returns what to publish afterwards.

        May claim one new step: see ``eager_claim``. That is its last act: what has been requested meanwhile is left to
        a message, because nobody renews the claim's lease before this returns.
        """
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
                step = self._advance_locked(entry, eager_claim)
                head = entry.head
            finally:
                entry.lock.release()
            result.outcome = step.outcome
            result.messages += step.messages
            if step.wake_at_us is not None:
                result.wake_at_us = step.wake_at_us
            result.claim = step.claim
            if entry.requests == served:
                break
            if result.claim is not None:
                if head is not None:
                    result.messages.append(
                        AdvanceMessage(run_id=run_id, agent=head.agent, queue=head.queue, priority=head.priority)
                    )
                break
        return result

    def _advance_locked(self, entry: CacheEntry, eager_claim: EagerClaim | None) -> AdvanceResult:
        while True:
            head = self._feed.catch_up(entry)
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
            try:
                messages, claim = self._write_advance(head, progress, eager_claim)
            except _Overtaken:
                continue
            except TooManyRuns as error:
                self._feed.block(entry, head, error, machine.declaration.signature)
                return AdvanceResult()
            except StatementRefused as error:
                if not error.is_about_data:
                    raise
                # A retry would be refused again, at every message: a person must see it.
                declaration = self._registry.agent(head.agent, head.agent_version)
                self._feed.block(entry, head, error, "" if declaration is None else declaration.signature)
                return AdvanceResult()
            self._remember(progress)
            self._warn_of_many_steps(head, progress)
            self._settle(entry, machine)
            return AdvanceResult(messages=list(messages), wake_at_us=progress.wake_at_us, claim=claim)

    def _write_advance(
        self, head: RunHead, progress: Progress, eager_claim: EagerClaim | None
    ) -> tuple[Sequence[Message], Claim | None]:
        """Write it with the claim of a new step, if one may be taken; what to publish, and the claim."""
        taken = None if eager_claim is None else eager_claim.choose(head, progress)
        claimant = None if eager_claim is None else eager_claim.claimant
        if self._committer is not None and fits_as_advance(head, progress):
            item = advance_item(head, progress, taken=taken, claimant=claimant)
            if self._committer.commit(item):
                sent = step_messages(head, [step for step in progress.new_steps if step is not taken])
                return sent, None if taken is None else claim_written(head, progress, taken, item.committed_at_us)

        def write(connection: Connection) -> tuple[Sequence[Message], int]:
            self._check_room(connection, head, progress)
            messages, at_us = advance_and_claim(connection, head, progress, taken=taken, claimant=claimant)
            if messages is None:
                raise _Overtaken
            return messages, at_us

        messages, at_us = self._database.transact(write)
        return messages, None if taken is None else claim_written(head, progress, taken, at_us)

    def _committed(self, make: Callable[[], Item]) -> bool:
        """Hand an item to the committer; False: nothing was written, and the statements for every case must decide."""
        return self._committer is not None and self._committer.commit(make())

    def _remember(self, progress: Progress | None, completion: Completion | None = None) -> None:
        """Call it after the commit: these rows are in the store and need not be sent again."""
        if self._memory is None:
            return
        if completion is not None and completion.result is not None:
            self._memory.stored(completion.result.rows)
        if progress is not None:
            for step in progress.new_steps:
                self._memory.stored(step.arguments.rows)

    def _check_room(self, connection: Connection, head: RunHead, progress: Progress) -> None:
        """Raise ``TooManyRuns`` if the root of this run has no room for the requested child runs.

        Siblings that check at the same moment do not see each other's requests and may exceed the limit by those.
        """
        asked = sum(1 for step in progress.new_steps if step.kind == "agent")
        limit = self._settings.bounds.max_runs
        if asked and runs_below(connection, head.root_run_id, most=limit + 1) + asked > limit:
            raise too_many_runs(head.id, head.root_run_id, limit=limit)

    def _warn_of_many_steps(self, head: RunHead, progress: Progress) -> None:
        """Warn once per run that it has become long: in the commit of the step with that number, which is unique."""
        bounds = self._settings.bounds
        if any(step.position == bounds.warn_steps for step in progress.new_steps):
            log.warning(
                "run %s of agent %r has requested %s steps; at %s it is blocked (PAIDONCE_MAX_STEPS). Is it endless?",
                head.id,
                head.agent,
                f"{bounds.warn_steps:,}",
                f"{bounds.max_steps:,}",
                extra={"event": "many_steps", "run_id": head.id, "step": bounds.warn_steps},
            )

    def _settle(self, entry: CacheEntry, machine: Machine) -> None:
        machine.confirm(machine.consumed)
        if machine.outcome is not None:
            self._feed.forget(entry)

    # -- complete --------------------------------------------------------------------

    def complete(
        self, completion: Completion, *, recorded_at_us: Callable[[], int], eager_claim: EagerClaim | None = None
    ) -> AdvanceResult:
        """Record how an attempt ended and advance its run; one commit if the run waits for this step only.

        ``recorded_at_us`` estimates the store's clock. A completion that the store refuses is
        recorded as fenced or cancelled, with its spend. May be called again after
        ``StoreUnreachable``: an attempt that was already accepted is reported as such. If it
        is one commit, it may also claim one new step: see ``eager_claim``. Raises
        ``StatementRefused`` if the store refuses the completion itself; what it refuses of the
        advance is not the attempt's fault.
        """
        if completion.is_final and self.holds(completion.claim.agent) and not self._must_go_apart(completion.claim):
            entry = self._cache.entry(completion.claim.run_id)
            if entry.lock.acquire(blocking=False):
                try:
                    together = (
                        None
                        if entry.evicted
                        else self._complete_together(entry, completion, recorded_at_us, eager_claim)
                    )
                except StoreUnreachable:
                    raise
                except StatementRefused:  # the completion or the advance: separately it shows which
                    together = None
                except Exception as error:  # noqa: BLE001 - whatever the advance met, the result was paid
                    entry.drop()
                    together = None
                    _log_apart(completion, error)
                finally:
                    entry.lock.release()
                if together is not None:
                    return together
        acceptance, was_known = self._complete_alone(completion)
        if acceptance is not Acceptance.ACCEPTED or not completion.is_final:
            return AdvanceResult(acceptance=acceptance)
        self._remember(None, completion)
        try:
            result = self.advance(completion.claim.run_id)
        except StatementRefused as error:  # not the completion, which is written: the sweeper republishes the advance
            _log_apart(completion, error)
            result = AdvanceResult()
        result.acceptance, result.was_known = acceptance, was_known
        return result

    def _must_go_apart(self, claim: Claim) -> bool:
        """Whether the agent's code may have killed the step's process before: then the result is committed first."""
        return claim.lost > 0 or self._feed.has_to_mark

    def _complete_alone(self, completion: Completion) -> tuple[Acceptance, bool]:
        """The store's response, and whether an earlier try had been accepted."""
        if fits_alone(completion) and self._committed(lambda: completion_item(completion)):
            return Acceptance.ACCEPTED, False
        try:
            return self._database.transact(lambda connection: complete_alone(connection, completion)), False
        except LogGap as refused:
            recorded = self._database.transact(lambda connection: record_refused(connection, completion))
            return recorded, refused.acceptance is Acceptance.ACCEPTED

    def _complete_together(
        self,
        entry: CacheEntry,
        completion: Completion,
        recorded_at_us: Callable[[], int],
        eager_claim: EagerClaim | None,
    ) -> AdvanceResult | None:
        """The completion and its advance in one commit, or ``None`` if they must be written separately."""
        claim = completion.claim
        machine = entry.machine
        if machine is None or entry.head is None or machine.consumed < claim.consumed_seq:
            if isinstance(self._feed.catch_up(entry), AdvanceResult):
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
            self._feed.feed(entry, machine, [event])
        except (ReplayError, ThreadBusy):
            entry.drop()  # recorded alone; the following advance blocks the run or replays it elsewhere
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

        taken = None if eager_claim is None else eager_claim.choose(head, progress)
        claimant = None if eager_claim is None else eager_claim.claimant

        def write(connection: Connection) -> Sequence[Message]:
            self._check_room(connection, head, progress)
            acceptance, messages = complete_with_progress(
                connection, completion, head, progress, at_us, taken=taken, claimant=claimant
            )
            if acceptance is not Acceptance.ACCEPTED:
                raise _Overtaken(acceptance)
            return messages

        def item() -> Item:
            return together_item(completion, head, progress, at_us, taken=taken, claimant=claimant)

        try:
            if fits_together(completion, head, progress) and self._committed(item):
                messages: Sequence[Message] = step_messages(head, [s for s in progress.new_steps if s is not taken])
            else:
                messages = self._database.transact(write)
        except (_Overtaken, TooManyRuns):
            entry.drop()  # recorded alone; the following advance continues or blocks the run
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
            claim=None if taken is None else claim_written(head, progress, taken, at_us),
        )


def _log_apart(completion: Completion, error: Exception) -> None:
    log.error(
        "step %d of run %s: its completion is written without the advance that follows, which failed: %s",
        completion.claim.position,
        completion.claim.run_id,
        error.message if isinstance(error, PaidonceError) else type(error).__name__,
        extra={"event": "advance_failed", "run_id": completion.claim.run_id, "step": completion.claim.position},
    )
