"""Writes the outcome of an advance: consumed events, new steps, child runs, cancellations, the run's end.

One transaction, guarded by ``runs.consumed_seq``: whoever read the same event history
and came first has written the same things, because replay is a pure function of it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, text

from paidonce_models.budgets import Lineage, lineage_from_json
from paidonce_models.ids import new_run_id
from paidonce_models.payloads.documents import Encoded
from paidonce_models.payloads.payload_parts import SplitPayload
from paidonce_models.states import RunState, StepState
from paidonce_models.store.messages import AdvanceMessage, Message, StepMessage
from paidonce_models.store.payload_rows import insert_payloads
from paidonce_models.store.runs.cancel_events import CANCEL_GRACE_SECONDS, end_unstarted, request_cancel
from paidonce_models.store.runs.events import REDELIVER_AFTER_US, EventKind, allocate_seq, insert_event
from paidonce_models.store.runs.run_states import HAS_STOPPED_STEPS, update_run_state
from paidonce_models.store.runs.runs_head import RunHead
from paidonce_models.store.runs.submission import NewRun, submit_run
from paidonce_models.store.state_guards import run_is_open, step_may_become


@dataclass(frozen=True, kw_only=True, slots=True)
class NewStep:
    """A step that the agent requested. ``kind`` is step, tool or agent (a child run)."""

    position: int
    created_seq: int
    kind: str
    name: str
    queue: str
    arguments: SplitPayload
    delivery: str = "at_least_once"
    max_lost: int = 5
    input_sha256: str = ""
    """Of a child run only: the hash of its canonical input."""
    encoded: Encoded = b""
    """The arguments as the step reads them, for eager execution in the same commit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunEnd:
    """How a run ended; ``error`` is an error's JSON form."""

    state: RunState
    result: SplitPayload | None = None
    error: dict[str, object] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """All that one advance writes. ``from_seq`` is the guard: ``runs.consumed_seq`` must still equal it."""

    from_seq: int
    to_seq: int
    state: RunState
    state_reason: str | None
    wake_at_us: int | None
    agent_version: str
    python_minor: str
    new_steps: Sequence[NewStep] = ()
    cancelled_positions: Sequence[int] = ()
    end: RunEnd | None = None
    error: dict[str, object] | None = None
    """Why a run that has not ended cannot proceed."""
    cancel_grace_seconds: float = CANCEL_GRACE_SECONDS
    """How long the ``finally`` blocks of child runs that this cancels may take."""


# Two processes that have read the same history race. Replay is pure, so both would write the same rows; the first
# moves consumed_seq, the second finds another value and writes nothing. A completion that writes its event in the
# same transaction ({guard}) also needs an unchanged last_seq, or it would consume an event that it has not read.
# Whether there are stopped steps is read under the lock.
_CONSUME = (
    "UPDATE runs SET consumed_seq = :to_seq, {last}state = :state, state_reason = :reason, wake_at_us = :wake_at_us, "
    "publish_at_us = {publish}, publish_count = 0, agent_version = :agent_version, python_minor = :python_minor, "
    "started_at_us = coalesce(started_at_us, paidonce_now()), error = :error{end} "
    f"WHERE id = :run_id AND consumed_seq = :from_seq AND {run_is_open()}{{guard}} "
    f"RETURNING {HAS_STOPPED_STEPS.format(run_id='runs.id')} AS has_stopped_steps"
)
_END = ", result_id = :result_id, finished_at_us = paidonce_now()"
_PUBLISH = "CASE WHEN last_seq > :to_seq THEN paidonce_now() + :redeliver ELSE NULL END"


def _statement(*, with_event: bool, ends: bool) -> str:
    return _CONSUME.format(
        last="last_seq = :to_seq, " if with_event else "",
        publish="NULL" if with_event or ends else _PUBLISH,
        end=_END if ends else "",
        guard=" AND last_seq = :from_seq" if with_event else "",
    )


