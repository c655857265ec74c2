"""Steps that this code cannot go on with: what their attempt returned is kept, and other code takes it from there.

Such a step is ``blocked`` and has no lease. Its run is ``blocked`` once nothing else of it can proceed. It goes on when
a worker's code can read what was kept (``settle``), or its arguments (``schedule_again``), or a person says what comes
of it (``resolving``). Nothing here begins an attempt of a step that has been paid.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, text

from paidonce_models.payloads import SplitPayload
from paidonce_models.states import StepState
from paidonce_models.store.claims import Claim
from paidonce_models.store.events import REDELIVER_AFTER_US
from paidonce_models.store.messages import Message, StepMessage
from paidonce_models.store.outside_endings import end_step, lock_step
from paidonce_models.store.payload_rows import insert_payloads, load_payload
from paidonce_models.store.standing import restate_run

ENCODED = "encoded"
"""Kept bytes are a result as it is stored: only the store had no room for it, or the setting."""
BODY = "body"
"""As ``shape``: the body itself does not fit, so that only another one is worth a try."""
RENDERED = "rendered"
"""Kept bytes are a value as far as JSON goes, with what its classes were."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Blocking:
    """Why an attempt's step cannot go on in this code. ``kept`` is what it returned, ``None`` if nothing is there."""

    reason: str
    form: str | None = None
    kept: SplitPayload | None = None
    text_only: Sequence[str] = ()
    shape: str = ""
    code: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockedStep:
    """A step that is blocked, with what was kept of it."""

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
    "AND s.position = b.position AND s.attempt = b.attempt AND s.state = 'blocked' WHERE "
)
_FIND_OF_STEPS = text(
    _FIND + "b.namespace = :namespace AND b.step IN :names "
    "AND (b.since_us, b.run_id, b.position) > (:since_us, :run_id, :position) "
    "ORDER BY b.since_us, b.run_id, b.position LIMIT :most"
).bindparams(bindparam("names", expanding=True))
_FIND_ONE = text(_FIND + "b.run_id = :run_id AND b.position = :position")
_TIDY = text(
    "DELETE FROM blocked_steps WHERE namespace = :namespace AND NOT EXISTS (SELECT 1 FROM steps "
    "WHERE steps.run_id = blocked_steps.run_id AND steps.position = blocked_steps.position "
    "AND steps.attempt = blocked_steps.attempt AND steps.state = 'blocked')"
)
_ACCEPT = text(
    "UPDATE attempts SET outcome = 'accepted' WHERE run_id = :run_id AND position = :position AND number = :attempt "
    "AND outcome = 'blocked'"
)
_SCHEDULE = text(
    "UPDATE steps SET state = 'scheduled', error = NULL, due_at_us = NULL, publish_count = 0, "
    "publish_at_us = paidonce_now() + :redeliver WHERE run_id = :run_id AND position = :position "
    "AND attempt = :attempt AND state = 'blocked' RETURNING name, agent, queue, priority"
)
_RESTATE = text("SELECT DISTINCT run_id FROM blocked_steps WHERE namespace = :namespace")


def write_blocking(connection: Connection, claim: Claim, blocking: Blocking) -> None:
    """Beside the step, which is ``blocked`` by now: what was kept. Under the run's lock."""
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
    restate_run(connection, claim.run_id)


def find_blocked(
    connection: Connection, *, namespace: str, names: Sequence[str], after: BlockedStep | None = None, most: int = 1_000
) -> list[BlockedStep]:
    """The blocked steps of these names, the oldest first, beginning behind ``after``."""
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
    """The same of one step."""
    row = connection.execute(_FIND_ONE, {"run_id": run_id, "position": position}).first()
    return None if row is None else _of(row._mapping)


def _of(row: object) -> BlockedStep:
    columns = dict(row)  # type: ignore[call-overload]  # a row's mapping
    return BlockedStep(**{**columns, "text_only": tuple(json.loads(columns["text_only"]))})


def read_kept(connection: Connection, blocked: BlockedStep) -> bytes | None:
    """The bytes that were kept."""
    return None if blocked.kept_id is None else load_payload(connection, blocked.namespace, blocked.kept_id)


def settle(connection: Connection, blocked: BlockedStep, result: SplitPayload) -> Message | None:
    """The kept result is the step's result. Guarded by its state: ``None`` where it is not blocked any more."""
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
    """The attempt that returned what is the step's result now was the one that counts."""
    key = {"run_id": blocked.run_id, "position": blocked.position, "attempt": blocked.attempt}
    connection.execute(_ACCEPT, key)


def schedule_again(connection: Connection, blocked: BlockedStep) -> Message | None:
    """Let another attempt begin. Guarded by the attempt; the caller knows that nothing was paid for this one."""
    lock_step(connection, blocked.namespace, blocked.run_id, blocked.position)
    key = {"run_id": blocked.run_id, "position": blocked.position, "attempt": blocked.attempt}
    row = connection.execute(_SCHEDULE, {**key, "redeliver": REDELIVER_AFTER_US}).first()
    if row is None:
        return None
    restate_run(connection, blocked.run_id)
    return StepMessage(
        run_id=blocked.run_id,
        position=blocked.position,
        name=row.name,
        agent=row.agent,
        queue=row.queue,
        priority=row.priority,
    )


def tidy_blocked_steps(connection: Connection, namespace: str) -> None:
    """Delete rows of steps that are blocked no more."""
    connection.execute(_TIDY, {"namespace": namespace})


def restate_blocked_runs(connection: Connection, namespace: str) -> None:
    """Say the state of runs with blocked steps anew, after other code has set some of them going."""
    for row in connection.execute(_RESTATE, {"namespace": namespace}).all():
        restate_run(connection, row.run_id)
