"""Executes a step: acquire permission from its circuits, claim, run the body, complete, publish what follows.

The claim is the first write to the store of every delivery; no user code runs inside a
transaction. What the store refuses is recorded as fenced or cancelled, never lost.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TypeVar

from paidonce.broker.publisher_protocol import MessagePublisher
from paidonce.declarations.registry import Registry
from paidonce.runs.advance_result import Advanced, AdvanceResult
from paidonce.runs.advancer import Advancer
from paidonce.runs.claiming import Claimer
from paidonce.usage.call_recorder import CallRecorder
from paidonce_models.budgets import Unit
from paidonce_models.database.transactions import Database
from paidonce_models.errors import PayloadTooLarge
from paidonce_models.payloads.payload_memory import PayloadMemory
from paidonce_models.payloads.payload_parts import split
from paidonce_models.pricing import PriceBook
from paidonce_models.privacy.log_texts import shown_id
from paidonce_models.states import AttemptOutcome
from paidonce_models.store.messages import Message
from paidonce_models.store.steps.claims import Claim, Claimant
from paidonce_models.store.steps.completion import Acceptance, Completion
from paidonce_models.store.steps.suspicion import is_suspect
from paidonce_workers.bodies.blocked_attempts import AttemptBlocked, result_without_room
from paidonce_workers.bodies.body_runner import BodyCancelled, BodyRunner, BodyTimedOut
from paidonce_workers.bodies.declared_body import run_declared
from paidonce_workers.bodies.interrupt import Reason, shielded
from paidonce_workers.breakers import SUCCESS
from paidonce_workers.execution.attempt import Attempt, Execution, key_of
from paidonce_workers.execution.completions import Completions
from paidonce_workers.execution.eager_execution import current_eager_execution, left_to_publish
from paidonce_workers.execution.failure_completion import FailureCompletions
from paidonce_workers.execution.foreign_messages import ForeignMessages
from paidonce_workers.execution.held_leases import HeldLease, HeldLeases
from paidonce_workers.execution.local_schedule import LocalSchedule
from paidonce_workers.execution.own_claims import OwnClaims
from paidonce_workers.execution.step_claims import Isolation, StepClaims
from paidonce_workers.execution.store_waits import StoreWaits
from paidonce_workers.execution.unfinished_attempts import UnfinishedAttempts
from paidonce_workers.isolation.child import ChildDied, run_in_child
from paidonce_workers.resilience import AttemptCircuits, Gate, Refused, StepCircuits, act_on_refusal

T = TypeVar("T")
C = TypeVar("C")

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ExecutionSettings:
    """The settings of step execution."""

    namespace: str
    worker: str
    lease_seconds: float
    step_timeout_seconds: float
    max_payload_bytes: int
    modules: tuple[str, ...] = ()
    provider_hosts: tuple[tuple[str, str], ...] = ()
    guesses: Mapping[Unit, int] = field(default_factory=lambda: dict.fromkeys(Unit, 0))
    """What budgets reserve for an attempt without an estimate."""
    inline_retry_seconds: float = 5.0
    """How long an inline tool call may be retried in place."""
    isolates_all: bool = False
    """Whether this process runs every body in a separate process."""
    isolates_suspects: bool = True
    """Whether it does so for steps that may kill the process which runs them."""
    cancel_grace_seconds: float = 60.0
    """How long the ``finally`` blocks of child runs may take when a policy ends their run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recorded:
    """A completion, how the store recorded it, and the next step if that was claimed with it."""

    completion: Completion
    acceptance: Acceptance | None
    next_claim: Claim | None


