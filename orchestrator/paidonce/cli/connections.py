"""Connections to the store for commands: each failure is one error that says what to do.

Commands that submit runs or change them need a ``Client`` (``clients``), which takes longer to import.
"""

from __future__ import annotations

from dataclasses import dataclass

from paidonce.settings import Settings, load_settings
from paidonce.store_access import make_home, open_checked_store, open_store
from paidonce_models.database.transactions import Database

CONNECTIONS = 2


@dataclass(frozen=True, kw_only=True)
class OpenStore:
    """The store of this process's settings; it responds and has our schema."""

    settings: Settings
    database: Database

    @property
    def namespace(self) -> str:
        """The team whose runs a command shows."""
        return self.settings.namespace


def open_checked() -> OpenStore:
    """For commands that read, or write what no worker needs to be told. Raises ``StoreError``."""
    settings = load_settings()
    return OpenStore(settings=settings, database=open_checked_store(settings, pool_size=CONNECTIONS))


def open_database(settings: Settings) -> Database:
    """The store without a schema check; for the commands that manage the schema."""
    make_home(settings)
    return open_store(settings, pool_size=CONNECTIONS)
