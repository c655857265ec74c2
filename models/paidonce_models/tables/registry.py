"""The registry and the ``MetaData`` of our tables.

SQLModel's default ones belong to other users of SQLModel in the process: a team must be able to define its own
``workers`` or ``runs`` beside ours, and its ``SQLModel.metadata.create_all`` must not create our tables.
"""

from __future__ import annotations

from sqlalchemy import MetaData
from sqlalchemy.orm import registry
from sqlmodel import SQLModel

METADATA = MetaData()
"""Of our tables only."""


class Row(SQLModel, registry=registry(metadata=METADATA)):
    """A row of one of our tables, or columns that several of them share."""
