"""From settings to the store: the one place where its address, its schema and its pooler come together."""

from __future__ import annotations

from paidonce.settings import Settings
from paidonce_models.database import Database


def open_store(settings: Settings, *, pool_size: int = 1) -> Database:
    """The store that the settings name; nothing is connected to yet. Raises ``ConfigurationError``."""
    return Database(settings.database_url, pool_size=pool_size, schema=settings.schema, pooler=settings.pooler)
