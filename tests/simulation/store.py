"""The store of a simulation: a real one whose transactions can be interrupted, and whose clock stands still.

Shared by many scenarios, which clear it first: creating a schema takes longer than
most scenarios.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar
from unittest.mock import patch

from sqlalchemy import Connection

from paidonce_models.database.schema import upgrade
from paidonce_models.database.transactions import Database
from paidonce_models.store.simulation import next_due_us

T = TypeVar("T")

NAMESPACE = "simulated"
START_US = 1_700_000_000_000_000
TABLES = (
    *("runs", "steps", "attempts", "run_events", "payloads", "calls", "avoided", "workers", "run_aliases", "sweeps"),
    *("budgets", "budget_accounts", "reservations", "held_steps"),
)

_DELETES = [f"DELETE FROM {table}" for table in TABLES]


class SimulatedDatabase(Database):
    """Calls ``before`` ahead of every write transaction and ``after`` behind its commit; either may raise."""

    def __init__(self, url: str) -> None:
        self.clock = START_US
        self.before: Callable[[], None] = _nothing
        self.after: Callable[[], None] = _nothing
        super().__init__(url, clock_us=lambda: self.clock)
        upgrade(self)

    def transact(self, work: Callable[[Connection], T], **options: bool) -> T:
        self.before()
        result = super().transact(work, **options)
        self.after()
        return result

    def execute_dedicated(self, statement: str, parameters: Sequence[str]) -> list[tuple[Any, ...]]:
        self.before()
        rows = super().execute_dedicated(statement, parameters)
        self.after()
        return rows

    def next_due_us(self) -> int | None:
        """When the sweeper will next find something to do; ``None``: never."""
        with self.read() as connection:
            return next_due_us(connection, NAMESPACE)

    @contextmanager
    def scenario(self) -> Iterator[None]:
        """An empty store, its clock at the start, and run ids that are the same each time."""
        numbers = itertools.count(1)

        def next_id() -> str:
            return f"00000000-0000-7000-8000-{next(numbers):012d}"

        self.clock = START_US
        self.before = self.after = _nothing
        with self.write() as connection:
            for delete in _DELETES:
                connection.exec_driver_sql(delete)
        with (
            patch("paidonce_models.store.runs.advancing.new_run_id", next_id),
            patch("paidonce_models.store.runs.submission.new_run_id", next_id),
        ):
            try:
                yield
            finally:
                self.before = self.after = _nothing


def _nothing() -> None:
    """No interruption."""
