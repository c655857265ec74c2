"""A person's decision about a step of unknown outcome (an at-most-once attempt that was lost or timed out), or about
one that is blocked because its result does not fit the code."""

from __future__ import annotations

from sqlalchemy import Connection, text

from paidonce_models.errors import InvalidInput, NotFound
from paidonce_models.payloads.payload_parts import SplitPayload
from paidonce_models.states import StepState
from paidonce_models.store.blocking.blocked_steps import accept_attempt, find_blocked_step
from paidonce_models.store.messages import Message, StepMessage
from paidonce_models.store.runs.events import REDELIVER_AFTER_US
from paidonce_models.store.runs.run_states import update_run_state
from paidonce_models.store.state_guards import step_may_become
from paidonce_models.store.steps.ending_steps import end_step, lock_step

_FOR_PEOPLE = (StepState.UNKNOWN, StepState.BLOCKED)
# Races with another person and with a late report of the attempt: only one of them finds the state that was seen.
_RETRY = text(
    "UPDATE steps SET state = 'scheduled', error = NULL, lease_owner = NULL, lease_expires_at_us = NULL, "
    "due_at_us = NULL, publish_count = 0, publish_at_us = paidonce_now() + :redeliver "
    "WHERE run_id = :run_id AND position = :position AND namespace = :namespace "
    f"AND {step_may_become(StepState.SCHEDULED, only=_FOR_PEOPLE)} RETURNING name, agent, queue, priority"
)


def resolve_as_succeeded(
    connection: Connection, *, namespace: str, run_id: str, position: int, result: SplitPayload
) -> Message:
    """It did its work, with this result. Raises ``NotFound``, or ``InvalidInput`` if its outcome is known."""
    only_if = _known(connection, namespace, run_id, position)
    blocked = find_blocked_step(connection, run_id=run_id, position=position)
    if blocked is not None:
        accept_attempt(connection, blocked)
    ended = end_step(connection, namespace=namespace, run_id=run_id, position=position, only_if=only_if, result=result)
    return _told(ended, run_id, position)


def resolve_as_failed(connection: Connection, *, namespace: str, run_id: str, position: int, message: str) -> Message:
    """It did not, and its agent sees the error. Raises as above."""
    error: dict[str, object] = {"type": "ResolvedAsFailed", "code": "resolved_as_failed", "message": message}
    only_if = _known(connection, namespace, run_id, position)
    ended = end_step(connection, namespace=namespace, run_id=run_id, position=position, only_if=only_if, error=error)
    return _told(ended, run_id, position)


def resolve_by_retry(connection: Connection, *, namespace: str, run_id: str, position: int) -> Message:
    """It is retried, as another attempt. What the old attempt still reports is fenced. Raises as above."""
    _known(connection, namespace, run_id, position)
    key = {"namespace": namespace, "run_id": run_id, "position": position}
    row = connection.execute(_RETRY, {**key, "redeliver": REDELIVER_AFTER_US}).first()
    if row is None:
        raise _ended(run_id, position)
    update_run_state(connection, run_id)
    return StepMessage(
        run_id=run_id, position=position, name=row.name, agent=row.agent, queue=row.queue, priority=row.priority
    )


def _known(connection: Connection, namespace: str, run_id: str, position: int) -> tuple[StepState, ...]:
    found = lock_step(connection, namespace, run_id, position)
    if found is None:
        raise NotFound(
            f"namespace {namespace!r} has no step {position} of a run {run_id}; `paidonce show RUN` lists a run's steps"
        )
    if found.state not in _FOR_PEOPLE:
        raise InvalidInput(
            f"step {position} of run {run_id} is {found.state}, neither unknown nor blocked: a person decides only the "
            'outcome of a step with delivery="at_most_once" whose attempt was lost or timed out, or of one whose '
            "result does not fit the code; nothing was changed"
        )
    return _FOR_PEOPLE


def _told(message: Message | None, run_id: str, position: int) -> Message:
    if message is None:
        raise _ended(run_id, position)
    return message


def _ended(run_id: str, position: int) -> InvalidInput:
    return InvalidInput(f"run {run_id} has ended: the outcome of step {position} changes nothing any more")
