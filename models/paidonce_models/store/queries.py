"""Reading runs, steps and attempts for people and programs: plain values, times as aware datetimes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection, and_, bindparam, func, literal_column, select, tuple_, union_all

from paidonce_models.errors import NotFound
from paidonce_models.states import AttemptOutcome, RunState, StepState
from paidonce_models.store.budgets.budget_balances import why_held
from paidonce_models.store.circuits.parked_reasons import why_parked
from paidonce_models.store.columns import (
    Attempt,
    Call,
    Run,
    RunAlias,
    Step,
    StoredBlockedStep,
    col,
    cols,
    constant,
    row_of,
    rows,
    rows_of,
)
from paidonce_models.store.payload_rows import load_payload

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def moment(at_us: int | None) -> datetime | None:
    """A stored time as an aware datetime; ``None`` stays ``None``."""
    return None if at_us is None else _EPOCH + timedelta(microseconds=at_us)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunView:
    """A run as people see it."""

    run_id: str
    agent: str
    agent_version: str | None
    key: str | None
    state: RunState
    state_reason: str | None
    result: bytes | None
    error: dict[str, object] | None
    tags: dict[str, str]
    input: bytes | None
    parent_run_id: str | None
    root_run_id: str
    queue: str
    priority: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True, kw_only=True, slots=True)
class StepView:
    """A step as people see it; ``attempts`` is a count, ``worker`` that of the newest attempt."""

    step: int
    name: str
    kind: str
    state: str
    attempts: int
    lost: int
    worker: str | None
    started_at: datetime | None
    finished_at: datetime | None
    error: dict[str, object] | None
    child_run_id: str | None
    waits_for: str | None = None
    """Of a held step which budget has no room for it, of a parked one which circuit is open,
    of an unknown one what a person has to say, of a blocked one what sets it going."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptView:
    """An attempt as people see it; ``outcome`` is ``None`` while it is under way."""

    number: int
    worker: str
    claimed_at: datetime | None
    ended_at: datetime | None
    outcome: str | None
    error: dict[str, object] | None
    traceback: str | None
    calls: int
    unpriced_calls: int
    input_tokens: int | None
    output_tokens: int | None
    cost_nanousd: int | None


_RUNS = select(
    *cols(Run.id, Run.namespace, Run.agent, Run.agent_version, Run.key, Run.state, Run.state_reason),
    *cols(Run.result_id, Run.error, Run.tags, Run.input_id, Run.parent_run_id, Run.root_run_id, Run.queue),
    *cols(Run.priority, Run.created_at_us, Run.started_at_us, Run.finished_at_us),
).where(col(Run.namespace) == bindparam("namespace"))
_RUN = _RUNS.where(col(Run.id) == bindparam("run_id"))
_STATE = select(col(Run.state), col(Run.state_reason)).where(
    col(Run.id) == bindparam("run_id"), col(Run.namespace) == bindparam("namespace")
)
_RESOLVE = union_all(
    select(col(Run.id)).where(col(Run.id) == bindparam("name"), col(Run.namespace) == bindparam("namespace")),
    select(col(RunAlias.run_id)).where(
        col(RunAlias.namespace) == bindparam("namespace"), col(RunAlias.alias) == bindparam("name")
    ),
).limit(1)
_STEPS = (
    select(
        *cols(Step.position, Step.name, Step.kind, Step.state, Step.attempt, Step.lost, Step.started_at_us),
        *cols(Step.finished_at_us, Step.error, Step.child_run_id, Attempt.worker),
    )
    .select_from(rows(Step))
    .outerjoin(
        rows(Attempt),
        and_(
            col(Attempt.run_id) == col(Step.run_id),
            col(Attempt.position) == col(Step.position),
            col(Attempt.number) == col(Step.attempt),
        ),
    )
    .where(col(Step.run_id) == bindparam("run_id"), col(Step.namespace) == bindparam("namespace"))
    .order_by(col(Step.position))
)
_KEPT = (
    select(col(StoredBlockedStep.kept_id))
    .where(
        col(StoredBlockedStep.run_id) == col(Step.run_id),
        col(StoredBlockedStep.position) == col(Step.position),
        col(StoredBlockedStep.attempt) == col(Step.attempt),
        col(Step.state) == StepState.BLOCKED.value,
    )
    .correlate(rows(Step))
    .scalar_subquery()
)
_STEP_PAYLOADS = select(col(Step.namespace), col(Step.args_id), func.coalesce(col(Step.result_id), _KEPT)).where(
    col(Step.run_id) == bindparam("run_id"), col(Step.position) == bindparam("position")
)
_ATTEMPTS = (
    select(
        *cols(Attempt.number, Attempt.worker, Attempt.claimed_at_us, Attempt.ended_at_us, Attempt.outcome),
        *cols(Attempt.error, Attempt.traceback, Attempt.calls, Attempt.unpriced_calls, Attempt.input_tokens),
        *cols(Attempt.output_tokens, Attempt.cost_nanousd),
    )
    .where(col(Attempt.run_id) == bindparam("run_id"), col(Attempt.position) == bindparam("position"))
    .order_by(col(Attempt.number))
)
_NEWEST_PAID_ATTEMPT = (
    select(col(Attempt.run_id), col(Attempt.position), col(Attempt.number))
    .where(
        col(Attempt.namespace) == bindparam("namespace"),
        col(Attempt.agent) == bindparam("agent"),
        col(Attempt.step) == bindparam("step"),
        col(Attempt.outcome) == constant(AttemptOutcome.ACCEPTED.value),
        col(Attempt.calls) > literal_column("0"),  # as in the condition of ix_attempts_paid
    )
    .order_by(col(Attempt.claimed_at_us).desc())
    .limit(1)
)
_LAST_PROVIDER = (
    select(col(Call.provider))
    .where(
        tuple_(*cols(Call.run_id, Call.position, Call.attempt)).in_(_NEWEST_PAID_ATTEMPT),
        col(Call.provider).is_not(None),
        col(Call.tool).is_(None),
    )
    .order_by(col(Call.started_at_us).desc())
    .limit(1)
)


