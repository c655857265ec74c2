"""What a batch reads does not grow with what the store holds, whenever its plan was made.

``TEST_STORED_STEPS`` sets how many steps the store holds; a million takes some minutes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from sqlalchemy import text

from paidonce_models.database.dedicated_session import SETTINGS
from paidonce_models.database.session_choices import Pooler
from paidonce_models.database.sessions import Sessions
from paidonce_models.states import RunState
from paidonce_models.store.commits.batch_statement import commit_items
from paidonce_models.store.commits.items import Item, together_item
from paidonce_models.store.runs.advancing import Progress
from paidonce_models.store.steps.claims import Claimant
from tests.models.stored_runs import LEASE_US, NAMESPACE, Store, new_step, succeeded, success
from tests.services.postgres import fresh_database

STORED = int(os.environ.get("TEST_STORED_STEPS", "100000"))
STEPS_OF_A_RUN = 50
MOST_ROWS = 12
"""Read for each item: its run, its step and its attempt, locked, seen and written, and the run's stopped steps."""
AHEAD = Claimant(namespace=NAMESPACE, worker="w1", lease_us=LEASE_US)
_FILL = f"""
INSERT INTO runs (id, namespace, shard, agent, state, priority, queue, tags, lineage, root_run_id, depth, last_seq,
    consumed_seq, publish_count, created_at_us)
SELECT 'stored-' || n, '{NAMESPACE}', 0, 'count', 'running', 5, 'q', '{{}}', '[]', 'stored-' || n, 0, 1, 1, 0, 1
FROM generate_series(1, {STORED // STEPS_OF_A_RUN}) AS n;
INSERT INTO steps (run_id, position, namespace, shard, root_run_id, agent, kind, name, queue, priority, delivery,
    max_lost, args_id, created_seq, state, attempt, lost, failed, publish_count, parked_us, created_at_us)
SELECT 'stored-' || n, p, '{NAMESPACE}', 0, 'stored-' || n, 'count', 'step', 'module.work', 'q', 5, 'at_least_once',
    5, 'x', 1, CASE WHEN p % 10 = 0 THEN 'running' ELSE 'succeeded' END, 1, 0, 0, 0, 0, 1
FROM generate_series(1, {STORED // STEPS_OF_A_RUN}) AS n, generate_series(1, {STEPS_OF_A_RUN}) AS p;
INSERT INTO attempts (run_id, position, number, namespace, root_run_id, agent, step, worker, claimed_at_us, calls,
    unpriced_calls)
SELECT run_id, position, 1, namespace, root_run_id, agent, name, 'w1', 1, 0, 0 FROM steps WHERE run_id LIKE 'stored-%';
"""


@pytest.fixture
def store(postgres_server: str) -> Iterator[Store]:
    with fresh_database(postgres_server) as url:
        store = Store(url)
        yield store
        store.database.close()


class Reader:
    """A session like a committer's, whose statements are prepared at once, and what it reads."""

    def __init__(self, store: Store, connection: psycopg.Connection[Any]) -> None:
        self._store = store
        self._connection = connection

    def rows_per_item(self, size: int, *, ends: bool = False) -> dict[str, float]:
        """Commit a batch, and how many rows that has read of each table."""
        items = [self._item(ends=ends) for _ in range(size)]
        cursor = psycopg.RawCursor(self._connection)
        with self._connection.transaction():
            before = self._counts()
            committed = commit_items(lambda sql, given: cursor.execute(sql, given).fetchall(), items)  # type: ignore[arg-type]
            assert len(committed) == size
            return {name: (count - before[name]) / size for name, count in self._counts().items()}

    def _counts(self) -> dict[str, int]:
        """Rows read, by table, since this session has last reported them."""
        counts = "SELECT relname, seq_tup_read + coalesce(idx_tup_fetch, 0) FROM pg_stat_xact_user_tables"
        return {name: int(count) for name, count in self._connection.execute(counts).fetchall()}

    def fill(self) -> None:
        """From now on the store holds many runs."""
        self._connection.execute(_FILL, prepare=False)

    def _item(self, *, ends: bool) -> Item:
        run_id = self._store.running()
        claim, head = self._store.claimed(run_id), self._store.head(run_id)
        following = [] if ends else [new_step(2, "step", head.last_seq + 1)]
        progress = Progress(
            from_seq=head.last_seq,
            to_seq=head.last_seq + 1,
            state=RunState.SUCCEEDED if ends else RunState.RUNNING,
            state_reason=None,
            wake_at_us=None,
            agent_version="1",
            python_minor="3.11",
            new_steps=following,
            end=succeeded() if ends else None,
        )
        taken = None if ends else following[0]
        return together_item(success(claim), head, progress, claim.claimed_at_us, taken=taken, claimant=AHEAD)


@contextmanager
def reader(store: Store) -> Iterator[Reader]:
    sessions = Sessions(store.database.url, schema=None, pooler=Pooler.SESSION).with_settings(SETTINGS)
    connection, _ = sessions.open(store.database.engine)
    connection.prepare_threshold = 0
    yield Reader(store, connection)
    connection.close()


def check(read: dict[str, float]) -> None:
    assert sum(read.values()) <= MOST_ROWS, read


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_a_batch_reads_as_many_rows_in_a_full_store_as_in_an_empty_one(store: Store) -> None:
    with reader(store) as early:
        shapes = [(1, False), (1, True), (16, False), (16, True)]
        for size, ends in shapes:  # plans made while the tables are nearly empty
            check(early.rows_per_item(size, ends=ends))
        early.fill()
        for size, ends in shapes:
            check(early.rows_per_item(size, ends=ends))
        with reader(store) as later:
            for size, ends in shapes:
                check(later.rows_per_item(size, ends=ends))
        store.transact(lambda connection: connection.execute(text("ANALYZE")))
        for size, ends in shapes:
            check(early.rows_per_item(size, ends=ends))
