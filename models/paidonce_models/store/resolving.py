"""What a person decides about a step whose outcome nobody knows: an at-most-once attempt that was lost or timed out;
and about one that is blocked, because what it returned does not fit the code."""

from __future__ import annotations

from sqlalchemy import Connection, text

from paidonce_models.errors import InvalidInput, NotFound
from paidonce_models.payloads import SplitPayload
from paidonce_models.states import StepState
from paidonce_models.store.blocked_steps import accept_attempt, find_blocked_step
from paidonce_models.store.events import REDELIVER_AFTER_US
from paidonce_models.store.messages import Message, StepMessage
from paidonce_models.store.outside_endings import end_step, lock_step
from paidonce_models.store.standing import restate_run

_FOR_PEOPLE = (StepState.UNKNOWN, StepState.BLOCKED)
_RETRY = text(
    "UPDATE steps SET state = 'scheduled', error = NULL, lease_owner = NULL, lease_expires_at_us = NULL, "
    "due_at_us = NULL, publish_count = 0, publish_at_us = paidonce_now() + :redeliver "
    "WHERE run_id = :run_id AND position = :position AND namespace = :namespace AND state IN ('unknown', 'blocked') "
    "RETURNING name, agent, queue, priority"
)


def resolve_as_succeeded(
    connection: Connection, *, namespace: str, run_id: str, position: int, result: SplitPayload
) -> Message:
    """It did its work, and this is what it came to. Raises ``NotFound``, or ``InvalidInput`` if that is known."""
    only_if = _known(connection, namespace, run_id, position)
    blocked = find_blocked_step(connection, run_id=run_id, position=position)
    if blocked is not None:
        accept_attempt(connection, blocked)
    ended = end_step(connection, namespace=namespace, run_id=run_id, position=position, only_if=only_if, result=result)
    return _told(ended, run_id, position)


def resolve_as_failed(connection: Connection, *, namespace: str, run_id: str, position: int, message: str) -> Message:
    """It did not, and the agent is told so. Raises as above."""
    error: dict[str, object] = {"type": "ResolvedAsFailed", "code": "resolved_as_failed", "message": message}
    only_if = _known(connection, namespace, run_id, position)
    ended = end_step(connection, namespace=namespace, run_id=run_id, position=position, only_if=only_if, error=error)
    return _told(ended, run_id, position)


def resolve_by_retry(connection: Connection, *, namespace: str, run_id: str, position: int) -> Message:
    """It is tried once more, as a further attempt. What the old attempt still reports is fenced. Raises as above."""
    _known(connection, namespace, run_id, position)
    key = {"namespace": namespace, "run_id": run_id, "position": position}
    row = connection.execute(_RETRY, {**key, "redeliver": REDELIVER_AFTER_US}).first()
    if row is None:
        raise _ended(run_id, position)
    restate_run(connection, run_id)
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
            f"step {position} of run {run_id} is {found.state}, neither unknown nor blocked: only the outcome of a "
            'step with delivery="at_most_once" whose attempt was lost or timed out, and of one whose result does not '
            "fit the code, is for a person to say; nothing was changed"
        )
    return _FOR_PEOPLE


def _told(message: Message | None, run_id: str, position: int) -> Message:
    if message is None:
        raise _ended(run_id, position)
    return message


def _ended(run_id: str, position: int) -> InvalidInput:
    return InvalidInput(f"run {run_id} has ended: the outcome of step {position} changes nothing any more")
