"""The three pairs of store and broker on which everything must hold."""

from __future__ import annotations

import os
from dataclasses import dataclass

import pytest

RUNS = int(os.environ.get("TEST_CHAOS_RUNS", "100"))
"""How many runs the large tests submit."""


@dataclass(frozen=True, kw_only=True)
class Engines:
    """``None`` is the default: SQLite in the home, the embedded Valkey."""

    name: str
    database_url: str | None = None
    broker_url: str | None = None
    turn_seconds: str = "5"
    """On one pair every step goes over the broker, as steps that take long do."""

    @property
    def is_sqlite(self) -> bool:
        """Whether the store is SQLite."""
        return self.database_url is None


PAIRS = (
    "sqlite-embedded",
    pytest.param("postgresql-rabbitmq", marks=pytest.mark.service),
    pytest.param("postgresql-redis", marks=pytest.mark.service),
)

ONE_OF_EACH = PAIRS[:2]
"""For what depends on the store and on the pool but not on the broker: each store, and two brokers."""


def engines_named(name: str, request: pytest.FixtureRequest) -> Engines:
    """The pair of that name, empty and of this test's own."""
    store, _, broker = name.partition("-")
    return Engines(
        name=name,
        database_url=None if store == "sqlite" else request.getfixturevalue("postgres_database"),
        broker_url=None if broker == "embedded" else request.getfixturevalue(f"{broker}_url"),
        turn_seconds="0" if broker == "redis" else "5",
    )