def resolve_run(connection: Connection, namespace: str, name: str) -> str:
    """The id of the run with this id or alias. Raises ``NotFound``."""
    # No id holds what the store cannot even be asked for: a NUL, half a surrogate pair.
    can_be_asked = "\x00" not in name and not any("\ud800" <= character <= "\udfff" for character in name)
    found = {"namespace": namespace, "name": name}
    run_id = connection.execute(_RESOLVE, found).scalar() if can_be_asked else None
    if run_id is None:
        raise _not_found(namespace, name)
    return str(run_id)


def _not_found(namespace: str, name: str) -> NotFound:
    return NotFound(f"there is no run {name!r:.200} in namespace {namespace!r}; `paidonce runs` lists them")


def read_state(connection: Connection, namespace: str, run_id: str) -> tuple[RunState, str | None]:
    """The run's state and the reason it stands still. Raises ``NotFound``."""
    row = connection.execute(_STATE, {"namespace": namespace, "run_id": run_id}).first()
    if row is None:
        raise _not_found(namespace, run_id)
    state, reason = row
    return RunState(state), reason


def read_run(connection: Connection, namespace: str, run_id: str, *, with_payloads: bool = True) -> RunView:
    """One run, with its input and result as JSON bytes unless left out. Raises ``NotFound``."""
    row = connection.execute(_RUN, {"namespace": namespace, "run_id": run_id}).first()
    if row is None:
        raise _not_found(namespace, run_id)
    return _run_view(connection, row_of(Run, row), with_payloads=with_payloads)


def _run_view(connection: Connection, row: Run, *, with_payloads: bool) -> RunView:
    def payload(payload_id: str | None) -> bytes | None:
        if payload_id is None or not with_payloads:
            return None
        return load_payload(connection, row.namespace, payload_id)

    created = moment(row.created_at_us)
    return RunView(
        run_id=row.id,
        agent=row.agent,
        agent_version=row.agent_version,
        key=row.key,
        state=RunState(row.state),
        state_reason=row.state_reason,
        result=payload(row.result_id),
        error=None if row.error is None else json.loads(row.error),
        tags=json.loads(row.tags),
        input=payload(row.input_id),
        parent_run_id=row.parent_run_id,
        root_run_id=row.root_run_id,
        queue=row.queue,
        priority=row.priority,
        created_at=created if created is not None else _EPOCH,
        started_at=moment(row.started_at_us),
        finished_at=moment(row.finished_at_us),
    )


