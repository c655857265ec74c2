"""The pages on costs: the answers are what the commands print, and its SQL says the same."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from paidonce_models.store.ledger.cost_views import VIEWS
from tests.cli.reference import DOCS, with_part
from tests.docs.cost_example import Company
from tests.docs.costs_page import QUESTIONS, Question, answer, generated
from tests.models.stored_runs import Store


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    folder = tmp_path_factory.mktemp("example")
    url = f"sqlite:///{folder}/example.sqlite3"
    Company(url).write()
    yield url, folder


def test_the_pages_say_what_the_commands_say(example: tuple[str, Path]) -> None:
    for (page, mark), part in generated(*example).items():
        text = (DOCS / page).read_text(encoding="utf-8")
        assert with_part(text, mark, part) == text, "bring it up to date: python -m tests.docs.costs_page"


def test_there_are_twelve_questions() -> None:
    assert len(QUESTIONS) == 12


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.asks)
def test_the_sql_beside_an_answer_says_the_same(example: tuple[str, Path], question: Question) -> None:
    url, home = example
    document = json.loads(answer(url, home, (*question.command, "--json")))
    with sqlite3.connect(url.removeprefix("sqlite:///")) as connection:
        connection.row_factory = sqlite3.Row
        rows = connection.execute(question.sql.split(";")[0]).fetchall()
    connection.close()
    columns = [column for column in ("cost_nanousd", "estimate_nanousd", "calls") if column in dict(rows[0])]
    name = columns[0]
    if question.command[0] == "bill":
        assert sum(row[name] or 0 for row in rows) == document["cost_nanousd"]
        return
    printed = Counter(row[name] for row in document["rows"])
    if "tag:customer" in question.command:
        del printed[next(row[name] for row in document["rows"] if row["tag:customer"] is None)]
    assert Counter(row[name] for row in rows) == printed


def test_every_view_has_the_columns_that_are_documented(database_url: str) -> None:
    store = Store(database_url)
    for name, view in VIEWS.items():
        with store.database.read() as connection:
            found = connection.exec_driver_sql(f"SELECT * FROM {name}").keys()
        assert set(found) == {"namespace", *view.columns}, name
    store.database.close()
