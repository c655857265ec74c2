"""``parked_steps``: what waits for an open circuit; ``breaker_transitions``: every change of a circuit's state."""

from __future__ import annotations

from sqlalchemy import BigInteger, Index, SmallInteger, Text
from sqlmodel import Field

from paidonce_models.tables.registry import Row


class ParkedStep(Row, table=True):
    """A step that is ``parked``, the circuit it waits for, and when it is tried again, whatever Redis remembers.

    ``since_us`` is when it was first parked, ``parked_at_us`` when it was last, ``deadline_at_us`` when ``CircuitOpen``
    is raised in its agent. The step's own state decides: a row whose step is no longer parked means nothing, and the
    sweeper deletes it.
    """

    __tablename__ = "parked_steps"
    __table_args__ = (Index("ix_parked_steps_circuit", "namespace", "shard", "circuit", "since_us"),)

    run_id: str = Field(primary_key=True, max_length=36)
    position: int = Field(primary_key=True)
    namespace: str = Field(max_length=100)
    shard: int = Field(sa_type=SmallInteger)
    circuit: str = Field(max_length=200)
    since_us: int = Field(sa_type=BigInteger)
    parked_at_us: int = Field(sa_type=BigInteger)
    due_at_us: int = Field(sa_type=BigInteger)
    deadline_at_us: int = Field(sa_type=BigInteger)


class BreakerTransition(Row, table=True):
    """One change of a circuit, written by the process that made it. Rows are never changed."""

    __tablename__ = "breaker_transitions"
    __table_args__ = (Index("ix_breaker_transitions_circuit", "namespace", "circuit", "at_us"),)

    id: str = Field(primary_key=True, max_length=36)
    namespace: str = Field(max_length=100)
    circuit: str = Field(max_length=200)
    from_state: str = Field(max_length=20)
    to_state: str = Field(max_length=20)
    reason: str = Field(sa_type=Text)
    worker: str = Field(max_length=200)
    at_us: int = Field(sa_type=BigInteger)
