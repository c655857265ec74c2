"""Runs migrations on the connection that ``paidonce_models.schema`` hands over."""

from __future__ import annotations

from alembic import context
from sqlmodel import SQLModel

import paidonce_models.tables  # noqa: F401  the tables register themselves

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=SQLModel.metadata, render_as_batch=True)
context.run_migrations()
