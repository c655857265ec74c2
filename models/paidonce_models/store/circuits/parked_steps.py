"""Steps that wait for an open circuit: without an attempt, until the circuit may have closed.

A parked step has a due time in the store, so it wakes whatever Redis remembers. Until the circuit is known to be
closed, one step of each circuit is released at a time: it is the probe. What a refused call would have cost is not
claimed as saved; the call is counted in ``avoided``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, and_, bindparam, func, select, text

from paidonce_models.errors import CircuitOpen
from paidonce_models.instants import moment_of
from paidonce_models.states import CLAIMABLE, StepState
from paidonce_models.store.columns import STORE_NOW, ParkedStep, Step, col, cols, constant, row_of, rows
from paidonce_models.store.messages import AdvanceMessage, StepMessage
from paidonce_models.store.runs.events import REDELIVER_AFTER_US
from paidonce_models.store.runs.run_states import update_run_state
from paidonce_models.store.state_guards import step_has_ended, step_may_become
from paidonce_models.store.steps.ending_steps import end_step


@dataclass(frozen=True, kw_only=True, slots=True)
class Parking:
    """Which circuit a step waits for, when it may try again, and for how long it waits in all at most."""

    circuit: str
    retry_in_us: int
    most_us: int


_PROVIDER = "provider:"
"""The prefix of providers' circuits; those of steps and tools never have it."""
# The run's row before the step's, as everywhere.
_LOCK_RUN = text("SELECT id FROM runs WHERE id = :run_id FOR UPDATE")
# Races with a claim by a worker that has not heard of the open circuit: only the first finds the step claimable.
_PARK = text(
    "UPDATE steps SET state = 'parked', publish_at_us = NULL WHERE run_id = :run_id AND position = :position "
    f"AND namespace = :namespace AND {step_may_become(StepState.PARKED, only=CLAIMABLE)} AND kind <> 'agent'"
)
# A step whose probe failed keeps its place and its deadline.
_INSERT = text(
    "INSERT INTO parked_steps (run_id, position, namespace, shard, circuit, since_us, parked_at_us, due_at_us, "
    "deadline_at_us) SELECT run_id, position, namespace, shard, :circuit, paidonce_now(), paidonce_now(), "
    "paidonce_now() + :retry_in_us, paidonce_now() + :most_us FROM steps "
    "WHERE run_id = :run_id AND position = :position "
    "ON CONFLICT (run_id, position) DO UPDATE SET circuit = excluded.circuit, due_at_us = excluded.due_at_us, "
    "parked_at_us = excluded.parked_at_us"
)
# Counts are added, not replaced: a body's refused calls and a delivery's are of the same step.
_REFUSED = text(
    "INSERT INTO avoided (run_id, position, attempt, namespace, root_run_id, agent, reason, steps, calls, "
    "unpriced_calls, recorded_at_us) SELECT run_id, position, 0, namespace, root_run_id, agent, 'circuit_open', 0, "
    ":calls, 0, paidonce_now() FROM steps WHERE run_id = :run_id AND position = :position "
    "ON CONFLICT (run_id, position, attempt) DO UPDATE SET calls = avoided.calls + excluded.calls"
)


def lock_run(connection: Connection, run_id: str) -> None:
    """Lock a run's row before its steps'; on SQLite a write transaction has locked everything."""
    if connection.dialect.name == "postgresql":
        connection.execute(_LOCK_RUN, {"run_id": run_id})


def park_step(connection: Connection, *, namespace: str, run_id: str, position: int, parking: Parking) -> bool:
    """Park a step whose call was refused; False if it cannot be claimed anyway. Makes no attempt."""
    key = {"namespace": namespace, "run_id": run_id, "position": position}
    lock_run(connection, run_id)
    if connection.execute(_PARK, key).rowcount != 1:
        return False
    count_refusals(connection, run_id=run_id, position=position, calls=1)
    write_parking(connection, run_id=run_id, position=position, parking=parking)
    return True


def write_parking(connection: Connection, *, run_id: str, position: int, parking: Parking) -> None:
    """Record what a ``parked`` step waits for, and its run's state. Under the run's lock."""
    parameters = {"circuit": parking.circuit, "retry_in_us": parking.retry_in_us, "most_us": parking.most_us}
    connection.execute(_INSERT, {"run_id": run_id, "position": position, **parameters})
    update_run_state(connection, run_id)


