"""``run_events``: a run's event history, the ordered inputs that replay reads, and nothing else."""

from __future__ import annotations

from sqlalchemy import BigInteger, Text
from sqlmodel import Field

from paidonce_models.tables.registry import Row


class RunEvent(Row, table=True):
    """One input of a run: its start, a step's outcome, a timer, a cancellation.

    ``seq`` is allocated from ``runs.last_seq`` under the run's row lock, never
    from a sequence, so that an event that is visible has all its predecessors
    visible. ``recorded_at_us`` is what the agent's clock shows while the event
    is delivered. Rows are never changed.
    """

    __tablename__ = "run_events"

    run_id: str = Field(primary_key=True, max_length=36)
    seq: int = Field(primary_key=True, sa_type=BigInteger)
    namespace: str = Field(max_length=100)
    kind: str = Field(max_length=30)
    position: int | None = None
    attempts: int | None = None
    payload_id: str | None = Field(default=None, max_length=64)
    data: str | None = Field(default=None, sa_type=Text)
    recorded_at_us: int = Field(sa_type=BigInteger)