class Executor:
    """Executes the steps of one process. Thread-safe."""

    def __init__(
        self,
        *,
        database: Database,
        registry: Registry,
        advancer: Advancer,
        publisher: MessagePublisher,
        bodies: BodyRunner,
        held: HeldLeases,
        local_schedule: LocalSchedule,
        store_waits: StoreWaits,
        settings: ExecutionSettings,
        circuits: StepCircuits,
        prices: Callable[[], PriceBook] | None = None,
        memory: PayloadMemory | None = None,
        isolation: Isolation | None = None,
    ) -> None:
        """``prices`` returns the book by which calls are priced; ``None``: list prices only.

        ``isolation`` ``None``: suspects are claimed like any other step and run in children of this process.
        """
        self._circuits = circuits
        self._timing = circuits.timing
        self._foreign = ForeignMessages(database, settings.namespace)
        self._unfinished = UnfinishedAttempts(database=database, publisher=publisher, store_waits=store_waits)
        self._failures = FailureCompletions(circuits, settings.worker)
        self._database = database
        self._registry = registry
        self._advancer = advancer
        self._publisher = publisher
        self._bodies = bodies
        self._held = held
        self._local_schedule = local_schedule
        self._store_waits = store_waits
        self._settings = settings
        listed = PriceBook()
        self._prices: Callable[[], PriceBook] = prices if prices is not None else lambda: listed
        self._memory = memory
        lease_us = int(settings.lease_seconds * 1e6)
        self.own = OwnClaims(database, settings.worker, lease_us=lease_us, memory=memory)
        self._claimant = Claimant(namespace=settings.namespace, worker=settings.worker, lease_us=lease_us)
        self._claimer = Claimer(
            database,
            registry,
            self._claimant,
            settings.guesses,
            memory,
        )
        self._claims = StepClaims(claimer=self._claimer, own=self.own, store_waits=store_waits, isolation=isolation)
        self._completions = Completions(
            database=database,
            advancer=advancer,
            own=self.own,
            claimant=self._claimant,
            circuits=circuits,
            store_waits=store_waits,
        )

    def execute(self, run_id: str, position: int, name: str = "", agent: str = "") -> None:
        """One delivery of a step's message. Does nothing if the step is finished, held or not due.

        ``name`` and ``agent`` come from the message; ``name`` selects the circuits that are asked before the claim.
        """
        begun: list[Execution] = []
        with shielded():  # an interrupt strikes a task's body only, never the store's statements
            try:
                execution = self.begin(run_id, position, name, agent, begun)
                if execution is not None:
                    self.finish(execution)
            finally:
                # Under prefork a signal handler raises the soft limit between any two lines, also in `begin` and
                # `finish`. A lease that was left here would be renewed for as long as the process lives.
                for each in begun:
                    self._end(each)

    def begin(
        self, run_id: str, position: int, name: str, agent: str, begun: list[Execution] | None = None
    ) -> Execution | None:
        """Claim the step and run its body; ``None`` if there is nothing to do. ``finish`` must follow.

        A worker finishes at once; the test kit lets its clock move in between. ``begun`` receives the execution before
        anything is held, so that the caller can end it whatever is raised.
        """
        eager = current_eager_execution.get()
        claim = None if eager is None else eager.take_claim(run_id, position)
        if claim is not None:
            return self.begin_claimed(claim, begun)
        gate = self._circuits.ask(name, agent)
        if gate.refused is not None:
            self._act_on_refusal(run_id, position, gate.refused)
            return None
        try:
            claim = self._claims.claim_or_send(run_id, position, name, agent)
        finally:
            if claim is None:
                gate.release()
        if claim is None:
            log.debug("nothing to do for step %s of run %s", position, shown_id(run_id))
            self._foreign.note(run_id)
            return None
        return self._run_claimed(claim, gate, begun)

    def begin_claimed(self, claim: Claim, begun: list[Execution] | None = None) -> Execution:
        """The same for a step that the previous completion has claimed."""
        return self._run_claimed(claim, self._completions.gate_of(claim), begun)

    def finish(self, execution: Execution) -> Recorded | None:
        """Assess how the body ended, write it and publish what follows; returns what was written.

        ``None`` if that was no completion: the step was released or is lost, or its outcome is unknown.
        """
        claim, eager = execution.claim, current_eager_execution.get()
        try:
            try:
                completion = self._completion_of(execution)
            finally:
                self._end_lease(execution)
            if completion is None:
                return None
            self._held.add(execution.lease)  # until the store has responded: it may be away for longer than a lease

            def recorded_at_us() -> int:
                return claim.claimed_at_us + round((self._timing.monotonic() - execution.began) * 1e6)

            try:
                result = self._completions.write(completion, recorded_at_us, eager)
            finally:
                self._held.remove(execution.lease.key)
            self._follow_up(claim, completion, result)
            return Recorded(completion=completion, acceptance=result.acceptance, next_claim=result.claim)
        finally:
            self.own.release(claim)

    def advance(self, run_id: str) -> AdvanceResult:
        """One delivery of an advance message."""
        eager = current_eager_execution.get()
        # An interrupt between a claim's commit and the next line would leave a step that nobody executes.
        with nullcontext() if eager is None else shielded():
            result = self._completions.advance(run_id, eager)
            if eager is not None and result.claim is not None:
                eager.keep_claim(result.claim)
        if result.outcome is Advanced.NO_RUN:
            self._foreign.note(run_id)
        self._publish_what_follows(result.messages)
        self._local_schedule.wake_run(run_id, result.wake_at_us)
        return result

    # -- inside --------------------------------------------------------------------

    def _publish_what_follows(self, messages: list[Message]) -> None:
        """Publish the messages that follow a commit, except for one that this thread executes itself."""
        self._publisher.publish(left_to_publish(messages))

    def close(self) -> None:
        """Log what has only been counted."""
        self._foreign.close()

    def _waiting_for_store(self, act: Callable[[], T], what: str) -> T:
        return self._store_waits.until_done(act, what)

    def release_claim(self, claim: Claim) -> None:
        """A step that was claimed here is executed by other workers: release the place of its probe, if any."""
        self._completions.release_claim(claim)

    def _act_on_refusal(self, run_id: str, position: int, refused: Refused) -> None:
        messages = self._waiting_for_store(
            lambda: self._database.transact(
                lambda connection: act_on_refusal(
                    connection,
                    self._settings.namespace,
                    run_id,
                    position,
                    refused,
                    grace_seconds=self._settings.cancel_grace_seconds,
                )
            ),
            f"the refusal of step {position} of run {run_id}",
        )
        if messages is None:
            self._foreign.note(run_id)
        else:
            self._publish_what_follows(messages)

    def _run_claimed(self, claim: Claim, gate: Gate, begun: list[Execution] | None) -> Execution:
        began = self._timing.monotonic()
        recorder = CallRecorder(prices=self._prices, now_us=self._timing.now_us)
        lease = HeldLease(key=key_of(claim), step_name=claim.name, recorder=recorder, probe_tokens=gate.probe_tokens)
        execution = Execution(claim=claim, gate=gate, lease=lease, began=began)
        if begun is not None:
            begun.append(execution)
        self._held.add(lease)
        execution.attempt = self._attempt(claim, recorder, gate, began)
        if execution.attempt is not None:
            self._run_to_its_end(execution, execution.attempt)
        return execution

    def _run_to_its_end(self, execution: Execution, attempt: Attempt) -> None:
        try:
            execution.returned = self._run_body(attempt)
        except (Exception, BaseExceptionGroup) as error:  # noqa: BLE001 - whatever user code raises is the step's failure
            execution.error = error

    def _end(self, execution: Execution) -> None:
        """Release everything that this process holds of it; does nothing if ``finish`` has done so."""
        try:
            self._end_lease(execution)
        finally:
            self.own.release(execution.claim)

    def _end_lease(self, execution: Execution) -> None:
        try:
            execution.gate.release()
        finally:
            self._held.remove(execution.lease.key)

    def _attempt(self, claim: Claim, recorder: CallRecorder, gate: Gate, began: float) -> Attempt | None:
        declaration = self._registry.step(claim.name)
        if declaration is None:
            return None
        policy = self._circuits.policy_of(declaration)
        if self._circuits.breakers is not None and policy.policy.retry_budget is not None and not claim.failed:
            self._circuits.breakers.count_call(policy.target, policy.policy.retry_budget)
        return Attempt(
            claim=claim,
            declaration=declaration,
            policy=policy,
            recorder=recorder,
            gate=gate,
            circuits=AttemptCircuits(
                self._circuits, declaration, gate, inline_retry_seconds=self._settings.inline_retry_seconds
            ),
            began=began,
        )

    def _completion_of(self, execution: Execution) -> Completion | None:
        """The completion for the body's end, or ``None`` if the step was settled in another way."""
        claim, attempt, recorder = execution.claim, execution.attempt, execution.lease.recorder
        if attempt is None:
            self._unfinished.release(claim, f"this worker does not hold {claim.name}", recorder.drain())
            return None
        declaration, gate, policy = attempt.declaration, attempt.gate, attempt.policy
        try:
            result_json = execution.take_result()
            try:
                result = split(result_json, memory=self._memory, limit_bytes=self._settings.max_payload_bytes)
            except PayloadTooLarge as error:
                raise result_without_room(declaration, claim, result_json, error) from error
        except AttemptBlocked as stopped:
            blocked = stopped.blocked
            if blocked.form is not None:
                gate.report(policy.circuit, SUCCESS)
            log.error(
                "step %d of run %s is blocked (%s); `paidonce show %s` says why",
                claim.position,
                claim.run_id,
                blocked.reason,
                claim.run_id,
                extra={"event": "step_blocked", "run_id": claim.run_id, "step": claim.position},
            )
            return Completion(
                claim=claim,
                worker=self._settings.worker,
                outcome=AttemptOutcome.BLOCKED,
                error=blocked.error,
                blocking=blocked.blocking(self._memory),
                calls=attempt.take_calls(self._circuits),
                refused_calls=attempt.circuits.refused_calls,
            )
        except BodyTimedOut as error:
            if declaration.delivery == "at_most_once":
                self._unfinished.leave_unknown(claim, error, attempt.take_calls(self._circuits))
                return None
            return self._failures.completion_of(attempt, error, AttemptOutcome.TIMED_OUT, TimeoutError(str(error)))
        except BodyCancelled as error:
            if error.reason is Reason.HANDED_BACK:
                self._unfinished.release(claim, error.message, recorder.drain())
                return None
            if error.reason is Reason.REVOKED:
                return self._failures.completion_of(attempt, error, AttemptOutcome.FAILED, SystemExit())
            return Completion(
                claim=claim,
                worker=self._settings.worker,
                outcome=AttemptOutcome.CANCELLED,
                error=error.to_json(),
                calls=attempt.take_calls(self._circuits),
                refused_calls=attempt.circuits.refused_calls,
            )
        except ChildDied as error:
            self._unfinished.lose(claim, error.message, attempt.take_calls(self._circuits), alone=True)
            return None
        except MemoryError as error:
            if declaration.delivery == "at_most_once" or len(self._held.all()) == 1:
                return self._failures.completion_of(attempt, error, AttemptOutcome.FAILED, error)
            # The step that gets the error need not be the one that used the memory: as with a death, none is blamed.
            why = f"out of memory in a process that ran other steps as well ({error})"
            self._unfinished.lose(claim, why, attempt.take_calls(self._circuits), alone=False)
            return None
        except (Exception, BaseExceptionGroup) as error:  # noqa: BLE001 - whatever user code raises is the step's failure
            return self._failures.completion_of(attempt, error, AttemptOutcome.FAILED, error)
        gate.report(policy.circuit, SUCCESS)
        return Completion(
            claim=claim,
            worker=self._settings.worker,
            outcome=AttemptOutcome.ACCEPTED,
            result=result,
            result_json=result_json,
            calls=attempt.take_calls(self._circuits),
            refused_calls=attempt.circuits.refused_calls,
        )

    def _run_body(self, attempt: Attempt) -> bytes:
        claim, declaration, recorder = attempt.claim, attempt.declaration, attempt.recorder
        where = f"step {claim.position} ({claim.name}) of run {claim.run_id}"
        limit = attempt.limit_seconds(self._settings.step_timeout_seconds)
        key = key_of(claim)
        if self._settings.isolates_all or (self._settings.isolates_suspects and is_suspect(claim.lost)):
            log.warning(
                "%s has lost %d workers, %d of which ran nothing else, and runs alone in a child process",
                where,
                claim.lost,
                claim.blamed,
                extra={"event": "step_isolated", "run_id": claim.run_id, "step": claim.position},
            )
            result = self._bodies.run(
                key,
                run_in_child,
                (claim, self._settings.modules, self._settings.provider_hosts, self._prices().rows, recorder),
                is_async=False,
                timeout_seconds=limit,
                label=where,
            )
            return bytes(result)  # type: ignore[call-overload,no-any-return]  # what run_in_child returns
        return run_declared(
            declaration,
            claim,
            recorder,
            attempt.circuits,
            lambda fn, args, kwargs: self._bodies.run(
                key, fn, tuple(args), kwargs, is_async=declaration.is_async, timeout_seconds=limit, label=where
            ),
        )

    def _follow_up(self, claim: Claim, completion: Completion, result: AdvanceResult) -> None:
        if result.acceptance is Acceptance.FENCED:
            log.warning(
                "step %d of run %s: attempt %d was superseded and is recorded as fenced",
                claim.position,
                claim.run_id,
                claim.attempt,
                extra={"event": "attempt_fenced", "run_id": claim.run_id, "step": claim.position},
            )
            return
        if result.acceptance is not Acceptance.ACCEPTED:
            return
        if completion.retry_after_us is not None:
            self._local_schedule.retry_step(claim, completion.retry_after_us / 1e6)
            return
        if not completion.is_final:
            return  # parked: the sweeper releases it; blocked: other code does, or a person
        eager = current_eager_execution.get()
        if eager is not None and result.claim is not None:
            eager.keep_claim(result.claim)
        self._publish_what_follows(result.messages)
        self._local_schedule.wake_run(claim.run_id, result.wake_at_us)
        if result.outcome is Advanced.NOT_HELD:
            self._local_schedule.hand_on_advance(claim.run_id)
