"""Runs migrations on the connection that ``paidonce_models.database.migrating`` passes."""

from __future__ import annotations

from alembic import context

from paidonce_models.database.version_table import VERSION_TABLE
from paidonce_models.tables import METADATA

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=METADATA, version_table=VERSION_TABLE, render_as_batch=True)
context.run_migrations()
