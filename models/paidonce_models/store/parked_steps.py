"""Steps that wait for an open circuit: put aside without an attempt, and let go when it may have healed.

A parked step has a due time of its own in the store, so it wakes whatever the breakers' store remembers. Until the
circuit is known to be closed one step of each circuit is let go at a time: it is the probe.
What a call that was refused would have cost is not claimed; it is counted in ``avoided``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, text

from paidonce_models.errors import CircuitOpen
from paidonce_models.instants import moment_of
from paidonce_models.states import StepState
from paidonce_models.store.events import REDELIVER_AFTER_US
from paidonce_models.store.messages import AdvanceMessage, StepMessage
from paidonce_models.store.outside_endings import end_step
from paidonce_models.store.standing import restate_run


@dataclass(frozen=True, kw_only=True, slots=True)
class Parking:
    """Which circuit a step waits for, when it may be tried again, and for how long it waits at most, in all."""

    circuit: str
    retry_in_us: int
    most_us: int


_PROVIDER = "provider:"
"""With this the circuits of providers begin; those of steps and tools have any other name."""
_LOCK_RUN = text("SELECT id FROM runs WHERE id = :run_id FOR UPDATE")
_PARK = text(
    "UPDATE steps SET state = 'parked', publish_at_us = NULL WHERE run_id = :run_id AND position = :position "
    "AND namespace = :namespace AND state IN ('scheduled', 'retrying') AND kind <> 'agent'"
)
# One that was a probe in vain keeps its place and its deadline.
_INSERT = text(
    "INSERT INTO parked_steps (run_id, position, namespace, shard, circuit, since_us, parked_at_us, due_at_us, "
    "deadline_at_us) SELECT run_id, position, namespace, shard, :circuit, paidonce_now(), paidonce_now(), "
    "paidonce_now() + :retry_in_us, paidonce_now() + :most_us FROM steps "
    "WHERE run_id = :run_id AND position = :position "
    "ON CONFLICT (run_id, position) DO UPDATE SET circuit = excluded.circuit, due_at_us = excluded.due_at_us, "
    "parked_at_us = excluded.parked_at_us"
)
_REFUSED = text(
    "INSERT INTO avoided (run_id, position, attempt, namespace, root_run_id, agent, reason, steps, calls, "
    "unpriced_calls, recorded_at_us) SELECT run_id, position, 0, namespace, root_run_id, agent, 'circuit_open', 0, "
    ":calls, 0, paidonce_now() FROM steps WHERE run_id = :run_id AND position = :position "
    "ON CONFLICT (run_id, position, attempt) DO UPDATE SET calls = avoided.calls + excluded.calls"
)


def lock_run(connection: Connection, run_id: str) -> None:
    """Lock a run's row before its steps'; on SQLite the transaction has done so."""
    if connection.dialect.name == "postgresql":
        connection.execute(_LOCK_RUN, {"run_id": run_id})


def park_step(connection: Connection, *, namespace: str, run_id: str, position: int, parking: Parking) -> bool:
    """Put a step aside whose call was refused; False where it cannot be claimed anyway. No attempt is made."""
    key = {"namespace": namespace, "run_id": run_id, "position": position}
    lock_run(connection, run_id)
    if connection.execute(_PARK, key).rowcount != 1:
        return False
    count_refusals(connection, run_id=run_id, position=position, calls=1)
    write_parking(connection, run_id=run_id, position=position, parking=parking)
    return True


def write_parking(connection: Connection, *, run_id: str, position: int, parking: Parking) -> None:
    """Say what a step waits for that is ``parked`` now, and its run's state. Under the run's lock."""
    parameters = {"circuit": parking.circuit, "retry_in_us": parking.retry_in_us, "most_us": parking.most_us}
    connection.execute(_INSERT, {"run_id": run_id, "position": position, **parameters})
    restate_run(connection, run_id)


def count_refusals(connection: Connection, *, run_id: str, position: int, calls: int) -> None:
    """Count calls that were not made because a circuit was open. No money: nobody knows what they would have cost."""
    if calls:
        connection.execute(_REFUSED, {"run_id": run_id, "position": position, "calls": calls})


def refuse_step(
    connection: Connection, *, namespace: str, run_id: str, position: int, error: dict[str, object]
) -> AdvanceMessage | None:
    """Tell the agent at once that the circuit is open; ``None`` where the step cannot be claimed anyway."""
    message = end_step(
        connection,
        namespace=namespace,
        run_id=run_id,
        position=position,
        only_if=(StepState.SCHEDULED, StepState.RETRYING),
        error=error,
    )
    if message is not None:
        count_refusals(connection, run_id=run_id, position=position, calls=1)
    return message


_CIRCUITS = text(
    "SELECT p.circuit, count(*) AS steps, min(p.due_at_us) - paidonce_now() AS due_in_us FROM parked_steps p "
    "JOIN steps s ON s.run_id = p.run_id AND s.position = p.position AND s.state = 'parked' "
    "WHERE p.namespace = :namespace AND p.shard = :shard GROUP BY p.circuit ORDER BY p.circuit"
)
_OLDEST = (
    "SELECT p.run_id, p.position FROM parked_steps p JOIN steps s ON s.run_id = p.run_id AND s.position = p.position "
    "AND s.state = 'parked' WHERE p.namespace = :namespace AND p.shard = :shard AND p.circuit = :circuit{due} "
    "ORDER BY {first}p.since_us, p.run_id, p.position LIMIT :most"
)
_OLDEST_OF_ALL = text(_OLDEST.format(due="", first=""))
_OLDEST_DUE = text(_OLDEST.format(due=" AND p.due_at_us <= paidonce_now()", first=""))
_NEXT_PROBE = text(_OLDEST.format(due="", first="p.parked_at_us, "))


@dataclass(frozen=True, kw_only=True, slots=True)
class ParkedAt:
    """A circuit that steps wait for, how many, and in how many microseconds the first of them is due (negative: is)."""

    circuit: str
    steps: int
    due_in_us: int


@dataclass(frozen=True, slots=True)
class ParkedKey:
    """A parked step."""

    run_id: str
    position: int


def circuits_with_parked_steps(connection: Connection, *, namespace: str, shard: int) -> list[ParkedAt]:
    """The circuits that steps of a shard wait for."""
    rows = connection.execute(_CIRCUITS, {"namespace": namespace, "shard": shard})
    return [ParkedAt(circuit=row.circuit, steps=int(row.steps), due_in_us=int(row.due_in_us)) for row in rows]


def oldest_parked(
    connection: Connection, *, namespace: str, shard: int, circuit: str, most: int, due_only: bool
) -> Sequence[ParkedKey]:
    """The steps that have waited longest for a circuit; with ``due_only`` of those whose time has come."""
    rows = connection.execute(
        _OLDEST_DUE if due_only else _OLDEST_OF_ALL,
        {"namespace": namespace, "shard": shard, "circuit": circuit, "most": most},
    )
    return [ParkedKey(row.run_id, row.position) for row in rows]


def next_probe(connection: Connection, *, namespace: str, shard: int, circuit: str) -> Sequence[ParkedKey]:
    """The step to be sent as a probe: the oldest of those that have waited longest since they were tried last, so
    that one which fails for reasons of its own does not stand in the way of all others. None, if none waits."""
    rows = connection.execute(_NEXT_PROBE, {"namespace": namespace, "shard": shard, "circuit": circuit, "most": 1})
    return [ParkedKey(row.run_id, row.position) for row in rows]


_UNPARK = text(
    "UPDATE steps SET state = 'scheduled', due_at_us = NULL, publish_count = 0, "
    "parked_us = parked_us + coalesce((SELECT paidonce_now() - p.parked_at_us FROM parked_steps p "
    "WHERE p.run_id = steps.run_id AND p.position = steps.position), 0), "
    "publish_at_us = paidonce_now() + :redeliver WHERE run_id = :run_id AND position = :position "
    "AND state = 'parked' RETURNING name, agent, queue, priority"
)


def unpark_step(connection: Connection, key: ParkedKey) -> StepMessage | None:
    """Schedule a parked step again: its delivery asks the circuit anew. Guarded by its state."""
    parameters: dict[str, object] = {"run_id": key.run_id, "position": key.position}
    lock_run(connection, key.run_id)
    row = connection.execute(_UNPARK, {**parameters, "redeliver": REDELIVER_AFTER_US}).first()
    if row is None:
        return None
    restate_run(connection, key.run_id)
    return StepMessage(
        run_id=key.run_id,
        position=key.position,
        name=row.name,
        agent=row.agent,
        queue=row.queue,
        priority=row.priority,
    )


_POSTPONE = text(
    "UPDATE parked_steps SET due_at_us = paidonce_now() + :retry_in_us WHERE namespace = :namespace "
    "AND shard = :shard AND circuit = :circuit AND due_at_us < paidonce_now() + :retry_in_us"
)


def postpone_parked(connection: Connection, *, namespace: str, shard: int, circuit: str, retry_in_us: int) -> None:
    """The circuit stays open for so long: nothing that waits for it is due before."""
    connection.execute(
        _POSTPONE, {"namespace": namespace, "shard": shard, "circuit": circuit, "retry_in_us": retry_in_us}
    )


_OVERDUE = text(
    "SELECT p.run_id, p.position, p.circuit, p.since_us, p.due_at_us, s.name, paidonce_now() AS now_us "
    "FROM parked_steps p "
    "JOIN steps s ON s.run_id = p.run_id AND s.position = p.position AND s.state = 'parked' "
    "WHERE p.namespace = :namespace AND p.shard = :shard AND p.deadline_at_us <= paidonce_now() LIMIT :most"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownOpen:
    """An open circuit, as the breakers' store knows it. ``retry_at`` ``None``: until it is closed by hand."""

    since: datetime
    retry_at: datetime | None


