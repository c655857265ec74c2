"""What a statement names is in the schema, on both engines, whether the statement is an expression or text."""

from __future__ import annotations

import importlib
import itertools
import pkgutil
import re
from collections.abc import Iterator, Mapping

import pytest
from sqlalchemy import Connection, Executable, TextClause, event, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.selectable import SelectBase

import paidonce.drill
import paidonce_models.store
from paidonce_models import tables
from paidonce_models.store import columns
from paidonce_models.store.columns import Run, Step, alias, col, rows
from paidonce_models.store.ledger import ledger_views
from paidonce_models.store.ledger.bill_statements import recomputing_statements
from paidonce_models.store.ledger.cost_statements import LEDGER, CostQuestion, Dimension, cost_statement, kept_sums
from paidonce_models.store.ledger.cost_views import VIEWS, view_sql
from paidonce_models.store.ledger.ledger_views import LedgerCallRow, PossiblyBilledRow
from tests.models.stored_runs import NAMESPACE, Store

_STATEMENT = re.compile(r"\s*(?:SELECT|INSERT|UPDATE|DELETE|WITH)\b")
_ONLY_POSTGRESQL = re.compile(r"FOR UPDATE|pg_advisory|AS \((?:INSERT|UPDATE)|unnest\(")

_NUMBERS = ("seq",)
"""PostgreSQL cannot tell the type of these from a NULL."""


def test_each_name_stands_for_the_table_of_its_class() -> None:
    names = [name for name in columns.__all__ if isinstance(getattr(tables, name, None), type)]
    assert len(names) > 10
    for name in names:
        assert rows(getattr(columns, name)).name == getattr(tables, name).__tablename__  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("view", "row"), [(ledger_views.LedgerCall, LedgerCallRow), (ledger_views.PossiblyBilled, PossiblyBilledRow)]
)
def test_a_view_has_the_columns_of_its_class(shared_store: Store, view: type[object], row: type[object]) -> None:
    name = rows(view).name  # type: ignore[attr-defined]
    with shared_store.database.read() as connection:
        found = connection.execute(text(f"SELECT * FROM {name}")).keys()
    assert list(found) == list(row.__annotations__)


def test_a_table_can_be_read_by_another_name() -> None:
    root = alias(Run, "root")
    statement = select(col(Run.id), col(root.state)).where(col(root.id) == col(Run.root_run_id))
    assert "FROM runs, runs AS root" in str(statement)


def held_statements() -> Mapping[str, Executable]:
    """Every statement that a module of the store or of the drills holds, by module, name and key."""
    return {
        name: statement
        for package in (paidonce_models.store, paidonce.drill)
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        for variable, value in vars(importlib.import_module(module.name)).items()
        for name, statement in _statements_in(f"{module.name.rpartition('.')[2]}.{variable}", value)
    }


def _statements_in(name: str, value: object) -> Iterator[tuple[str, Executable]]:
    if isinstance(value, SelectBase) or (isinstance(value, TextClause) and _STATEMENT.match(value.text)):
        yield name, value  # type: ignore[misc]  # a subquery is no statement of its own, and is none here
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from _statements_in(f"{name}[{key}]", each)
    elif isinstance(value, list | tuple):
        for number, each in enumerate(value):
            yield from _statements_in(f"{name}[{number}]", each)


def printed_statements(dialect: str) -> Iterator[tuple[str, Executable]]:
    """Those that ``--sql`` prints, and the same over kept sums: text, because people run it themselves."""
    for view in VIEWS:
        yield f"view {view}", text(view_sql(view, NAMESPACE, limit=1))
    for number, statement in enumerate(recomputing_statements("a run")):
        yield f"bill {number}", text(statement)
    for by, limit in itertools.product(((), *((each.value,) for each in Dimension), ("tag:customer",)), (None, 5)):
        question = CostQuestion(namespace=NAMESPACE, by=by, limit=limit, since_day="2026-11-01", agent="count")
        for source in {LEDGER, kept_sums(question)}:
            sql, parameters = cost_statement(question, source, dialect)
            yield f"costs by {by} of {source}, limit {limit}", text(sql).bindparams(**parameters)


def _is_for(dialect: str, name: str, statement: Executable) -> bool:
    if dialect == "sqlite":
        return "postgresql" not in name and not (
            isinstance(statement, TextClause) and _ONLY_POSTGRESQL.search(statement.text)
        )
    return "sqlite" not in name


def _fault(connection: Connection, statement: Executable) -> str | None:
    """What the engine says to the plan of a statement; ``None`` where it has nothing against it."""
    binds = statement.compile(dialect=connection.dialect).bind_names  # type: ignore[attr-defined]
    values: dict[str, object] = {each.key: [None] if each.expanding else None for each in binds if each.value is None}
    values |= {name: 1 for name in _NUMBERS if name in values}
    savepoint = connection.begin_nested()
    try:
        connection.execute(statement, values)
    except DBAPIError as error:
        return str(error.orig)
    finally:
        savepoint.rollback()
    return None


def test_every_statement_fits_the_schema(shared_store: Store) -> None:
    """A column that is renamed in ``tables`` and a migration is found in text too, before anything runs it."""
    statements = {**held_statements(), **dict(printed_statements(shared_store.database.dialect))}
    assert {"queries._STEPS", "completion._END_STEP", "crash._SUCCEEDED"} <= set(statements)
    with shared_store.database.write() as connection:

        @event.listens_for(connection, "before_cursor_execute", retval=True)
        def explain(
            _connection: object, _cursor: object, sql: str, parameters: object, *_: object
        ) -> tuple[str, object]:
            return (sql if "SAVEPOINT" in sql else f"EXPLAIN {sql}"), parameters

        faults = {
            name: fault
            for name, statement in statements.items()
            if _is_for(connection.dialect.name, name, statement)
            and (fault := _fault(connection, statement)) is not None
        }
    assert faults == {}


def test_a_name_that_the_schema_lacks_is_found(store: Store) -> None:
    with store.database.write() as connection:
        assert "no_such" in str(_fault(connection, select(col(getattr(Step, "no_such")))))  # noqa: B009 - no name of it
