"""Statements on the marks of runs that are advanced shortly after a process has died, and on what they prove.

A step has a lease; an agent's code between two awaits has none, and if it ends its process, nothing records that. A
mark does: it is set before that code runs and deleted when the code has reached its next await.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, text

from paidonce_models.errors import SliceEndsProcess
from paidonce_models.store.blocking.blocked_runs import block_run
from paidonce_models.store.state_guards import run_has_ended

DEATHS_BEFORE_BLOCKING: Final = 3
"""Deaths in a row, with nothing but this run's agent between the mark and the end. A worker that was killed from
outside at just that moment may be one of them; three are not chance."""

_FIND = text("SELECT worker FROM slice_marks WHERE run_id = :run_id AND namespace = :namespace")
_SET = text(
    "INSERT INTO slice_marks (run_id, namespace, worker, signature, deaths, marked_at_us) "
    "SELECT id, namespace, CAST(:worker AS VARCHAR), CAST(:signature AS VARCHAR), 0, paidonce_now() FROM runs "
    "WHERE id = :run_id AND namespace = :namespace "
    "ON CONFLICT (run_id) DO UPDATE SET worker = :worker, signature = :signature, marked_at_us = paidonce_now()"
)
# Guarded by the worker: another process may have set its own mark in the meantime.
_DELETE = text("DELETE FROM slice_marks WHERE run_id = :run_id AND worker = :worker")
# Several processes see the same death: the first one takes the worker out of the mark, so that it counts once.
_BLAME = text(
    "UPDATE slice_marks SET deaths = deaths + CAST(:counts AS INTEGER), worker = '' "
    "WHERE worker = :worker AND worker <> '' RETURNING run_id, signature, deaths"
)
_ROUTE = text("SELECT agent, consumed_seq FROM runs WHERE id = :run_id")
_FORGET = text("DELETE FROM slice_marks WHERE run_id = :run_id")
_FORGET_ENDED = text(
    "DELETE FROM slice_marks WHERE namespace = :namespace AND run_id IN (SELECT m.run_id FROM slice_marks m "
    "JOIN runs ON runs.id = m.run_id WHERE m.namespace = :namespace "
    f"AND {run_has_ended('runs.state')})"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class BlamedRun:
    """A run whose agent's code was running when its process died; ``is_blocked`` if that was once too often."""

    run_id: str
    deaths: int
    is_blocked: bool


def marked_by(connection: Connection, namespace: str, run_id: str) -> str:
    """The process that has marked the run; empty if none has."""
    return str(connection.execute(_FIND, {"namespace": namespace, "run_id": run_id}).scalar_one_or_none() or "")


def set_mark(connection: Connection, *, namespace: str, run_id: str, worker: str, signature: str) -> None:
    """Record that this process runs the run's agent now; does nothing if the namespace has no such run."""
    given = {"namespace": namespace, "run_id": run_id, "worker": worker, "signature": signature}
    connection.execute(_SET, given)


def delete_mark(connection: Connection, *, run_id: str, worker: str) -> None:
    """The agent has reached its next await: it did not cause an earlier death."""
    connection.execute(_DELETE, {"run_id": run_id, "worker": worker})


def blame_slices(connection: Connection, worker: str, *, counts: bool) -> Sequence[BlamedRun]:
    """Count the death of this process against the runs that it had marked, and block those that reached the limit.

    A death counts once, whoever detects it first, and not if ``counts`` is false: the process was killed from outside.
    A run is blocked with the signature of the code that it ran in the dead process: other code unblocks it.
    """
    blamed = []
    for row in connection.execute(_BLAME, {"worker": worker, "counts": int(counts)}).all():
        enough = counts and row.deaths >= DEATHS_BEFORE_BLOCKING
        is_blocked = enough and _block(connection, row.run_id, row.deaths, row.signature)
        blamed.append(BlamedRun(run_id=row.run_id, deaths=row.deaths, is_blocked=is_blocked))
    return blamed


def forget_marks_of_ended_runs(connection: Connection, namespace: str) -> None:
    """Delete the marks of runs that have ended in another way, such as by cancellation."""
    connection.execute(_FORGET_ENDED, {"namespace": namespace})


def _block(connection: Connection, run_id: str, deaths: int, signature: str) -> bool:
    run = connection.execute(_ROUTE, {"run_id": run_id}).first()
    connection.execute(_FORGET, {"run_id": run_id})
    if run is None:
        return False
    error: dict[str, object] = {
        "type": SliceEndsProcess.__name__,
        "code": SliceEndsProcess.code,
        "message": f"run {run_id}: {deaths} processes in a row ended while they ran the code of agent {run.agent!r} "
        "between two awaits; look there for what ends a process (os._exit, a native crash, memory) and move it into "
        "a @step, which is isolated after two losses; the run continues with other code",
        "deaths": deaths,
    }
    return block_run(
        connection,
        run_id=run_id,
        from_seq=int(run.consumed_seq),
        reason=SliceEndsProcess.code,
        error=error,
        signature=signature,
    )