def list_runs(
    connection: Connection, namespace: str, *, state: str | None = None, agent: str | None = None, most: int = 100
) -> list[RunView]:
    """The newest runs first, without their payloads."""
    query = _RUNS.order_by(col(Run.created_at_us).desc(), col(Run.id).desc()).limit(most)
    if state is not None:
        query = query.where(col(Run.state) == state)
    if agent is not None:
        query = query.where(col(Run.agent) == agent)
    found = connection.execute(query, {"namespace": namespace})
    return [_run_view(connection, row, with_payloads=False) for row in rows_of(Run, found)]


def read_steps(connection: Connection, namespace: str, run_id: str) -> list[StepView]:
    """All steps of a run in the order in which the agent asked for them; none where the namespace has no such run."""
    found = connection.execute(_STEPS, {"namespace": namespace, "run_id": run_id}).all()
    steps = list(rows_of(Step, found))
    waits: dict[int, str] = {}
    if any(step.state == StepState.HELD for step in steps):
        waits |= why_held(connection, run_id)
    if any(step.state == StepState.PARKED for step in steps):
        waits |= why_parked(connection, run_id)
    for step in steps:
        if step.state == StepState.UNKNOWN:
            waits[step.position] = (
                "nobody knows whether it has acted; find out, and say so with "
                f"`paidonce resolve {run_id} {step.position} --succeeded JSON`, `--failed` or `--retry`"
            )
        elif step.state == StepState.BLOCKED:
            waits[step.position] = (
                "it goes on with a worker whose code fits, without being paid again, or with "
                f"`paidonce resolve {run_id} {step.position} --succeeded JSON`, `--kept`, `--failed` or `--retry`"
            )
    return [
        StepView(
            step=step.position,
            name=step.name,
            kind=step.kind,
            state=step.state,
            attempts=step.attempt,
            lost=step.lost,
            worker=attempt.worker,
            started_at=moment(step.started_at_us),
            finished_at=moment(step.finished_at_us),
            error=None if step.error is None else json.loads(step.error),
            child_run_id=step.child_run_id,
            waits_for=waits.get(step.position),
        )
        for step, attempt in zip(steps, rows_of(Attempt, found), strict=True)
    ]


def read_step_payloads(connection: Connection, run_id: str, position: int) -> tuple[bytes, bytes | None]:
    """The JSON of a step's arguments and of its result, or of what is kept of one that is blocked, if there is one.

    Raises ``NotFound``.
    """
    row = connection.execute(_STEP_PAYLOADS, {"run_id": run_id, "position": position}).first()
    if row is None:
        raise NotFound(f"run {run_id} has no step {position}; `paidonce show {run_id}` lists its steps")
    namespace, arguments_id, result_id = row
    result = None if result_id is None else load_payload(connection, namespace, result_id)
    return load_payload(connection, namespace, arguments_id), result


def last_provider_of(connection: Connection, namespace: str, agent: str, step: str) -> str | None:
    """Whose API the step called in its newest accepted attempt that paid; ``None`` where nothing is known."""
    return connection.execute(
        _LAST_PROVIDER, {"namespace": namespace, "agent": agent, "step": step}
    ).scalar_one_or_none()


def read_attempts(connection: Connection, run_id: str, position: int) -> list[AttemptView]:
    """All attempts of a step, oldest first."""
    return [
        AttemptView(
            number=row.number,
            worker=row.worker,
            claimed_at=moment(row.claimed_at_us),
            ended_at=moment(row.ended_at_us),
            outcome=row.outcome,
            error=None if row.error is None else json.loads(row.error),
            traceback=row.traceback,
            calls=row.calls,
            unpriced_calls=row.unpriced_calls,
            input_tokens=row.input_tokens,
            output_tokens=row.output_tokens,
            cost_nanousd=row.cost_nanousd,
        )
        for row in rows_of(Attempt, connection.execute(_ATTEMPTS, {"run_id": run_id, "position": position}))
    ]
