"""`paidonce costs` and `paidonce bill`: the forms of one answer agree, and their SQL recomputes it."""

from __future__ import annotations

import csv
import io
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from sqlalchemy.engine import make_url

from paidonce.budgets import set_budget
from paidonce_models.database.transactions import Database
from paidonce_models.store.ledger.cost_views import VIEWS, read_view, view_sql
from paidonce_models.store.ledger.rolling_up import roll_up
from paidonce_models.store.recovery.lost_steps import reclaim_step
from tests.cli.conftest import Project
from tests.models.stored_runs import SECOND_US, Store, failure, key_of, paid_call, succeeded, success
from tests.services.postgres import fresh_database

NANO = 1_000_000_000
SETTINGS = {"NAMESPACE": "tests"}


def filled(url: str) -> str:
    """A store with a run that succeeded after a failure and a crash, one under way, and a call without a price."""
    store = Store(url)
    run_id = store.submit(tags={"customer": 'it\'s, "odd" 100%'}).run_id
    store.advance(run_id, steps=2)
    first = store.claimed(run_id)
    store.complete(replace(failure(first, retry_after_us=0), calls=[replace(paid_call(first), tool="sql")]))
    store.clock.move(SECOND_US)
    store.complete(success(store.claimed(run_id)))
    lost = store.claimed(run_id, 2)
    store.transact(reclaim_step, key_of(lost), why="gone", alone=True, anyway=True)
    last = store.claimed(run_id, 2)
    unpriced = replace(paid_call(last), cost_nanousd=None, other_cost_nanousd=None, input_tokens=7)
    dear = replace(paid_call(last), cost_nanousd=NANO, other_cost_nanousd=NANO, provider_request_id="req-1")
    store.complete(replace(success(last), calls=[unpriced, dear]))
    store.advance(run_id, end=succeeded())
    store.transact(roll_up, "tests")
    other = store.running()
    store.complete(success(store.claimed(other)))
    store.database.close()
    return run_id


@dataclass(frozen=True)
class Ledger:
    """A store that is filled as above, and its run."""

    url: str
    run_id: str


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.service)])
def ledger(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    """For tests that only read: to make one takes longer than most of them."""
    with ExitStack() as stack:
        url = f"sqlite:///{tmp_path_factory.mktemp('ledger') / 'paidonce.sqlite3'}"
        if request.param == "postgresql":
            url = stack.enter_context(fresh_database(request.getfixturevalue("postgres_server")))
        ledger = Ledger(url, filled(url))
        database = Database(url)
        set_budget(database, "agent=count", per="day", usd="1", namespace="tests")
        database.close()
        yield ledger


def run_sql(url: str, sql: str) -> list[list[dict[str, Any]]]:
    """What each statement finds, without Paidonce and without SQLAlchemy's engine."""
    statements = [part for part in sql.split(";\n") if part.strip()]
    if url.startswith("sqlite"):
        connection = sqlite3.connect(str(make_url(url).database))
        cursors = [connection.execute(statement) for statement in statements]
        found = [
            [dict(zip([column[0] for column in cursor.description], row, strict=True)) for row in cursor]
            for cursor in cursors
        ]
        connection.close()
        return found
    with psycopg.connect(make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)) as server:
        cursors = [server.execute(statement.encode()) for statement in statements]
        return [
            [dict(zip([column.name for column in cursor.description or ()], row, strict=True)) for row in cursor]
            for cursor in cursors
        ]


MEASURES = (
    *("calls", "input_tokens", "cache_read_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens"),
    *("cost_nanousd", "unpriced_calls", "possibly_billed_nanousd"),
)


@pytest.mark.parametrize("by", ["cause,step", "tag:customer", "run,tool"])
def test_the_sql_that_is_printed_recomputes_the_figures(project: Project, ledger: Ledger, by: str) -> None:
    given = {**SETTINGS, "DATABASE_URL": ledger.url}
    document = project.paidonce("costs", "--by", by, "--json", **given).document
    (lines,) = run_sql(ledger.url, project.paidonce("costs", "--by", by, "--sql", **given).out)
    names = by.split(",")
    recomputed = [
        ({name: line[f"d{number}"] for number, name in enumerate(names, 1)}, {name: line[name] for name in MEASURES})
        for line in lines
        if line["line"] == "row"
    ]
    printed = [
        ({name: row[name] for name in names}, {name: row[name] for name in MEASURES}) for row in document["rows"]
    ]
    assert recomputed == printed
    (total,) = [line for line in lines if line["line"] == "total"]
    assert {name: total[name] for name in MEASURES} == {name: document["total"][name] for name in MEASURES}
    assert document["total"]["cost_nanousd"] == sum(row["cost_nanousd"] or 0 for row in document["rows"])


def test_every_form_of_the_answer_says_the_same(project: Project, sqlite_database: str) -> None:
    filled(sqlite_database)
    given = {**SETTINGS, "DATABASE_URL": sqlite_database}
    document = project.paidonce("costs", "--by", "cause", "--json", **given).document
    assert {row["cause"]: row["cost_usd"] for row in document["rows"]} == {
        "useful": "1.000002500",
        "failed": "0.000002500",
        "open": "0.000002500",
        "lost": None,
    }
    lost = next(row for row in document["rows"] if row["cause"] == "lost")
    assert (lost["calls"], lost["lost_attempts"], lost["possibly_billed_nanousd"]) == (0, 1, 2500)
    assert document["total"] | {"cost_nanousd": 1_000_007_500, "unpriced_calls": 1, "calls": 5} == document["total"]
    rows = list(csv.DictReader(io.StringIO(project.paidonce("costs", "--by", "cause", "--csv", **given).out)))
    assert [row["cause"] for row in rows] == [row["cause"] for row in document["rows"]]
    assert rows[0]["cost_nanousd"] == str(document["rows"][0]["cost_nanousd"])
    shown = project.paidonce("costs", "--by", "cause", **given).out
    assert "≥ $1.00" in shown and "█" in shown
    assert "May also have been billed: $0.0000025. Lost attempts: 1" in shown
    limited = project.paidonce("costs", "--by", "cause", "--limit", "1", "--json", **given).document
    assert limited["others"]["rows"] == 3
    assert limited["total"] == document["total"]