def give_up_parked(
    connection: Connection, *, namespace: str, shard: int, known: Mapping[str, KnownOpen], most: int = 100
) -> list[AdvanceMessage]:
    """Tell the agents of steps that have waited as long as their policy allows that the circuit is open.

    ``known`` has circuits by name; of one that it lacks the step's own wait is told, and when it is due. The target
    is the step, as where a call is refused at once, or the provider whose circuit it is.
    """
    messages = []
    for row in connection.execute(_OVERDUE, {"namespace": namespace, "shard": shard, "most": most}).all():
        waited = (row.now_us - row.since_us) // 1_000_000
        stands = known.get(row.circuit) or KnownOpen(
            since=moment_of(int(row.since_us)), retry_at=moment_of(int(row.due_at_us))
        )
        error = CircuitOpen.of(
            row.circuit if row.circuit.startswith(_PROVIDER) else row.name,
            since=stands.since,
            retry_at=stands.retry_at,
            reason=f"step {row.position} has waited for it for {waited} s, which is all that its policy allows",
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
    "AND steps.state IN ('succeeded', 'failed', 'cancelled'))"
)
_WAITS = text(
    "SELECT p.position, p.circuit, p.since_us, p.due_at_us FROM parked_steps p JOIN steps s ON s.run_id = p.run_id "
    "AND s.position = p.position AND s.state = 'parked' WHERE p.run_id = :run_id ORDER BY p.position"
)


def tidy_parked_steps(connection: Connection, *, namespace: str, shard: int) -> int:
    """Delete what is left of steps that have ended; returns how many."""
    return connection.execute(_TIDY, {"namespace": namespace, "shard": shard}).rowcount


def why_parked(connection: Connection, run_id: str) -> dict[int, str]:
    """For each parked step of a run the circuit that it waits for, since when, and when it is tried again at last."""
    reasons = {}
    for row in connection.execute(_WAITS, {"run_id": run_id}):
        since, due = (f"{moment_of(int(at_us)):%Y-%m-%d %H:%M:%S} UTC" for at_us in (row.since_us, row.due_at_us))
        reasons[row.position] = f"circuit {row.circuit} is open; it waits since {since} and is tried again at {due}"
    return reasons
