"""Where our tables are registered: a registry and a ``MetaData`` of our own.

SQLModel's default ones belong to whoever else uses SQLModel in the process: a team's own ``workers`` or ``runs`` must
be definable beside ours, and its ``SQLModel.metadata.create_all`` must not make our tables in its database.
"""

from __future__ import annotations

from sqlalchemy import MetaData
from sqlalchemy.orm import registry
from sqlmodel import SQLModel

METADATA = MetaData()
"""Of all our tables and of nobody else's."""


class Row(SQLModel, registry=registry(metadata=METADATA)):
    """A row of one of our tables, or what several of them have in common."""