def test_names_may_be_given_one_by_one_and_a_comma_be_a_part_of_a_tag(project: Project, sqlite_database: str) -> None:
    store = Store(sqlite_database)
    run_id = store.submit(tags={"a,b": "x"}).run_id
    store.advance(run_id, steps=1)
    store.complete(success(store.claimed(run_id)))
    store.database.close()
    given = {**SETTINGS, "DATABASE_URL": sqlite_database}
    for by in (("--by", "cause", "--by", r"tag:a\,b"), ("--by", r"cause,tag:a\,b")):
        (row,) = project.paidonce("costs", *by, "--json", **given).document["rows"]
        assert (row["cause"], row["tag:a,b"], row["calls"]) == ("open", "x", 1)


def test_what_a_limit_leaves_out_is_said_also_to_programs(project: Project, sqlite_database: str) -> None:
    filled(sqlite_database)
    given = {**SETTINGS, "DATABASE_URL": sqlite_database}
    asked = project.paidonce("costs", "--by", "cause", "--limit", "1", "--csv", **given)
    assert len(asked.out.splitlines()) == 2
    assert "3 more rows are left out" in asked.err
    assert "left out" not in project.paidonce("costs", "--by", "cause", "--limit", "4", "--csv", **given).err
    view = project.paidonce("costs", "--view", "costs_by_cause", "--limit", "1", "--json", **given)
    assert (len(view.document["rows"]), view.document["complete"]) == (1, False)
    assert "more rows are left out" in view.err
    whole = project.paidonce("costs", "--view", "costs_by_cause", "--limit", "3", "--json", **given)
    assert (len(whole.document["rows"]), whole.document["complete"], whole.err) == (3, True, "")


@pytest.mark.parametrize("name", VIEWS)
def test_any_client_reads_each_view(ledger: Ledger, name: str) -> None:
    database = Database(ledger.url)
    with database.read_at_once() as connection:
        found = read_view(connection, name, "tests", limit=100)
    database.close()
    (rows,) = run_sql(ledger.url, view_sql(name, "tests", limit=100) + ";\n")
    assert [[float(value) if isinstance(value, Decimal) else value for value in row.values()] for row in rows] == [
        list(row) for row in found.rows
    ]


def test_a_bill_is_a_tree_whose_sql_recomputes_it(project: Project, ledger: Ledger) -> None:
    run_id = ledger.run_id
    given = {**SETTINGS, "DATABASE_URL": ledger.url}
    document = project.paidonce("bill", run_id, "--json", **given).document
    assert (document["calls"], document["cost_usd"], document["unpriced_calls"]) == (4, "1.000005000", 1)
    attempts = [[attempt["cause"] for attempt in step["attempts"]] for step in document["steps"]]
    assert attempts == [["failed", "useful"], ["lost", "useful"]]
    made = [call for step in document["steps"] for each in step["attempts"] for call in each["calls_made"]]
    assert [call["provider_request_id"] for call in made if call["provider_request_id"]] == ["req-1"]
    money, rest, avoided, lines, calls, _ = run_sql(ledger.url, project.paidonce("bill", run_id, "--sql", **given).out)
    assert [line["cost_nanousd"] for line in lines] == [document["cost_nanousd"]] * 2
    assert [call["provider_request_id"] for call in calls if call["provider_request_id"]] == ["req-1"]
    assert sum(int(row["cost_nanousd"]) for row in money if row["cost_nanousd"]) == document["cost_nanousd"]
    assert [row["estimate_nanousd"] for row in rest] == [document["possibly_billed_nanousd"]]
    assert sum(row["steps_not_repeated"] for row in avoided) == document["bill"]["steps_not_repeated"]
    shown = project.paidonce("bill", run_id, **given).out
    for part in (
        "req-1",
        "attempt 2 accepted",
        "≥ $1.00",
        "May also have been billed  $0.0000025",
        "steps not paid again",
    ):
        assert part in shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["costs", "--by", "colour"], "cannot be grouped by 'colour'"),
        (["costs", "--since", "12h"], "costs are kept by day"),
        (["costs", "--since", "0d"], "at least one day"),
        (["costs", "--csv"], "give one of them"),
        (["costs", "--view", "costs_by_agent", "--by", "model"], "its own grouping"),
    ],
)
def test_what_cannot_be_answered_is_refused(project: Project, arguments: list[str], said: str) -> None:
    done = project.paidonce(*arguments, "--json")
    assert (done.code, done.error["code"]) == (2, "invalid_input")
    assert said in done.error["message"]


def test_a_store_without_calls_claims_no_money(project: Project) -> None:
    shown = project.paidonce("costs")
    assert (shown.code, "No calls recorded." in shown.out, "$" in shown.out) == (0, True, False)
    assert project.paidonce("bill", "nobody", "--json").code == 4
