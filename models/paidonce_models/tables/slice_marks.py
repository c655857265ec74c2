"""``slice_marks``: which process advances a run, while that may be what ends the process."""

from __future__ import annotations

from sqlalchemy import BigInteger, Index
from sqlmodel import Field

from paidonce_models.tables.registry import Row


class SliceMark(Row, table=True):
    """A run whose agent's code is running now, or has ended its process.

    Written only in the seconds after a process has died or started. ``worker`` is the process that advances the run,
    empty once it was found dead; ``deaths`` counts those in a row. ``signature`` is that of the agent's code there.
    """

    __tablename__ = "slice_marks"
    __table_args__ = (Index("ix_slice_marks_worker", "worker"),)

    run_id: str = Field(primary_key=True, max_length=36)
    namespace: str = Field(max_length=100)
    worker: str = Field(default="", max_length=200)
    signature: str = Field(default="", max_length=200)
    deaths: int = 0
    marked_at_us: int = Field(sa_type=BigInteger)
