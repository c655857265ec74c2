"""Completes an attempt: its outcome, usage, money and event in one commit, guarded by the attempt's number."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from sqlalchemy import Connection, text

from paidonce_models.payloads.payload_parts import SplitPayload
from paidonce_models.states import AttemptOutcome, RunState, StepState
from paidonce_models.store.blocking.blocked_steps import Blocking, write_blocking
from paidonce_models.store.budgets.spending import release
from paidonce_models.store.circuits.parked_steps import Parking, count_refusals, lock_run, write_parking
from paidonce_models.store.ledger.call_rows import insert_calls
from paidonce_models.store.messages import Message, StepMessage
from paidonce_models.store.payload_rows import insert_payloads
from paidonce_models.store.runs.advancing import NewStep, Progress, write_progress
from paidonce_models.store.runs.events import EventKind, allocate_seq, insert_event
from paidonce_models.store.runs.runs_head import RunHead
from paidonce_models.store.state_guards import attempt_may_become, run_may_become, step_is, step_may_become
from paidonce_models.store.steps.claims import Claim, Claimant, take_lease
from paidonce_models.usage import CallRecord


class Acceptance(StrEnum):
    """The store's response to a completion."""

    ACCEPTED = "accepted"
    """The step now has this outcome (or this attempt's failure is recorded and a retry is due)."""
    FENCED = "fenced"
    """The attempt was superseded; its spend is recorded under that outcome."""
    CANCELLED = "cancelled"
    """The step had been cancelled; its spend is recorded under that outcome."""
    OVERTAKEN = "overtaken"
    """Only for a completion with an advance: the event history has grown, nothing was written."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """How an attempt ended. If ``retry_after_us`` is set: failed, to be retried after that many microseconds."""

    claim: Claim
    worker: str
    outcome: AttemptOutcome
    result: SplitPayload | None = None
    result_json: bytes | None = None
    error: dict[str, object] | None = None
    traceback: str | None = None
    retry_after_us: int | None = None
    parking: Parking | None = None
    """If set: failed because a circuit is open, to be retried when that may have closed."""
    blocking: Blocking | None = None
    """If set: its result cannot be stored by this code, or its arguments do not fit; other code continues with it."""
    counts_as_failure: bool = True
    """Whether an attempt that is retried counts towards the retry policy; a probe does not."""
    calls: Sequence[CallRecord] = ()
    refused_calls: int = 0
    """The number of calls of its body that an open circuit refused."""

    @property
    def succeeded(self) -> bool:
        """Whether the step has a result."""
        return self.outcome is AttemptOutcome.ACCEPTED

    @property
    def has_returned(self) -> bool:
        """Whether its body ran to its end, so that its cost is a basis for the next estimate."""
        return self.succeeded or (self.blocking is not None and self.blocking.form is not None)

    @property
    def is_final(self) -> bool:
        """Whether this attempt gives the step its outcome."""
        return self.retry_after_us is None and self.parking is None and self.blocking is None


_REPORTING: Final = (StepState.RUNNING, StepState.UNKNOWN)
"""A step whose attempt may report: it is running, or was given up as unknown and there was no other attempt."""
_IS_ITS_ATTEMPTS = "run_id = :run_id AND position = :position AND attempt = :attempt"
# The fence against a zombie, whose step was reclaimed or claimed again. The statement that writes the outcome
# compares the attempt's number and the state under the row's lock; however late the zombie reports, nothing changes.
_END_STEP = text(
    "UPDATE steps SET state = :state, result_id = :result_id, error = :error, failed = failed + :failed, "
    "lease_owner = NULL, lease_expires_at_us = NULL, finished_at_us = paidonce_now() "
    f"WHERE {_IS_ITS_ATTEMPTS} AND {step_may_become(StepState.SUCCEEDED, StepState.FAILED, only=_REPORTING)}"
)
# The run's row before the step's, in the order of locks. Only while this very attempt is the unknown one: a
# superseded attempt must not wake a run that waits for a person.
_KNOWN_AGAIN = text(
    "UPDATE runs SET state = 'running', state_reason = NULL "
    f"WHERE id = :run_id AND {run_may_become(RunState.RUNNING, only=[RunState.WAITING])} "
    "AND state_reason = 'unknown_outcome' "
    f"AND EXISTS (SELECT 1 FROM steps WHERE {_IS_ITS_ATTEMPTS} AND {step_is(StepState.UNKNOWN, column='steps.state')})"
)
# This and the next two: the same fence for an attempt that does not end its step.
_PARK_STEP = text(
    "UPDATE steps SET state = 'parked', failed = failed + :counted, error = :error, lease_owner = NULL, "
    "lease_expires_at_us = NULL, publish_at_us = NULL, publish_count = 0 "
    f"WHERE {_IS_ITS_ATTEMPTS} AND {step_may_become(StepState.PARKED, only=_REPORTING)}"
)
_BLOCK_STEP = text(
    "UPDATE steps SET state = 'blocked', error = :error, lease_owner = NULL, lease_expires_at_us = NULL, "
    "publish_at_us = NULL, publish_count = 0 "
    f"WHERE {_IS_ITS_ATTEMPTS} AND {step_may_become(StepState.BLOCKED, only=_REPORTING)}"
)
_RETRY_STEP = text(
    "UPDATE steps SET state = 'retrying', failed = failed + :counted, error = :error, lease_owner = NULL, "
    "lease_expires_at_us = NULL, due_at_us = paidonce_now() + :retry_after_us, "
    "publish_at_us = paidonce_now() + :retry_after_us, publish_count = 0 "
    f"WHERE {_IS_ITS_ATTEMPTS} AND {step_may_become(StepState.RETRYING, only=_REPORTING)}"
)
# An attempt has one outcome. The guard is the table of moves: one that was given up and reports late may still get
# another, an accepted one never.
_END_ATTEMPT = {
    outcome: text(
        "UPDATE attempts SET outcome = :outcome, ended_at_us = paidonce_now(), error = :error, traceback = :traceback "
        f"WHERE run_id = :run_id AND position = :position AND number = :attempt AND {attempt_may_become(outcome)}"
    )
    for outcome in set(AttemptOutcome) - {AttemptOutcome.FENCED, AttemptOutcome.LOST}
}
# A zombie has reported: what is known of its attempt replaces what was assumed. The first recorded time of its end is
# kept.
_OVERRULE_ATTEMPT = {
    outcome: text(
        "UPDATE attempts SET outcome = :outcome, ended_at_us = coalesce(ended_at_us, paidonce_now()) "
        f"WHERE run_id = :run_id AND position = :position AND number = :attempt AND {attempt_may_become(outcome)}"
    )
    for outcome in (AttemptOutcome.CANCELLED, AttemptOutcome.FENCED)
}
# A cancelled step keeps its lease while its body is being stopped. Only the same attempt may end that.
_FORGET_LEASE = text(
    "UPDATE steps SET lease_owner = NULL, lease_expires_at_us = NULL "
    "WHERE run_id = :run_id AND position = :position AND attempt = :attempt "
    f"AND {step_is(StepState.CANCELLED)}"
)
_FOUND = text(
    "SELECT s.state, s.attempt, a.outcome FROM steps s JOIN attempts a ON a.run_id = s.run_id "
    "AND a.position = s.position AND a.number = :attempt WHERE s.run_id = :run_id AND s.position = :position"
)


def complete_with_progress(
    connection: Connection,
    completion: Completion,
    head: RunHead,
    progress: Progress,
    recorded_at_us: int,
    *,
    taken: NewStep | None = None,
    claimant: Claimant | None = None,
) -> tuple[Acceptance, list[Message]]:
    """Write a completion together with the advance that follows: one commit for a step of a sequence.

    Guards: the event history has not grown since ``progress.from_seq``, and the attempt
    is still the step's. ``OVERTAKEN`` and ``FENCED`` require the caller to roll back.
    The new step ``taken`` is claimed for ``claimant`` at once; it needs no message.
    """
    claim = completion.claim
    messages, _ = advance_and_claim(
        connection, head, progress, completed=claim.position, taken=taken, claimant=claimant
    )
    if messages is None:
        return Acceptance.OVERTAKEN, []
    if not _end_step(connection, completion):
        return Acceptance.FENCED, []
    _write_event(connection, completion, progress.to_seq, recorded_at_us)
    _end_attempt(connection, completion)
    _settle_money(connection, completion)
    return Acceptance.ACCEPTED, messages


def advance_and_claim(
    connection: Connection,
    head: RunHead,
    progress: Progress,
    *,
    completed: int | None = None,
    taken: NewStep | None = None,
    claimant: Claimant | None = None,
) -> tuple[list[Message] | None, int]:
    """Write an advance, with the claim of the new step ``taken``; returns the messages and when it was claimed.

    Messages ``None`` require the caller to roll back.
    """
    messages = write_progress(connection, head, progress, completed=completed)
    if messages is None or taken is None or claimant is None:
        return messages, 0
    position = taken.position
    lease = take_lease(
        connection,
        namespace=claimant.namespace,
        run_id=head.id,
        position=position,
        worker=claimant.worker,
        lease_us=claimant.lease_us,
    )
    if lease is None:  # the caller took a step that this advance cancels, or a budget was set meanwhile
        return None, 0
    others = [each for each in messages if not (isinstance(each, StepMessage) and each.position == position)]
    return others, lease.claimed_at_us


def complete_alone(connection: Connection, completion: Completion) -> Acceptance:
    """Write a completion and leave the advance to a worker that holds the agent.

    An attempt that is already accepted counts as success (the acknowledgement of the
    commit was lost). A superseded attempt is recorded as fenced, one of a cancelled step
    as cancelled, each with its spend. An at-most-once attempt that was given up as
    unknown may still report its end: there was no other attempt.
    """
    claim = completion.claim
    final = completion.is_final
    seq = allocate_seq(connection, claim.run_id) if final else None
    if completion.parking is not None or completion.blocking is not None:
        lock_run(connection, claim.run_id)
    if not (_end_step(connection, completion) if final else _retry_step(connection, completion)):
        return _settle_refused(connection, completion, seq)
    if final and seq is not None:
        _write_event(connection, completion, seq, None)
    _end_attempt(connection, completion)
    _settle_money(connection, completion)
    if completion.parking is not None:
        write_parking(connection, run_id=claim.run_id, position=claim.position, parking=completion.parking)
    if completion.blocking is not None:
        write_blocking(connection, claim, completion.blocking)
    return Acceptance.ACCEPTED


class LogGap(Exception):
    """Raised to roll back a sequence number that was allocated for an event that is not written."""

    def __init__(self, acceptance: Acceptance) -> None:
        super().__init__(acceptance)
        self.acceptance = acceptance


def record_refused(connection: Connection, completion: Completion) -> Acceptance:
    """Record the spend of an attempt that the store refused, in a transaction that allocates no sequence number."""
    return _settle_refused(connection, completion, None)


def _settle_refused(connection: Connection, completion: Completion, seq: int | None) -> Acceptance:
    claim = completion.claim
    key = {"run_id": claim.run_id, "position": claim.position, "attempt": claim.attempt}
    found = connection.execute(_FOUND, key).first()
    if found is None:
        raise LogGap(Acceptance.FENCED)
    if found.outcome == completion.outcome.value and completion.outcome is not AttemptOutcome.CANCELLED:
        if seq is not None:
            raise LogGap(Acceptance.ACCEPTED)
        return Acceptance.ACCEPTED
    cancelled = found.attempt == claim.attempt and found.state == "cancelled"
    acceptance = Acceptance.CANCELLED if cancelled else Acceptance.FENCED
    if seq is not None:
        raise LogGap(acceptance)
    outcome = AttemptOutcome.CANCELLED if cancelled and found.outcome is None else AttemptOutcome.FENCED
    connection.execute(_FORGET_LEASE, key)
    connection.execute(_OVERRULE_ATTEMPT[outcome], {**key, "outcome": outcome.value})
    # Whatever became of the attempt, even if it was released: what it spent was spent.
    _settle_money(connection, completion, accepted=False)
    return acceptance


def _settle_money(connection: Connection, completion: Completion, *, accepted: bool | None = None) -> None:
    """Write what the attempt has spent, and release the rest of its reservations."""
    claim = completion.claim
    insert_calls(connection, claim, completion.calls)
    count_refusals(connection, run_id=claim.run_id, position=claim.position, calls=completion.refused_calls)
    if claim.has_reservations:
        release(
            connection,
            run_id=claim.run_id,
            position=claim.position,
            attempt=claim.attempt,
            accepted=completion.has_returned if accepted is None else accepted,
        )


def _end_step(connection: Connection, completion: Completion) -> bool:
    claim = completion.claim
    if completion.result is not None:
        insert_payloads(connection, claim.namespace, completion.result.rows)
    return (
        connection.execute(
            _END_STEP,
            {
                "run_id": claim.run_id,
                "position": claim.position,
                "attempt": claim.attempt,
                "state": "succeeded" if completion.succeeded else "failed",
                "failed": 0 if completion.succeeded else 1,
                "result_id": None if completion.result is None else completion.result.root_id,
                "error": None if completion.error is None else json.dumps(completion.error),
            },
        ).rowcount
        == 1
    )


def _retry_step(connection: Connection, completion: Completion) -> bool:
    claim = completion.claim
    connection.execute(_KNOWN_AGAIN, {"run_id": claim.run_id, "position": claim.position, "attempt": claim.attempt})
    parameters: dict[str, object] = {
        "run_id": claim.run_id,
        "position": claim.position,
        "attempt": claim.attempt,
        "counted": int(completion.counts_as_failure),
        "error": json.dumps(completion.error),
    }
    if completion.parking is not None:
        return connection.execute(_PARK_STEP, parameters).rowcount == 1
    if completion.blocking is not None:
        return connection.execute(_BLOCK_STEP, parameters).rowcount == 1
    parameters["retry_after_us"] = completion.retry_after_us
    return connection.execute(_RETRY_STEP, parameters).rowcount == 1


def _end_attempt(connection: Connection, completion: Completion) -> None:
    claim = completion.claim
    connection.execute(
        _END_ATTEMPT[completion.outcome],
        {
            "run_id": claim.run_id,
            "position": claim.position,
            "attempt": claim.attempt,
            "outcome": completion.outcome.value,
            "error": None if completion.error is None else json.dumps(completion.error),
            "traceback": completion.traceback,
        },
    )


def step_event_data(completion: Completion) -> dict[str, object] | None:
    """What the agent will see of a failure; ``None`` for a success."""
    if completion.succeeded:
        return None
    return {"error": completion.error or {}, "timed_out": completion.outcome is AttemptOutcome.TIMED_OUT}


def _write_event(connection: Connection, completion: Completion, seq: int, recorded_at_us: int | None) -> None:
    claim = completion.claim
    insert_event(
        connection,
        namespace=claim.namespace,
        run_id=claim.run_id,
        seq=seq,
        kind=EventKind.STEP_SUCCEEDED if completion.succeeded else EventKind.STEP_FAILED,
        position=claim.position,
        attempts=claim.attempt,
        payload_id=None if completion.result is None else completion.result.root_id,
        data=step_event_data(completion),
        recorded_at_us=recorded_at_us,
    )