def count_refusals(connection: Connection, *, run_id: str, position: int, calls: int) -> None:
    """Count calls that an open circuit refused. No money: what they would have cost is unknown."""
    if calls:
        connection.execute(_REFUSED, {"run_id": run_id, "position": position, "calls": calls})


def refuse_step(
    connection: Connection, *, namespace: str, run_id: str, position: int, error: dict[str, object]
) -> AdvanceMessage | None:
    """Raise in the agent at once that the circuit is open; ``None`` if the step cannot be claimed anyway."""
    message = end_step(
        connection,
        namespace=namespace,
        run_id=run_id,
        position=position,
        only_if=CLAIMABLE,
        error=error,
    )
    if message is not None:
        count_refusals(connection, run_id=run_id, position=position, calls=1)
    return message


_PARKED = rows(ParkedStep).join(
    rows(Step),
    and_(
        col(Step.run_id) == col(ParkedStep.run_id),
        col(Step.position) == col(ParkedStep.position),
        col(Step.state) == constant(StepState.PARKED.value),
    ),
)
_OF_SHARD = and_(col(ParkedStep.namespace) == bindparam("namespace"), col(ParkedStep.shard) == bindparam("shard"))
_CIRCUITS = (
    select(col(ParkedStep.circuit), func.count(), func.min(col(ParkedStep.due_at_us)) - STORE_NOW)
    .select_from(_PARKED)
    .where(_OF_SHARD)
    .group_by(col(ParkedStep.circuit))
    .order_by(col(ParkedStep.circuit))
)
_OF_CIRCUIT = (
    select(col(ParkedStep.run_id), col(ParkedStep.position))
    .select_from(_PARKED)
    .where(_OF_SHARD, col(ParkedStep.circuit) == bindparam("circuit"))
    .limit(bindparam("most"))
)
_BY_AGE = cols(ParkedStep.since_us, ParkedStep.run_id, ParkedStep.position)
_OLDEST_OF_ALL = _OF_CIRCUIT.order_by(*_BY_AGE)
_OLDEST_DUE = _OLDEST_OF_ALL.where(col(ParkedStep.due_at_us) <= STORE_NOW)
_NEXT_PROBE = _OF_CIRCUIT.order_by(col(ParkedStep.parked_at_us), *_BY_AGE)


@dataclass(frozen=True, kw_only=True, slots=True)
class ParkedAt:
    """A circuit that steps wait for, how many, and in how many microseconds the first is due (negative: overdue)."""

    circuit: str
    steps: int
    due_in_us: int


@dataclass(frozen=True, slots=True)
class ParkedKey:
    """The key of a parked step."""

    run_id: str
    position: int


def circuits_with_parked_steps(connection: Connection, *, namespace: str, shard: int) -> list[ParkedAt]:
    """The circuits that steps of a shard wait for."""
    found = connection.execute(_CIRCUITS, {"namespace": namespace, "shard": shard})
    return [ParkedAt(circuit=circuit, steps=steps, due_in_us=int(due_in_us)) for circuit, steps, due_in_us in found]


def oldest_parked(
    connection: Connection, *, namespace: str, shard: int, circuit: str, most: int, due_only: bool
) -> Sequence[ParkedKey]:
    """The steps that have waited longest for a circuit; with ``due_only`` only those that are due."""
    found = connection.execute(
        _OLDEST_DUE if due_only else _OLDEST_OF_ALL,
        {"namespace": namespace, "shard": shard, "circuit": circuit, "most": most},
    )
    return [ParkedKey(run_id, position) for run_id, position in found]


def next_probe(connection: Connection, *, namespace: str, shard: int, circuit: str) -> Sequence[ParkedKey]:
    """The step to send as a probe, in a list of at most one: the one whose last try is the longest ago, the oldest
    first, so that a step which fails for its own reasons does not block all others."""
    found = connection.execute(_NEXT_PROBE, {"namespace": namespace, "shard": shard, "circuit": circuit, "most": 1})
    return [ParkedKey(run_id, position) for run_id, position in found]