_CONSUME_STATEMENTS = {
    (with_event, ends): text(_statement(with_event=with_event, ends=ends))
    for with_event in (False, True)
    for ends in (False, True)
}
# Needs no guard of its own: ``_CONSUME`` has checked and locked the run's row before.
_INSERT_STEP = text(
    "INSERT INTO steps (run_id, position, created_seq, namespace, shard, root_run_id, agent, kind, name, queue, "
    "priority, delivery, max_lost, args_id, child_run_id, state, attempt, lost, failed, publish_at_us, "
    "publish_count, created_at_us) "
    "VALUES (:run_id, :position, :created_seq, :namespace, :shard, :root_run_id, :agent, :kind, :name, :queue, "
    ":priority, :delivery, :max_lost, :args_id, :child_run_id, :state, 0, 0, 0, "
    "CASE WHEN :published = 1 THEN paidonce_now() + :redeliver ELSE NULL END, 0, paidonce_now())"
)
# Race with the completions of these steps: a step that has its outcome keeps it. A lease is left to its worker, which
# learns of the cancellation when it renews the lease.
_CANCEL_STEPS = text(
    "UPDATE steps SET state = 'cancelled', finished_at_us = paidonce_now(), publish_at_us = NULL "
    f"WHERE run_id = :run_id AND position IN :positions AND {step_may_become(StepState.CANCELLED)} "
    "RETURNING child_run_id"
).bindparams(bindparam("positions", expanding=True))
_CANCEL_REST = text(
    "UPDATE steps SET state = 'cancelled', finished_at_us = paidonce_now(), publish_at_us = NULL "
    f"WHERE run_id = :run_id AND position <> :completed AND {step_may_become(StepState.CANCELLED)} "
    "RETURNING child_run_id"
)
NO_POSITION = -1
# Races with the parent, which may have cancelled the step: then the step keeps that outcome.
_END_PARENT_STEP = text(
    "UPDATE steps SET state = :state, result_id = :result_id, error = :error, finished_at_us = paidonce_now() "
    "WHERE run_id = :run_id AND position = :position "
    f"AND {step_may_become(StepState.SUCCEEDED, StepState.FAILED, StepState.CANCELLED, only=[StepState.RUNNING])}"
)
_PARENT = text("SELECT queue, priority FROM runs WHERE id = :run_id")


def lock_parent(connection: Connection, head: RunHead) -> int | None:
    """Allocate the parent's next event before the child's row is locked (runs by depth). ``None``: no parent waits."""
    return None if head.parent_run_id is None else allocate_seq(connection, head.parent_run_id)


def write_progress(
    connection: Connection, head: RunHead, progress: Progress, *, completed: int | None = None
) -> list[Message] | None:
    """Write an advance; returns the messages to publish after the commit, ``None`` if the guard failed (roll back).

    ``completed`` is the position of the step whose completion is the newest event and is
    written by this same transaction: no other event may have been appended, so
    ``runs.last_seq`` is a guard too, and the end of the run does not cancel that step.
    """
    with_event = completed is not None
    end = progress.end
    parent_seq = lock_parent(connection, head) if end is not None else None
    parameters: dict[str, object] = {
        "run_id": head.id,
        "from_seq": progress.from_seq,
        "to_seq": progress.to_seq,
        "state": progress.state.value,
        "reason": progress.state_reason,
        "wake_at_us": progress.wake_at_us,
        "agent_version": progress.agent_version,
        "python_minor": progress.python_minor,
    }
    error = progress.error if end is None else end.error
    parameters["error"] = None if error is None else json.dumps(error)
    if end is not None:
        parameters["result_id"] = None if end.result is None else end.result.root_id
    elif not with_event:
        parameters["redeliver"] = REDELIVER_AFTER_US
    consumed = connection.execute(_CONSUME_STATEMENTS[with_event, end is not None], parameters).first()
    if consumed is None:
        return None
    messages: list[Message] = []
    if progress.new_steps:
        messages += insert_steps(connection, head, progress.new_steps)
    if progress.cancelled_positions:
        cancelled = connection.execute(
            _CANCEL_STEPS, {"run_id": head.id, "positions": list(progress.cancelled_positions)}
        ).all()
        messages += _cancel_children(connection, [row.child_run_id for row in cancelled], progress.cancel_grace_seconds)
    if end is not None:
        messages += _write_end(connection, head, end, parent_seq, progress.cancel_grace_seconds, completed)
    elif consumed.has_stopped_steps:
        update_run_state(connection, head.id)
    return messages


def step_messages(head: RunHead, steps: Sequence[NewStep]) -> list[StepMessage]:
    """The messages of new steps that are no child runs."""
    return [_step_message(head, step) for step in steps]


