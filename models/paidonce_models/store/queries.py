"""Reading runs, steps and attempts for people and programs: plain values, times as aware datetimes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection, text

from paidonce_models.errors import NotFound
from paidonce_models.states import RunState
from paidonce_models.store.budget_standing import why_held
from paidonce_models.store.parked_steps import why_parked
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


_RUN_COLUMNS = (
    "id, namespace, agent, agent_version, key, state, state_reason, result_id, error, tags, input_id, parent_run_id, "
    "root_run_id, queue, priority, created_at_us, started_at_us, finished_at_us"
)
_STATE = text("SELECT state, state_reason FROM runs WHERE id = :run_id AND namespace = :namespace")
_RUN = text(f"SELECT {_RUN_COLUMNS} FROM runs WHERE id = :run_id AND namespace = :namespace")
_RESOLVE = text(
    "SELECT id FROM runs WHERE id = :name AND namespace = :namespace "
    "UNION ALL SELECT run_id FROM run_aliases WHERE namespace = :namespace AND alias = :name LIMIT 1"
)
_STEPS = text(
    "SELECT s.position, s.name, s.kind, s.state, s.attempt, s.lost, s.started_at_us, s.finished_at_us, s.error, "
    "s.child_run_id, a.worker FROM steps s LEFT JOIN attempts a ON a.run_id = s.run_id AND a.position = s.position "
    "AND a.number = s.attempt WHERE s.run_id = :run_id AND s.namespace = :namespace ORDER BY s.position"
)
_STEP_PAYLOADS = text(
    "SELECT namespace, args_id, coalesce(result_id, CASE WHEN state = 'blocked' THEN (SELECT kept_id "
    "FROM blocked_steps b WHERE b.run_id = steps.run_id AND b.position = steps.position "
    "AND b.attempt = steps.attempt) END) AS result_id FROM steps WHERE run_id = :run_id AND position = :position"
)
_ATTEMPTS = text("SELECT * FROM attempts WHERE run_id = :run_id AND position = :position ORDER BY number")


def resolve_run(connection: Connection, namespace: str, name: str) -> str:
    """The id of the run with this id or alias. Raises ``NotFound``."""
    # No id holds what the store cannot even be asked for: a NUL, half a surrogate pair.
    can_be_asked = "\x00" not in name and not any("\ud800" <= character <= "\udfff" for character in name)
    row = connection.execute(_RESOLVE, {"namespace": namespace, "name": name}).first() if can_be_asked else None
    if row is None:
        raise _not_found(namespace, name)
    return str(row.id)


def _not_found(namespace: str, name: str) -> NotFound:
    return NotFound(f"there is no run {name!r:.200} in namespace {namespace!r}; `paidonce runs` lists them")


def read_state(connection: Connection, namespace: str, run_id: str) -> tuple[RunState, str | None]:
    """The run's state and the reason it stands still. Raises ``NotFound``."""
    row = connection.execute(_STATE, {"namespace": namespace, "run_id": run_id}).first()
    if row is None:
        raise _not_found(namespace, run_id)
    return RunState(row.state), row.state_reason


def read_run(connection: Connection, namespace: str, run_id: str, *, with_payloads: bool = True) -> RunView:
    """One run, with its input and result as JSON bytes unless left out. Raises ``NotFound``."""
    row = connection.execute(_RUN, {"namespace": namespace, "run_id": run_id}).first()
    if row is None:
        raise _not_found(namespace, run_id)
    return _run_view(connection, row, with_payloads=with_payloads)


def _run_view(connection: Connection, row, *, with_payloads: bool) -> RunView:  # type: ignore[no-untyped-def]  # a row
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
    conditions, parameters = ["namespace = :namespace"], {"namespace": namespace, "most": most}
    if state is not None:
        conditions.append("state = :state")
        parameters["state"] = state
    if agent is not None:
        conditions.append("agent = :agent")
        parameters["agent"] = agent
    query = text(
        f"SELECT {_RUN_COLUMNS} FROM runs WHERE {' AND '.join(conditions)} "
        "ORDER BY created_at_us DESC, id DESC LIMIT :most"
    )
    return [_run_view(connection, row, with_payloads=False) for row in connection.execute(query, parameters)]


def read_steps(connection: Connection, namespace: str, run_id: str) -> list[StepView]:
    """All steps of a run in the order in which the agent asked for them; none where the namespace has no such run."""
    rows = connection.execute(_STEPS, {"namespace": namespace, "run_id": run_id}).all()
    waits: dict[int, str] = {}
    if any(row.state == "held" for row in rows):
        waits |= why_held(connection, run_id)
    if any(row.state == "parked" for row in rows):
        waits |= why_parked(connection, run_id)
    for row in rows:
        if row.state == "unknown":
            waits[row.position] = (
                "nobody knows whether it has acted; find out, and say so with "
                f"`paidonce resolve {run_id} {row.position} --succeeded JSON`, `--failed` or `--retry`"
            )
        elif row.state == "blocked":
            waits[row.position] = (
                "it goes on with a worker whose code fits, without being paid again, or with "
                f"`paidonce resolve {run_id} {row.position} --succeeded JSON`, `--kept`, `--failed` or `--retry`"
            )
    return [
        StepView(
            step=row.position,
            name=row.name,
            kind=row.kind,
            state=row.state,
            attempts=row.attempt,
            lost=row.lost,
            worker=row.worker,
            started_at=moment(row.started_at_us),
            finished_at=moment(row.finished_at_us),
            error=None if row.error is None else json.loads(row.error),
            child_run_id=row.child_run_id,
            waits_for=waits.get(row.position),
        )
        for row in rows
    ]


def read_step_payloads(connection: Connection, run_id: str, position: int) -> tuple[bytes, bytes | None]:
    """The JSON of a step's arguments and of its result, or of what is kept of one that is blocked, if there is one.

    Raises ``NotFound``.
    """
    row = connection.execute(_STEP_PAYLOADS, {"run_id": run_id, "position": position}).first()
    if row is None:
        raise NotFound(f"run {run_id} has no step {position}; `paidonce show {run_id}` lists its steps")
    result = None if row.result_id is None else load_payload(connection, row.namespace, row.result_id)
    return load_payload(connection, row.namespace, row.args_id), result


_LAST_PROVIDER = text(
    "SELECT c.provider FROM calls c WHERE (c.run_id, c.position, c.attempt) IN (SELECT run_id, position, number "
    "FROM attempts WHERE namespace = :namespace AND agent = :agent AND step = :step AND outcome = 'accepted' "
    "AND calls > 0 ORDER BY claimed_at_us DESC LIMIT 1) AND c.provider IS NOT NULL AND c.tool IS NULL "
    "ORDER BY c.started_at_us DESC LIMIT 1"
)


def last_provider_of(connection: Connection, namespace: str, agent: str, step: str) -> str | None:
    """Whose API the step called in its newest accepted attempt that paid; ``None`` where nothing is known."""
    provider: str | None = connection.execute(
        _LAST_PROVIDER, {"namespace": namespace, "agent": agent, "step": step}
    ).scalar_one_or_none()
    return provider


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
        for row in connection.execute(_ATTEMPTS, {"run_id": run_id, "position": position})
    ]