# Races with the deadline, with a cancellation and with a second sweeper: only the first finds the step parked.
_UNPARK = text(
    "UPDATE steps SET state = 'scheduled', due_at_us = NULL, publish_count = 0, "
    "parked_us = parked_us + coalesce((SELECT paidonce_now() - p.parked_at_us FROM parked_steps p "
    "WHERE p.run_id = steps.run_id AND p.position = steps.position), 0), "
    "publish_at_us = paidonce_now() + :redeliver WHERE run_id = :run_id AND position = :position "
    f"AND {step_may_become(StepState.SCHEDULED, only=[StepState.PARKED])} RETURNING name, agent, queue, priority"
)


def unpark_step(connection: Connection, key: ParkedKey) -> StepMessage | None:
    """Schedule a parked step again: its delivery acquires permission anew. Guarded by its state."""
    parameters: dict[str, object] = {"run_id": key.run_id, "position": key.position}
    lock_run(connection, key.run_id)
    row = connection.execute(_UNPARK, {**parameters, "redeliver": REDELIVER_AFTER_US}).first()
    if row is None:
        return None
    update_run_state(connection, key.run_id)
    return StepMessage(
        run_id=key.run_id,
        position=key.position,
        name=row.name,
        agent=row.agent,
        queue=row.queue,
        priority=row.priority,
    )


# Only moves the time later, never earlier: what two processes report of a circuit may arrive out of order.
_POSTPONE = text(
    "UPDATE parked_steps SET due_at_us = paidonce_now() + :retry_in_us WHERE namespace = :namespace "
    "AND shard = :shard AND circuit = :circuit AND due_at_us < paidonce_now() + :retry_in_us"
)


def postpone_parked(connection: Connection, *, namespace: str, shard: int, circuit: str, retry_in_us: int) -> None:
    """The circuit stays open for so long: no step that waits for it is due before."""
    connection.execute(
        _POSTPONE, {"namespace": namespace, "shard": shard, "circuit": circuit, "retry_in_us": retry_in_us}
    )


_OVERDUE = (
    select(
        *cols(ParkedStep.run_id, ParkedStep.position, ParkedStep.circuit, ParkedStep.since_us, ParkedStep.due_at_us),
        *(col(Step.name), STORE_NOW.label("now_us")),
    )
    .select_from(_PARKED)
    .where(_OF_SHARD, col(ParkedStep.deadline_at_us) <= STORE_NOW)
    .limit(bindparam("most"))
)


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownOpen:
    """An open circuit, as Redis knows it. ``retry_at`` ``None``: until someone closes it."""

    since: datetime
    retry_at: datetime | None


def give_up_parked(
    connection: Connection, *, namespace: str, shard: int, known: Mapping[str, KnownOpen], most: int = 100
) -> list[AdvanceMessage]:
    """Raise ``CircuitOpen`` in the agents of steps that have waited as long as their policy allows.

    ``known`` has circuits by name; for one that it lacks, the error has the step's own wait and due time. The target
    is the step, as where a call is refused at once, or the provider whose circuit it is.
    """
    messages = []
    for found in connection.execute(_OVERDUE, {"namespace": namespace, "shard": shard, "most": most}).all():
        row, name = row_of(ParkedStep, found), row_of(Step, found).name
        waited = (int(found.now_us) - row.since_us) // 1_000_000
        stands = known.get(row.circuit) or KnownOpen(since=moment_of(row.since_us), retry_at=moment_of(row.due_at_us))
        error = CircuitOpen.of(
            row.circuit if row.circuit.startswith(_PROVIDER) else name,
            since=stands.since,
            retry_at=stands.retry_at,
            reason=f"step {row.position} has waited for it for {waited} s, the most that its policy allows",
        )
        message = end_step(
            connection,
            namespace=namespace,
            run_id=row.run_id,
            position=row.position,
            only_if=(StepState.PARKED,),
            error=error.to_json(),
        )
        if message is not None:
            messages.append(message)
    return messages


_TIDY = text(
    "DELETE FROM parked_steps WHERE namespace = :namespace AND shard = :shard AND EXISTS (SELECT 1 FROM steps "
    "WHERE steps.run_id = parked_steps.run_id AND steps.position = parked_steps.position "
    f"AND {step_has_ended('steps.state')})"
)


def tidy_parked_steps(connection: Connection, *, namespace: str, shard: int) -> int:
    """Delete the rows of steps that have ended; returns how many."""
    return connection.execute(_TIDY, {"namespace": namespace, "shard": shard}).rowcount
