"""The statements of a step's life stay within what the driver keeps ready."""

from __future__ import annotations

from pathlib import Path

from psycopg._queries import MAX_CACHED_STATEMENT_LENGTH, MAX_CACHED_STATEMENT_PARAMS
from sqlalchemy import TextClause
from sqlalchemy.dialects.postgresql import psycopg

from paidonce_models.store.runs import bulk_insert, events, run_log, submission
from paidonce_models.store.runs.run_states import HAS_STOPPED_STEPS
from paidonce_models.store.steps import claims
from tests.models.stored_runs import Store

MODULES = (claims, events, run_log, submission)


def test_the_driver_parses_no_hot_statement_anew_each_time() -> None:
    """psycopg keeps parsed statements up to a length; one above it cost a step of W1 0.2 ms of its 1.3."""
    dialect = psycopg.dialect()  # type: ignore[no-untyped-call]  # SQLAlchemy's own
    statements = [
        (f"{module.__name__}.{name}", statement)
        for module in MODULES
        for name, value in vars(module).items()
        for statement in (value.values() if isinstance(value, dict) else [value])
        if isinstance(statement, TextClause)
    ]
    assert len(statements) > 20
    for name, statement in statements:
        compiled = statement.compile(dialect=dialect)
        assert len(str(compiled)) <= MAX_CACHED_STATEMENT_LENGTH, name
        assert len(compiled.params) <= MAX_CACHED_STATEMENT_PARAMS, name
    assert len(bulk_insert.INSERT_AT_ONCE) <= MAX_CACHED_STATEMENT_LENGTH


def test_reading_a_run_looks_for_its_stopped_steps_in_their_index(tmp_path: Path) -> None:
    """SQLite uses a partial index only where the statement lists the states in the index's order; without it each
    advance of a run reads all its steps."""
    store = Store(f"sqlite:///{tmp_path / 'store.db'}")
    question = HAS_STOPPED_STEPS.format(run_id="'r'")
    plan = store.rows(f"EXPLAIN QUERY PLAN SELECT {question}")
    store.database.close()
    assert "ix_steps_standing" in str(plan), plan
