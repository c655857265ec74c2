"""``blocked_steps``: one row for each step that this code cannot continue: its paid result, or its arguments, do not
fit."""

from __future__ import annotations

from sqlalchemy import BigInteger, Index, Text
from sqlmodel import Field

from paidonce_models.tables.registry import Row


class StoredBlockedStep(Row, table=True):
    """A step that is ``blocked``, and what its attempt returned, kept in ``payloads`` under ``kept_id``.

    ``form`` is the form of the kept bytes: ``encoded`` like a stored result, ``rendered`` as far as JSON allows; NULL:
    nothing was returned or could be kept. ``text_only`` is JSON: the places that are kept as human-readable text.
    ``shape`` is a hash of the annotation that the result did not fit, ``code`` one of the function. The step's own
    state decides: a row whose step is no longer blocked means nothing.
    """

    __tablename__ = "blocked_steps"
    __table_args__ = (Index("ix_blocked_steps_step", "namespace", "step"),)

    run_id: str = Field(primary_key=True, max_length=36)
    position: int = Field(primary_key=True)
    attempt: int
    namespace: str = Field(max_length=100)
    step: str = Field(max_length=200)
    reason: str = Field(max_length=50)
    form: str | None = Field(default=None, max_length=20)
    kept_id: str | None = Field(default=None, max_length=64)
    text_only: str = Field(default="[]", sa_type=Text)
    shape: str = Field(default="", max_length=64)
    code: str = Field(default="", max_length=64)
    since_us: int = Field(sa_type=BigInteger)