def insert_steps(connection: Connection, head: RunHead, steps: Sequence[NewStep]) -> list[Message]:
    """Insert what the agent requested, child runs with their first event; returns the messages to publish."""
    messages: list[Message] = []
    rows: list[dict[str, object]] = []
    insert_payloads(connection, head.namespace, [row for step in steps for row in step.arguments.rows])
    for step in steps:
        child_run_id = None
        if step.kind == "agent":
            child_run_id = new_run_id()
            inherited = _inherited(connection, head.id)
            submit_run(
                connection,
                NewRun(
                    run_id=child_run_id,
                    namespace=head.namespace,
                    shard=head.shard,
                    agent=step.name,
                    input=step.arguments,
                    input_sha256=step.input_sha256,
                    queue=step.queue,
                    priority=head.priority,
                    parent_run_id=head.id,
                    parent_position=step.position,
                    root_run_id=head.root_run_id,
                    depth=head.depth + 1,
                    tags=inherited.tags,
                    lineage=inherited.lineage,
                ),
            )
            messages.append(
                AdvanceMessage(run_id=child_run_id, agent=step.name, queue=step.queue, priority=head.priority)
            )
        else:
            messages.append(_step_message(head, step))
        rows.append(
            {
                "run_id": head.id,
                "position": step.position,
                "created_seq": step.created_seq,
                "namespace": head.namespace,
                "shard": head.shard,
                "root_run_id": head.root_run_id,
                "agent": head.agent,
                "kind": step.kind,
                "name": step.name,
                "queue": step.queue,
                "priority": head.priority,
                "delivery": step.delivery,
                "max_lost": step.max_lost,
                "args_id": step.arguments.root_id,
                "child_run_id": child_run_id,
                "state": "running" if step.kind == "agent" else "scheduled",
                "published": 0 if step.kind == "agent" else 1,
                "redeliver": REDELIVER_AFTER_US,
            }
        )
    connection.execute(_INSERT_STEP, rows)
    return messages


_INHERITED = text("SELECT tags, lineage FROM runs WHERE id = :run_id")


def _step_message(head: RunHead, step: NewStep) -> StepMessage:
    return StepMessage(
        run_id=head.id,
        position=step.position,
        name=step.name,
        agent=head.agent,
        queue=step.queue,
        priority=head.priority,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Inherited:
    """What a child run inherits from its parent."""

    tags: dict[str, str]
    lineage: Lineage


def _inherited(connection: Connection, run_id: str) -> _Inherited:
    row = connection.execute(_INHERITED, {"run_id": run_id}).one()
    return _Inherited(tags=json.loads(row.tags), lineage=lineage_from_json(row.lineage))


def _cancel_children(connection: Connection, child_ids: Sequence[str | None], grace_seconds: float) -> list[Message]:
    messages: list[Message] = []
    for child_id in sorted(child_id for child_id in child_ids if child_id is not None):
        asked = request_cancel(connection, child_id, grace_seconds=grace_seconds)
        if end_unstarted(connection, child_id):
            # It never started or is blocked: no code would read its cancellation.
            asked = cancel_open_steps(connection, child_id, grace_seconds=grace_seconds)
        messages += asked
    return messages


def cancel_open_steps(
    connection: Connection, run_id: str, *, grace_seconds: float, completed: int | None = None
) -> list[Message]:
    """Cancel what an ending run has left open, except the step that is ``completed`` with it; its child runs too."""
    rest = connection.execute(
        _CANCEL_REST, {"run_id": run_id, "completed": NO_POSITION if completed is None else completed}
    ).all()
    return _cancel_children(connection, [row.child_run_id for row in rest], grace_seconds)


def _write_end(
    connection: Connection,
    head: RunHead,
    end: RunEnd,
    parent_seq: int | None,
    grace_seconds: float,
    completed: int | None,
) -> list[Message]:
    if end.result is not None:
        insert_payloads(connection, head.namespace, end.result.rows)
    messages = cancel_open_steps(connection, head.id, grace_seconds=grace_seconds, completed=completed)
    if head.parent_run_id is None or head.parent_position is None or parent_seq is None:
        return messages
    return messages + tell_parent(connection, head, end, parent_seq)


def tell_parent(connection: Connection, head: RunHead, end: RunEnd, parent_seq: int) -> list[Message]:
    """Append a child's end to its parent's event history, with the number that ``lock_parent`` allocated."""
    parent_run_id = head.parent_run_id
    if parent_run_id is None:
        return []
    succeeded = end.state is RunState.SUCCEEDED
    result_id = None if end.result is None else end.result.root_id
    connection.execute(
        _END_PARENT_STEP,
        {
            "run_id": parent_run_id,
            "position": head.parent_position,
            "state": "succeeded" if succeeded else ("cancelled" if end.state is RunState.CANCELLED else "failed"),
            "result_id": result_id,
            "error": None if end.error is None else json.dumps(end.error),
        },
    )
    insert_event(
        connection,
        namespace=head.namespace,
        run_id=parent_run_id,
        seq=parent_seq,
        kind=EventKind.STEP_SUCCEEDED if succeeded else EventKind.STEP_FAILED,
        position=head.parent_position,
        attempts=1,
        payload_id=result_id if succeeded else None,
        data=None if succeeded else {"error": end.error or {}, "child_run_id": head.id, "state": end.state.value},
    )
    parent = connection.execute(_PARENT, {"run_id": parent_run_id}).one()
    return [AdvanceMessage(run_id=parent_run_id, agent="", queue=parent.queue, priority=parent.priority)]
