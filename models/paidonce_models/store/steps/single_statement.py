"""Completions and advances as one statement each, for PostgreSQL: one round trip and one commit.

The same acts as in ``completion`` and ``advancing``, for the common cases: no child run,
nothing cancelled, no budget, nothing stopped. For whatever ``store.commits`` leaves over: a
run that somebody has locked, a large result, a batch that was undone. Data-modifying CTEs run in the order of
their dependencies: the run's row is locked first, as everywhere. If the run's guard
fails, nothing is written; if the step's guard fails although the run's held, or the end
of a run finds child runs to cancel, the statement divides by zero and is undone as a
whole.

Each row is addressed by the run's id as a parameter, never through the preceding CTE: a
plan made while a table was nearly empty then still uses the whole primary key.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from sqlalchemy import Connection, TextClause, text
from sqlalchemy.exc import DataError

from paidonce_models.states import AttemptOutcome, StepState
from paidonce_models.store.ledger.call_rows import call_columns
from paidonce_models.store.messages import StepMessage
from paidonce_models.store.payload_rows import STORED_WITH_RUN, stored_parameters
from paidonce_models.store.runs.advancing import NewStep, Progress
from paidonce_models.store.runs.events import REDELIVER_AFTER_US, EventKind
from paidonce_models.store.runs.run_states import HAS_STOPPED_STEPS
from paidonce_models.store.runs.runs_head import RunHead
from paidonce_models.store.state_guards import attempt_may_become, run_is_open, step_may_become
from paidonce_models.store.steps.claims import HAS_BUDGETS, Claimant
from paidonce_models.store.steps.completion import Acceptance, Completion, step_event_data

DIVISION_BY_ZERO = "22012"

_RUN_ID = "CAST(:run_id AS VARCHAR)"
_NAMESPACE = "CAST(:namespace AS VARCHAR)"
_HAS_NO_OUTCOME = attempt_may_become(*AttemptOutcome)
# A step that was given up as unknown changes its run's state too: ``completion`` writes that.
_MAY_END = step_may_become(StepState.SUCCEEDED, StepState.FAILED, only=[StepState.RUNNING], column="steps.state")
_STEP_IS_OURS = (
    f"EXISTS (SELECT 1 FROM steps WHERE run_id = {_RUN_ID} AND position = :position "
    f"AND attempt = :attempt AND {_MAY_END})"
)
# The run's row is locked by the part that takes the event's number, and only while the attempt is the step's: a zombie
# takes no number, so that it leaves no gap.
_APPENDED = (
    "run AS (UPDATE runs SET last_seq = last_seq + 1, publish_at_us = paidonce_now() + :redeliver, publish_count = 0 "
    f"WHERE id = {_RUN_ID} AND {run_is_open()} AND {_STEP_IS_OURS} RETURNING id, last_seq)"
)
# The race of two that have read the same history, as in ``advancing._CONSUME``: the second finds another consumed_seq.
_CONSUMED = (
    "run AS (UPDATE runs SET consumed_seq = :to_seq, {columns}state = :state, state_reason = :reason, "
    "wake_at_us = :wake_at_us, publish_at_us = {publish}, publish_count = 0, agent_version = :agent_version, "
    "python_minor = :python_minor, started_at_us = coalesce(started_at_us, paidonce_now()), error = :run_error "
    f"WHERE id = {_RUN_ID} AND consumed_seq = :from_seq AND {run_is_open()}{{guard}} RETURNING id, last_seq)"
)
_WITH_EVENT = {"publish": "NULL", "guard": f" AND last_seq = :from_seq AND {_STEP_IS_OURS}"}
# What a budget or a circuit stops affects a run's state too: ``advancing`` writes such runs.
_NO_STEP_IS_STOPPED = f" AND NOT {HAS_STOPPED_STEPS.format(run_id=_RUN_ID)}"
_GOES_ON = _CONSUMED.format(
    columns="last_seq = :to_seq, ", publish=_WITH_EVENT["publish"], guard=_WITH_EVENT["guard"] + _NO_STEP_IS_STOPPED
)
_TAKES_ON = _CONSUMED.format(
    columns="last_seq = :to_seq, ",
    publish=_WITH_EVENT["publish"],
    guard=f"{_WITH_EVENT['guard']}{_NO_STEP_IS_STOPPED} AND NOT {HAS_BUDGETS['postgresql']}",
)
_ENDS = _CONSUMED.format(
    columns="last_seq = :to_seq, result_id = :run_result_id, finished_at_us = paidonce_now(), ", **_WITH_EVENT
)
_ADVANCES = _CONSUMED.format(
    columns="",
    publish="CASE WHEN last_seq > :to_seq THEN paidonce_now() + :redeliver ELSE NULL END",
    guard=_NO_STEP_IS_STOPPED,
)
# The fence again, under the step's lock: the step may have been reclaimed since ``run`` looked at it. Where ``ended``
# finds nothing then, the division by zero undoes the whole.
_COMPLETED = (
    "ended AS (UPDATE steps SET state = :step_state, result_id = :result_id, error = :error, "
    "failed = failed + :failed, lease_owner = NULL, lease_expires_at_us = NULL, finished_at_us = paidonce_now() "
    f"WHERE run_id = {_RUN_ID} AND position = :position AND attempt = :attempt "
    f"AND {_MAY_END} AND EXISTS (SELECT 1 FROM run) RETURNING steps.run_id), "
    "{recorded}tried AS (UPDATE attempts SET outcome = :outcome, ended_at_us = paidonce_now(), error = :error, "
    f"traceback = :traceback{{sums}} WHERE run_id = {_RUN_ID} AND position = :position "
    f"AND number = :attempt AND {_HAS_NO_OUTCOME} AND EXISTS (SELECT 1 FROM ended)), "
    "logged AS (INSERT INTO run_events (run_id, seq, namespace, kind, position, attempts, payload_id, data, "
    f"recorded_at_us) SELECT run.id, run.last_seq, {_NAMESPACE}, :kind, :position, :attempt, :result_id, "
    ":data, coalesce(CAST(:recorded_at_us AS BIGINT), paidonce_now()) FROM run)"
)
_WITHOUT_CALLS = _COMPLETED.format(recorded="", sums="")
_WITH_CALLS = _COMPLETED.format(
    recorded="recorded AS (SELECT r.* FROM ended, paidonce_record_calls(ended.run_id, :position, :attempt, :step, "
    "CAST(:calls AS json)) AS r), ",
    sums=", calls = calls + n, unpriced_calls = unpriced_calls + u, input_tokens = paidonce_add(input_tokens, i), "
    "output_tokens = paidonce_add(output_tokens, o), cost_nanousd = paidonce_add(cost_nanousd, c) FROM recorded",
)
_ASKED = (
    "asked AS (INSERT INTO steps (run_id, namespace, shard, root_run_id, agent, priority, position, created_seq, kind, "
    "name, queue, delivery, max_lost, args_id, state, attempt, lease_owner, lease_expires_at_us, started_at_us, lost, "
    f"failed, publish_at_us, publish_count, created_at_us) SELECT run.id, {_NAMESPACE}, :shard, :root_run_id, :agent, "
    ":priority, s.*, {claim}, 0, 0, {publish}, 0, paidonce_now() FROM run, json_to_recordset(CAST(:steps AS json)) "
    "AS s (position int, created_seq bigint, kind text, name text, queue text, delivery text, max_lost int, "
    "args_id text){chosen}{returning})"
)
_SCHEDULED = _ASKED.format(
    claim="'scheduled', 0, NULL, NULL, NULL", publish="paidonce_now() + :redeliver", chosen="", returning=""
)
_TAKEN = "WHEN t.own THEN"
_SCHEDULED_BUT_FOR_ONE = _ASKED.format(
    claim=f"CASE {_TAKEN} 'running' ELSE 'scheduled' END, CASE {_TAKEN} 1 ELSE 0 END, "
    f"CASE {_TAKEN} CAST(:worker AS VARCHAR) END, CASE {_TAKEN} paidonce_now() + :lease_us END, "
    f"CASE {_TAKEN} paidonce_now() END",
    publish=f"CASE {_TAKEN} NULL ELSE paidonce_now() + :redeliver END",
    chosen=", LATERAL (SELECT s.position = :taken AS own) AS t",
    returning=" RETURNING run_id, position, namespace, root_run_id, agent, name, started_at_us",
)
_OPENED = (
    "opened AS (INSERT INTO attempts (run_id, position, number, namespace, root_run_id, agent, step, worker, "
    "claimed_at_us, calls, unpriced_calls) SELECT run_id, position, 1, namespace, root_run_id, agent, name, "
    "CAST(:worker AS VARCHAR), started_at_us, 0, 0 FROM asked WHERE position = :taken)"
)
_LEFT_OPEN = (
    "rest AS (UPDATE steps SET state = 'cancelled', finished_at_us = paidonce_now(), publish_at_us = NULL "
    f"WHERE steps.run_id = {_RUN_ID} AND steps.position <> :position "
    f"AND {step_may_become(StepState.CANCELLED, column='steps.state')} "
    "AND EXISTS (SELECT 1 FROM run) RETURNING child_run_id)"
)
_ENDED_ONE = "(SELECT count(*) FROM ended)"
_NO_CHILDREN = "(CASE WHEN EXISTS (SELECT 1 FROM rest WHERE child_run_id IS NOT NULL) THEN 0 ELSE 1 END)"


def _statement(parts: Sequence[str], *, divisor: str) -> TextClause:
    answer = f"SELECT CASE WHEN (SELECT count(*) FROM run) = 0 THEN 0 ELSE 1 / {divisor} END AS accepted"
    return text(f"WITH {', '.join(parts)} {answer}")


_COMPLETE_ALONE, _COMPLETE_AND_GO_ON, _COMPLETE_AND_TAKE_ON, _COMPLETE_AND_END = (
    {
        has_calls: _statement([first, completed, STORED_WITH_RUN, *more], divisor=divisor)
        for has_calls, completed in ((False, _WITHOUT_CALLS), (True, _WITH_CALLS))
    }
    for first, more, divisor in (
        (_APPENDED, [], _ENDED_ONE),
        (_GOES_ON, [_SCHEDULED], _ENDED_ONE),
        (_TAKES_ON, [_SCHEDULED_BUT_FOR_ONE, _OPENED], _ENDED_ONE),
        (_ENDS, [_LEFT_OPEN], f"({_ENDED_ONE} * {_NO_CHILDREN})"),
    )
)
_ADVANCE = _statement([_ADVANCES, STORED_WITH_RUN, _SCHEDULED], divisor="1")


def fits_together(completion: Completion, head: RunHead, progress: Progress) -> bool:
    """Whether a completion with its advance can be one statement."""
    if not fits_alone(completion):
        return False
    if progress.end is not None:
        return head.parent_run_id is None and not progress.new_steps and not progress.cancelled_positions
    return fits_as_advance(head, progress)


def fits_as_advance(head: RunHead, progress: Progress) -> bool:
    """Whether an advance can be one statement."""
    return (
        progress.end is None
        and not head.has_stopped_steps
        and not progress.cancelled_positions
        and all(step.kind != "agent" for step in progress.new_steps)
    )


def fits_alone(completion: Completion) -> bool:
    """Whether a completion without its advance can be one statement."""
    return not (completion.refused_calls or completion.claim.has_reservations or not completion.is_final)


def complete_together(
    connection: Connection,
    completion: Completion,
    head: RunHead,
    progress: Progress,
    recorded_at_us: int,
    *,
    taken: NewStep | None = None,
    claimant: Claimant | None = None,
) -> tuple[Acceptance, list[StepMessage]]:
    """Like ``completion.complete_with_progress``; ``OVERTAKEN`` if a guard failed, then nothing is written.

    The new step ``taken`` is claimed for ``claimant`` at once, as by ``claim_step``; it needs no message.
    """
    end = progress.end
    rows = [row for step in progress.new_steps for row in step.arguments.rows]
    if completion.result is not None:
        rows += completion.result.rows
    parameters = {**_completed(completion, recorded_at_us), **_consumed(head, progress)}
    has_calls = bool(completion.calls)
    if end is None:
        parameters |= _asked(head, progress.new_steps)
        statement = _COMPLETE_AND_GO_ON[has_calls]
        if taken is not None and claimant is not None:
            parameters |= {"taken": taken.position, "worker": claimant.worker, "lease_us": claimant.lease_us}
            statement = _COMPLETE_AND_TAKE_ON[has_calls]
    else:
        if end.result is not None:
            rows += end.result.rows
        parameters["run_result_id"] = None if end.result is None else end.result.root_id
        statement = _COMPLETE_AND_END[has_calls]
    if not _accepted(connection, statement, parameters | stored_parameters(rows)):
        return Acceptance.OVERTAKEN, []
    return Acceptance.ACCEPTED, step_messages(head, [step for step in progress.new_steps if step is not taken])


def complete_by_itself(connection: Connection, completion: Completion) -> Acceptance | None:
    """Like ``completion.complete_alone``; ``None`` if it was refused, then nothing is written."""
    rows = [] if completion.result is None else completion.result.rows
    parameters = {**_completed(completion, None), **stored_parameters(rows), "redeliver": REDELIVER_AFTER_US}
    return Acceptance.ACCEPTED if _accepted(connection, _COMPLETE_ALONE[bool(completion.calls)], parameters) else None


def write_advance(connection: Connection, head: RunHead, progress: Progress) -> list[StepMessage] | None:
    """Like ``advancing.write_progress``; ``None`` if the guard failed, then nothing is written."""
    rows = [row for step in progress.new_steps for row in step.arguments.rows]
    parameters = {**_consumed(head, progress), **_asked(head, progress.new_steps), **stored_parameters(rows)}
    if not _accepted(connection, _ADVANCE, parameters | {"namespace": head.namespace}):
        return None
    return step_messages(head, progress.new_steps)


def _accepted(connection: Connection, statement: TextClause, parameters: dict[str, object]) -> bool:
    try:
        return bool(connection.execute(statement, parameters).scalar_one())
    except DataError as error:
        if getattr(error.orig, "sqlstate", None) == DIVISION_BY_ZERO:
            return False
        raise


def step_messages(head: RunHead, steps: Sequence[NewStep]) -> list[StepMessage]:
    """The messages of new steps."""
    return [
        StepMessage(
            run_id=head.id,
            position=step.position,
            name=step.name,
            agent=head.agent,
            queue=step.queue,
            priority=head.priority,
        )
        for step in steps
    ]


def _completed(completion: Completion, recorded_at_us: int | None) -> dict[str, object]:
    claim = completion.claim
    data = step_event_data(completion)
    recorded: dict[str, object] = {}
    if completion.calls:
        recorded = {"step": claim.name, "calls": json.dumps([call_columns(record) for record in completion.calls])}
    return {
        **recorded,
        "run_id": claim.run_id,
        "namespace": claim.namespace,
        "position": claim.position,
        "attempt": claim.attempt,
        "step_state": "succeeded" if completion.succeeded else "failed",
        "failed": 0 if completion.succeeded else 1,
        "result_id": None if completion.result is None else completion.result.root_id,
        "error": None if completion.error is None else json.dumps(completion.error),
        "outcome": completion.outcome.value,
        "traceback": completion.traceback,
        "kind": (EventKind.STEP_SUCCEEDED if completion.succeeded else EventKind.STEP_FAILED).value,
        "data": None if data is None else json.dumps(data),
        "recorded_at_us": recorded_at_us,
    }


def _consumed(head: RunHead, progress: Progress) -> dict[str, object]:
    error = progress.error if progress.end is None else progress.end.error
    return {
        "run_id": head.id,
        "from_seq": progress.from_seq,
        "to_seq": progress.to_seq,
        "state": progress.state.value,
        "reason": progress.state_reason,
        "wake_at_us": progress.wake_at_us,
        "agent_version": progress.agent_version,
        "python_minor": progress.python_minor,
        "run_error": None if error is None else json.dumps(error),
    }


def _asked(head: RunHead, steps: Sequence[NewStep]) -> dict[str, object]:
    return {
        "shard": head.shard,
        "root_run_id": head.root_run_id,
        "agent": head.agent,
        "priority": head.priority,
        "redeliver": REDELIVER_AFTER_US,
        "steps": json.dumps(
            [
                {
                    "position": step.position,
                    "created_seq": step.created_seq,
                    "kind": step.kind,
                    "name": step.name,
                    "queue": step.queue,
                    "delivery": step.delivery,
                    "max_lost": step.max_lost,
                    "args_id": step.arguments.root_id,
                }
                for step in steps
            ]
        ),
    }
