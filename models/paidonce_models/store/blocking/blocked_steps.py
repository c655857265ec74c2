"""Steps that this code cannot continue: what their attempt returned is kept, for other code to use.

Such a step is ``blocked`` and has no lease. Its run is ``blocked`` once nothing else of it can proceed. It continues
when a worker's code can read what was kept (``settle``) or its arguments (``schedule_again``), or when a person decides
its outcome (``resolving``). Nothing here starts an attempt of a step that was paid for.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, text

from paidonce_models.payloads.payload_parts import SplitPayload
from paidonce_models.states import AttemptOutcome, StepState
from paidonce_models.store.messages import Message, StepMessage
from paidonce_models.store.payload_rows import insert_payloads, load_payload
from paidonce_models.store.runs.events import REDELIVER_AFTER_US
from paidonce_models.store.runs.run_states import update_run_state
from paidonce_models.store.state_guards import attempt_may_become, step_is, step_may_become
from paidonce_models.store.steps.claims import Claim
from paidonce_models.store.steps.ending_steps import end_step, lock_step

ENCODED = "encoded"
"""Kept bytes are an encoded result: only the store, or the size limit, had no room for it."""
BODY = "body"
"""As ``shape``: the body itself does not fit, so that only another body is worth a try."""
RENDERED = "rendered"
"""Kept bytes are a value as far as JSON allows, with its classes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Blocking:
    """Why this code cannot continue an attempt's step. ``kept`` is its result, ``None`` if nothing is kept."""

    reason: str
    form: str | None = None
    kept: SplitPayload | None = None
    text_only: Sequence[str] = ()
    shape: str = ""
    code: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockedStep:
    """A blocked step, with what was kept of it."""

    run_id: str
    position: int
    attempt: int
    namespace: str
    step: str
    args_id: str
    reason: str
    form: str | None
    kept_id: str | None
    text_only: tuple[str, ...]
    shape: str
    code: str
    since_us: int


# Under the run's lock, beside a step that its own attempt has just blocked; an earlier attempt's row is replaced.
_BLOCK = text(
    "INSERT INTO blocked_steps (run_id, position, attempt, namespace, step, reason, form, kept_id, text_only, shape, "
    "code, since_us) VALUES (:run_id, :position, :attempt, :namespace, :step, :reason, :form, :kept_id, :text_only, "
    ":shape, :code, paidonce_now()) ON CONFLICT (run_id, position) DO UPDATE SET attempt = :attempt, "
    "reason = :reason, form = :form, kept_id = :kept_id, text_only = :text_only, shape = :shape, code = :code, "
    "since_us = paidonce_now()"
)
_FIND = (
    "SELECT b.run_id, b.position, b.attempt, b.namespace, b.step, s.args_id, b.reason, b.form, b.kept_id, "
    "b.text_only, b.shape, b.code, b.since_us FROM blocked_steps b JOIN steps s ON s.run_id = b.run_id "
    f"AND s.position = b.position AND s.attempt = b.attempt AND {step_is(StepState.BLOCKED, column='s.state')} WHERE "
)
_FIND_OF_STEPS = text(
    _FIND + "b.namespace = :namespace AND b.step IN :names "
    "AND (b.since_us, b.run_id, b.position) > (:since_us, :run_id, :position) "
    "ORDER BY b.since_us, b.run_id, b.position LIMIT :most"
).bindparams(bindparam("names", expanding=True))
_FIND_ONE = text(_FIND + "b.run_id = :run_id AND b.position = :position")
# Guarded by the attempt: a row that a later attempt has written is kept while that attempt is blocked.
_TIDY = text(
    "DELETE FROM blocked_steps WHERE namespace = :namespace AND NOT EXISTS (SELECT 1 FROM steps "
    "WHERE steps.run_id = blocked_steps.run_id AND steps.position = blocked_steps.position "
    f"AND steps.attempt = blocked_steps.attempt AND {step_is(StepState.BLOCKED, column='steps.state')})"
)
# Only an attempt that was blocked: the outcome of any other has been decided.
_ACCEPT = text(
    "UPDATE attempts SET outcome = 'accepted' WHERE run_id = :run_id AND position = :position AND number = :attempt "
    f"AND {attempt_may_become(AttemptOutcome.ACCEPTED, only=[AttemptOutcome.BLOCKED])}"
)
# Workers whose code fits race with each other and with a person: only the first finds the step blocked by this attempt.
_SCHEDULE = text(
    "UPDATE steps SET state = 'scheduled', error = NULL, due_at_us = NULL, publish_count = 0, "
    "publish_at_us = paidonce_now() + :redeliver WHERE run_id = :run_id AND position = :position "
    f"AND attempt = :attempt AND {step_may_become(StepState.SCHEDULED, only=[StepState.BLOCKED])} "
    "RETURNING name, agent, queue, priority"
)
_UPDATE = text("SELECT DISTINCT run_id FROM blocked_steps WHERE namespace = :namespace")


