"""Executing a step: ask its circuits, claim, run the body, complete, publish what follows.

The claim is the first act on the store of every delivery; no user code runs inside a
transaction. What the store refuses is recorded as fenced or cancelled, never lost.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection

from paidonce.advance import Advanced, Advancer, AdvanceResult
from paidonce.claiming import Claimer
from paidonce.flood_log import FloodLog
from paidonce.publishing import Publisher
from paidonce.registry import AnyStep, Registry
from paidonce.taking_on import TakeOn
from paidonce.usage import CallRecorder
from paidonce_models.budgets import Unit
from paidonce_models.database import Database
from paidonce_models.errors import PayloadTooLarge, StoreError
from paidonce_models.log_texts import loggable, shown_id
from paidonce_models.payload_memory import PayloadMemory
from paidonce_models.payloads import split
from paidonce_models.pricing import PriceBook
from paidonce_models.states import AttemptOutcome
from paidonce_models.store.advancing import NewStep
from paidonce_models.store.claims import Claim, Claimant
from paidonce_models.store.completion import Acceptance, Completion
from paidonce_models.store.leases import LeaseKey, hand_back, mark_unknown
from paidonce_models.store.messages import Message, StepMessage
from paidonce_models.store.runs_head import namespace_of
from paidonce_models.store.suspicion import Suspect, is_suspect
from paidonce_models.store.sweeping import take_back
from paidonce_models.usage import CallRecord
from paidonce_workers.attempt import Attempt, key_of
from paidonce_workers.blocked_attempts import AttemptBlocked, result_without_room
from paidonce_workers.body_runner import BodyCancelled, BodyRunner, BodyTimedOut
from paidonce_workers.breakers import SUCCESS
from paidonce_workers.declared_body import run_declared
from paidonce_workers.failed_attempts import FailedAttempts
from paidonce_workers.held_leases import HeldLease, HeldLeases
from paidonce_workers.interrupt import Reason, shielded
from paidonce_workers.isolation.child import ChildDied, run_in_child
from paidonce_workers.own_claims import OwnClaims
from paidonce_workers.patience import Patience
from paidonce_workers.refused_completions import record_in_some_form, record_with_calls
from paidonce_workers.resilience import AttemptCircuits, Gate, StepCircuits, act_on_refusal
from paidonce_workers.soon import Soon
from paidonce_workers.turn import Turn, current_turn, keep_here

T = TypeVar("T")
C = TypeVar("C")

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ExecutionSettings:
    """The settings that executing depends on."""

    namespace: str
    worker: str
    lease_seconds: float
    step_timeout_seconds: float
    max_payload_bytes: int
    modules: tuple[str, ...] = ()
    provider_hosts: tuple[tuple[str, str], ...] = ()
    guesses: Mapping[Unit, int] = field(default_factory=lambda: dict.fromkeys(Unit, 0))
    """What budgets reserve for an attempt of which nothing is known."""
    inline_retry_seconds: float = 5.0
    """How long a tool that is called inside a step may be tried again in place."""
    isolates_all: bool = False
    """Whether this process runs every body in a process of its own."""
    cancel_grace_seconds: float = 60.0
    """What the ``finally`` of child runs may take where a policy ends their run."""


class Isolation(Protocol):
    """Where steps go that may kill whoever runs them."""

    def send(self, message: StepMessage, suspect: Suspect) -> bool:
        """Let another process claim and execute the step; False: there is none that could."""


class Executor:
    """Executes the steps of one process. Safe to use from many threads."""

    def __init__(
        self,
        *,
        database: Database,
        registry: Registry,
        advancer: Advancer,
        publisher: Publisher,
        bodies: BodyRunner,
        held: HeldLeases,
        soon: Soon,
        patience: Patience,
        settings: ExecutionSettings,
        circuits: StepCircuits,
        prices: Callable[[], PriceBook] | None = None,
        memory: PayloadMemory | None = None,
        isolation: Isolation | None = None,
    ) -> None:
        """``prices`` gives the book by which calls are priced; ``None``: list prices only.

        ``isolation`` ``None``: suspects are claimed like any other step and run in children of this process.
        """
        self._isolation = isolation
        self._circuits = circuits
        self._strangers = FloodLog(log)
        self._gates: dict[LeaseKey, Gate] = {}
        self._failures = FailedAttempts(circuits, settings.worker)
        self._database = database
        self._registry = registry
        self._advancer = advancer
        self._publisher = publisher
        self._bodies = bodies
        self._held = held
        self._soon = soon
        self._patience = patience
        self._settings = settings
        listed = PriceBook()
        self._prices: Callable[[], PriceBook] = prices if prices is not None else lambda: listed
        self._memory = memory
        self.own = OwnClaims(database, settings.worker, memory)
        self._claimant = Claimant(
            namespace=settings.namespace, worker=settings.worker, lease_us=int(settings.lease_seconds * 1e6)
        )
        self._claimer = Claimer(
            database,
            registry,
            self._claimant,
            settings.guesses,
            memory,
        )

    def execute(self, run_id: str, position: int, name: str = "", agent: str = "") -> None:
        """One delivery of a step's message. Does nothing where the step is finished, held or not due.

        ``name`` and ``agent`` are the message's; by the name the step's circuits are asked before it is claimed.
        """
        with shielded():  # what interrupts a task strikes its body only, never the store's statements
            self._execute(run_id, position, name, agent)

    def _execute(self, run_id: str, position: int, name: str, agent: str) -> None:
        turn = current_turn.get()
        claim = None if turn is None else turn.take_claim(run_id, position)
        if claim is None:
            gate = self._circuits.ask(name, agent)
            if gate.refused is not None:
                refused = gate.refused
                messages = self._patiently(
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
                    self._note_foreign(run_id)
                else:
                    self._publish_what_follows(messages)
                return
            try:
                claim = self._claim_or_send_patiently(run_id, position, name, agent)
            finally:
                if claim is None:
                    gate.release()
        else:
            gate = self._gates.pop(key_of(claim), self._circuits.no_gate)
        if claim is None:
            log.debug("nothing to do for step %s of run %s", position, shown_id(run_id))
            self._note_foreign(run_id)
            return
        try:
            self._execute_claimed(claim, gate, turn)
        finally:
            self.own.release(claim)

    def _execute_claimed(self, claim: Claim, gate: Gate, turn: Turn[Any] | None) -> None:
        claimed = time.monotonic()
        declaration = self._registry.step(claim.name)
        key = key_of(claim)
        recorder = CallRecorder(prices=self._prices)
        lease = HeldLease(key=key, step_name=claim.name, recorder=recorder, probe_tokens=gate.probe_tokens)
        self._held.add(lease)
        try:
            completion = self._attempt(claim, declaration, recorder, gate, claimed)
        finally:
            gate.release()
            self._held.remove(key)
        if completion is None:
            return

        def recorded_at_us() -> int:
            return claim.claimed_at_us + int((time.monotonic() - claimed) * 1e6)

        self._held.add(lease)  # until the store has answered: it may be away for longer than a lease
        try:
            result = self._complete_patiently(completion, recorded_at_us, turn)
        finally:
            self._held.remove(key)
        self._follow_up(claim, completion, result)

    def advance(self, run_id: str) -> AdvanceResult:
        """One delivery of an advance message."""
        result = self._patiently(lambda: self._advancer.advance(run_id), f"run {run_id}")
        if result.outcome is Advanced.NO_RUN:
            self._note_foreign(run_id)
        self._publish_what_follows(result.messages)
        self._soon.wake_run(run_id, result.wake_at_us)
        return result

    # -- inside --------------------------------------------------------------------

    def _publish_what_follows(self, messages: list[Message]) -> None:
        """Send the hints that follow a commit, but for one that this thread goes on with itself."""
        self._publisher.publish(keep_here(messages))

    def _note_foreign(self, run_id: str) -> None:
        """Say so where a message that led to nothing was for a run of another namespace.

        Dropping it loses nothing: the sweeper of that namespace sends another one, to its own queue.
        """
        try:
            with self._database.read() as connection:
                found = namespace_of(connection, run_id)
        except StoreError as error:
            log.debug("not looked at: %s", error)
            return
        if found in (None, self._settings.namespace):
            return
        self._strangers.report(
            "a message was for a run of another namespace and was dropped",
            logging.WARNING,
            "a message for run %s of namespace %s came to a worker of namespace %s and was dropped; nothing was "
            "executed, and its own workers get another one",
            shown_id(run_id),
            loggable(found),
            self._settings.namespace,
            event="foreign_message",
        )

    def close(self) -> None:
        """Tell what has only been counted."""
        self._strangers.close()

    def _patiently(self, act: Callable[[], T], what: str) -> T:
        return self._patience.until_done(act, what)

    def _claim_or_send_patiently(self, run_id: str, position: int, name: str, agent: str) -> Claim | None:
        """The claim; ``None`` also where the step is a suspect and is seen to elsewhere.

        It is not claimed here: this process may die before it could hand the step on, and would lose it once more.
        """
        if self._isolation is None:
            return self._claim_patiently(run_id, position, self._claimer.claim)
        found = self._claim_patiently(run_id, position, self._claimer.claim_unless_suspect)
        if not isinstance(found, Suspect):
            return found
        message = StepMessage(run_id=run_id, position=position, name=name, agent=agent, queue="", priority=0)
        if self._isolation.send(message, found):
            return None
        return self._claim_patiently(run_id, position, self._claimer.claim)

    def _claim_patiently(self, run_id: str, position: int, claim: Callable[[str, int], C]) -> C | Claim | None:
        tries = itertools.count(1)

        def act() -> C | Claim | None:
            if next(tries) > 1:  # the store has gone away: perhaps after the commit and before its answer
                lost = self.own.take_in_doubt(run_id, position)
                if lost is not None:
                    return lost
            found = claim(run_id, position)
            return self.own.take(found) if isinstance(found, Claim) else found

        return self._patiently(act, f"step {position} of run {run_id}")

    def _complete_patiently(
        self, completion: Completion, recorded_at_us: Callable[[], int], turn: Turn[Any] | None
    ) -> AdvanceResult:
        claim = completion.claim
        asked: list[Gate] = []
        take_on = None if turn is None else self._take_on(turn, claim.agent, asked)
        tries = itertools.count(1)

        def act() -> AdvanceResult:
            again = next(tries) > 1
            result = record_in_some_form(
                lambda form: self._advancer.complete(form, recorded_at_us=recorded_at_us, take_on=take_on),
                completion,
                self._database,
            )
            result.claim = self.own.take(result.claim)
            if again and take_on is not None and result.acceptance is Acceptance.ACCEPTED and result.claim is None:
                # As above: the commit whose answer was lost may have claimed the next step.
                result.claim = self.own.take_in_doubt(claim.run_id)
            return result

        taken: Claim | None = None
        try:
            result = self._patiently(act, f"the completion of step {claim.position} of run {claim.run_id}")
            taken = result.claim
            return result
        finally:
            if taken is not None and asked:
                self._gates[key_of(taken)] = asked.pop()
            for gate in asked:
                gate.release()

    def _take_on(self, turn: Turn[Any], agent: str, asked: list[Gate]) -> TakeOn:
        """Ask for the next step together with the commit, where this thread may go on with it and no circuit is open.

        The gates that let it through are put into ``asked``, the last one is that of the step that is taken.
        """

        def may_take(step: NewStep) -> bool:
            if not turn.may_go_on_with(step.queue, step.name):
                return False
            gate = self._circuits.ask(step.name, agent)
            if gate.refused is not None:
                return False
            asked.append(gate)
            return True

        return TakeOn(
            claimant=self._claimant,
            may_take=may_take,
        )

    def give_away(self, claim: Claim) -> None:
        """A step that was claimed here is executed by others: the probe that it may be is theirs."""
        gate = self._gates.pop(key_of(claim), None)
        if gate is not None:
            gate.release()

    def _attempt(
        self, claim: Claim, declaration: AnyStep | None, recorder: CallRecorder, gate: Gate, claimed: float
    ) -> Completion | None:
        """Run the body; what it came to, or ``None`` where the step was handed on otherwise."""
        if declaration is None:
            self._hand_back(claim, f"this worker does not hold {claim.name}", recorder)
            return None
        policy = self._circuits.policy_of(declaration)
        attempt = Attempt(
            claim=claim,
            declaration=declaration,
            policy=policy,
            recorder=recorder,
            gate=gate,
            circuits=AttemptCircuits(
                self._circuits, declaration, gate, inline_retry_seconds=self._settings.inline_retry_seconds
            ),
            began=claimed,
        )
        if self._circuits.breakers is not None and policy.policy.retry_budget is not None and not claim.failed:
            self._circuits.breakers.count_call(policy.target, policy.policy.retry_budget)
        try:
            result_json = self._run_body(attempt)
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
                self._leave_unknown(claim, error, attempt.take_calls(self._circuits))
                return None
            return self._failures.completion_of(attempt, error, AttemptOutcome.TIMED_OUT, TimeoutError(str(error)))
        except BodyCancelled as error:
            if error.reason is Reason.HANDED_BACK:
                self._hand_back(claim, error.message, recorder)
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
            self._lose(claim, error.message, attempt.take_calls(self._circuits), alone=True)
            return None
        except MemoryError as error:
            if declaration.delivery == "at_most_once" or len(self._held.all()) == 1:
                return self._failures.completion_of(attempt, error, AttemptOutcome.FAILED, error)
            # Whoever asks last is told, and that is not who has taken it all: as with a death, nobody is named.
            why = f"memory ran out in a process that ran other steps as well ({error})"
            self._lose(claim, why, attempt.take_calls(self._circuits), alone=False)
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
        if self._settings.isolates_all or is_suspect(claim.lost):
            log.warning(
                "%s lost %d workers, %d of which ran nothing else, and runs alone in a child process",
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

    def _hand_back(self, claim: Claim, reason: str, recorder: CallRecorder) -> None:
        key = key_of(claim)
        calls = recorder.drain()

        def write(connection: Connection) -> StepMessage | None:
            return hand_back(connection, key, reason=reason)

        message = self._patiently(
            lambda: record_with_calls(self._database, claim, calls, write),
            f"handing back step {key.position} of run {key.run_id}",
        )
        if message is not None:
            self._publisher.publish([message])

    def _leave_unknown(self, claim: Claim, error: BodyTimedOut, calls: Sequence[CallRecord]) -> None:
        def write(connection: Connection) -> bool:
            return mark_unknown(connection, key_of(claim), error=error.to_json())

        self._patiently(
            lambda: record_with_calls(self._database, claim, calls, write),
            f"the time-out of step {claim.position} of run {claim.run_id}",
        )

    def _lose(self, claim: Claim, why: str, calls: Sequence[CallRecord], *, alone: bool) -> None:
        def write(connection: Connection) -> Message | None:
            return take_back(connection, key_of(claim), why=why, alone=alone, anyway=True)

        message = self._patiently(
            lambda: record_with_calls(self._database, claim, calls, write),
            f"the loss of step {claim.position} of run {claim.run_id}",
        )
        if message is not None:
            self._publisher.publish([message])

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
            self._soon.retry_step(claim, completion.retry_after_us / 1e6)
            return
        if not completion.is_final:
            return  # parked: the sweeper lets it go; blocked: other code, or a person
        turn = current_turn.get()
        if turn is not None and result.claim is not None:
            turn.keep_claim(result.claim)
        self._publish_what_follows(result.messages)
        self._soon.wake_run(claim.run_id, result.wake_at_us)
        if result.outcome is Advanced.NOT_HELD:
            self._soon.hand_on_advance(claim.run_id)
