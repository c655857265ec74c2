"""A fast store in memory with the current schema: migrated once per process, then copied."""

from __future__ import annotations

import functools
import sqlite3

from paidonce.testing.clock import FakeClock
from paidonce_models.database.schema import upgrade
from paidonce_models.database.transactions import Database


def open_memory_store(clock: FakeClock) -> Database:
    """A separate empty store whose clock is ``clock``; it is gone when closed."""
    database = Database("sqlite://", clock_us=clock.now_us)
    _driver_connection(database).deserialize(_empty_store())
    return database


@functools.cache
def _empty_store() -> bytes:
    database = Database("sqlite://")
    try:
        upgrade(database)
        return _driver_connection(database).serialize()
    finally:
        database.close()


def _driver_connection(database: Database) -> sqlite3.Connection:
    pooled = database.engine.raw_connection()
    connection = pooled.driver_connection
    pooled.close()  # Back to the pool, which holds this one connection for good.
    if not isinstance(connection, sqlite3.Connection):
        raise TypeError(f"expected a connection of sqlite3, got {type(connection).__name__}")
    return connection