def write_blocking(connection: Connection, claim: Claim, blocking: Blocking) -> None:
    """Record what was kept beside the step, which is ``blocked`` by now. Under the run's lock."""
    kept = blocking.kept
    if kept is not None:
        insert_payloads(connection, claim.namespace, kept.rows)
    connection.execute(
        _BLOCK,
        {
            "run_id": claim.run_id,
            "position": claim.position,
            "attempt": claim.attempt,
            "namespace": claim.namespace,
            "step": claim.name,
            "reason": blocking.reason,
            "form": blocking.form,
            "kept_id": None if kept is None else kept.root_id,
            "text_only": json.dumps(list(blocking.text_only)),
            "shape": blocking.shape,
            "code": blocking.code,
        },
    )
    update_run_state(connection, claim.run_id)


def find_blocked(
    connection: Connection, *, namespace: str, names: Sequence[str], after: BlockedStep | None = None, most: int = 1_000
) -> list[BlockedStep]:
    """The blocked steps of these names, the oldest first, starting after ``after``."""
    if not names:
        return []
    behind: dict[str, object] = {"since_us": -1, "run_id": "", "position": 0}
    if after is not None:
        behind = {"since_us": after.since_us, "run_id": after.run_id, "position": after.position}
    rows = connection.execute(
        _FIND_OF_STEPS, {"namespace": namespace, "names": list(names), "most": most, **behind}
    ).all()
    return [_of(row._mapping) for row in rows]


def find_blocked_step(connection: Connection, *, run_id: str, position: int) -> BlockedStep | None:
    """The same for one step."""
    row = connection.execute(_FIND_ONE, {"run_id": run_id, "position": position}).first()
    return None if row is None else _of(row._mapping)


def _of(row: object) -> BlockedStep:
    columns = dict(row)  # type: ignore[call-overload]  # a row's mapping
    return BlockedStep(**{**columns, "text_only": tuple(json.loads(columns["text_only"]))})


def read_kept(connection: Connection, blocked: BlockedStep) -> bytes | None:
    """The kept bytes."""
    return None if blocked.kept_id is None else load_payload(connection, blocked.namespace, blocked.kept_id)


def settle(connection: Connection, blocked: BlockedStep, result: SplitPayload) -> Message | None:
    """Make the kept result the step's result. Guarded by its state: ``None`` if it is not blocked any more."""
    message = end_step(
        connection,
        namespace=blocked.namespace,
        run_id=blocked.run_id,
        position=blocked.position,
        only_if=(StepState.BLOCKED,),
        result=result,
    )
    if message is not None:
        accept_attempt(connection, blocked)
    return message


def accept_attempt(connection: Connection, blocked: BlockedStep) -> None:
    """Accept the attempt whose kept result is now the step's result."""
    key = {"run_id": blocked.run_id, "position": blocked.position, "attempt": blocked.attempt}
    connection.execute(_ACCEPT, key)


def schedule_again(connection: Connection, blocked: BlockedStep) -> Message | None:
    """Let another attempt start. Guarded by the attempt; the caller knows that nothing was paid for this one."""
    lock_step(connection, blocked.namespace, blocked.run_id, blocked.position)
    key = {"run_id": blocked.run_id, "position": blocked.position, "attempt": blocked.attempt}
    row = connection.execute(_SCHEDULE, {**key, "redeliver": REDELIVER_AFTER_US}).first()
    if row is None:
        return None
    update_run_state(connection, blocked.run_id)
    return StepMessage(
        run_id=blocked.run_id,
        position=blocked.position,
        name=row.name,
        agent=row.agent,
        queue=row.queue,
        priority=row.priority,
    )


def tidy_blocked_steps(connection: Connection, namespace: str) -> None:
    """Delete rows of steps that are not blocked any more."""
    connection.execute(_TIDY, {"namespace": namespace})


def update_blocked_run_states(connection: Connection, namespace: str) -> None:
    """Recompute the state of runs with blocked steps, after other code has unblocked some of them."""
    for row in connection.execute(_UPDATE, {"namespace": namespace}).all():
        update_run_state(connection, row.run_id)
