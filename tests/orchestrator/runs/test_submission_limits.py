"""Texts that land in an index or a column: limits in the bytes that the store counts, on every store."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from paidonce import agent, step
from paidonce.budget_texts import budget_subject
from paidonce.client import Client
from paidonce.runs.new_run import new_run
from paidonce.settings import load_settings
from paidonce.stored_texts import MAX_KEY_BYTES, MAX_NAME_BYTES, MAX_TAG_BYTES
from paidonce_models.database.schema import upgrade
from paidonce_models.database.transactions import Database
from paidonce_models.errors import DeclarationError, InvalidInput, NotFound
from paidonce_models.ids import new_run_id
from paidonce_models.store.runs.submission import submit_run

FOUR_BYTES = "\U0001f600"


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.service)])
def database(request: pytest.FixtureRequest, tmp_path: Any) -> Any:
    url = (
        f"sqlite:///{tmp_path / 'store.db'}"
        if request.param == "sqlite"
        else request.getfixturevalue("postgres_database")
    )
    made = Database(url, pool_size=1)
    upgrade(made)
    yield made
    made.close()


def scrambled(most: int) -> str:
    """Of so many bytes, and too irregular for PostgreSQL to compress into its limit."""
    return "".join(chr(0x1F300 + (number * 7919) % 1_000) for number in range(most // 4))


def test_the_longest_texts_that_are_accepted_fit_every_index(database: Database) -> None:
    settings = load_settings(
        max_tag_bytes=MAX_TAG_BYTES,
        namespace="n" * 64,
        database_url=str(database.url.render_as_string(hide_password=False)),
    )
    new = new_run(
        settings,
        scrambled(MAX_NAME_BYTES),
        {},
        key=scrambled(MAX_KEY_BYTES),
        tags={scrambled(MAX_TAG_BYTES): scrambled(MAX_TAG_BYTES - 4)},
        queue=scrambled(MAX_NAME_BYTES),
        alias=scrambled(4 * 255),
    )
    first = database.transact(lambda connection: submit_run(connection, new))
    another = replace(new, run_id=new_run_id())  # a repeated submission, with the same id, would find its own run
    again = database.transact(lambda connection: submit_run(connection, another))
    assert (first.created, again.created, again.run_id) == (True, False, first.run_id)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"key": FOUR_BYTES * 1_000}, "1 to 2000 bytes in UTF-8, found .* of 4000 bytes"),
        ({"key": "x" * 2_001}, "of 2001 bytes"),
        ({"key": ""}, "an empty text"),
        ({"key": "a\x00"}, "NUL"),
        ({"key": 7}, "found 7"),
        ({"queue": FOUR_BYTES * 38}, "150 bytes in UTF-8, found .* of 152 bytes"),
    ],
)
def test_what_is_longer_is_refused_with_the_limit_and_what_was_found(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        new_run(load_settings(), "agent", {}, **given)


@pytest.mark.parametrize("name", [FOUR_BYTES * 38, "x" * 151, "two\nlines", "half \ud800"])
def test_names_of_declarations_are_refused_where_they_are_written(name: str) -> None:
    async def body() -> None: ...

    with pytest.raises(DeclarationError, match="printable text in UTF-8"):
        agent(name=name)(body)
    with pytest.raises(DeclarationError, match="queue="):
        agent(queue=name)(body)
    with pytest.raises(DeclarationError, match="printable text in UTF-8"):
        step(name=name * 2)(body)


def test_the_subject_of_a_budget_fits_its_account() -> None:
    assert budget_subject("tag:user=" + "x" * 1_000)
    with pytest.raises(InvalidInput, match="at most 2405 bytes"):
        budget_subject("tag:user=" + FOUR_BYTES * 700)
    with pytest.raises(InvalidInput, match="NUL"):
        budget_subject("agent=a\x00b")


@pytest.mark.parametrize("name", ["a\x00b", "half a pair \ud800", "x" * 100_000])
def test_a_runs_id_that_no_store_can_be_asked_for_is_not_found(database: Database, name: str) -> None:
    client = Client(load_settings(database_url=str(database.url.render_as_string(hide_password=False))))
    with pytest.raises(NotFound) as missing:
        client.run(name)
    client.database.close()
    assert len(missing.value.message) < 400
