"""Own price rows in the store: dated, ended once, never rewritten, on SQLite and PostgreSQL."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from paidonce_models.database.version_table import VERSION_TABLE
from paidonce_models.errors import InvalidInput
from paidonce_models.instants import moment_of
from paidonce_models.pricing import PriceRow
from paidonce_models.store.ledger.prices import Addition, Change, add_price_rows, read_price_rows
from paidonce_models.tables import METADATA
from tests.models.stored_runs import NAMESPACE, START_US, Store


def day(number: int) -> datetime:
    return datetime(2026, 11, number, tzinfo=UTC)


def row(begins: int, price: int = 1_000, **more: object) -> PriceRow:
    values: dict[str, object] = {
        "provider": "openai",
        "model": "gpt-4o",
        "valid_from": day(begins),
        "input_nanousd_per_mtok": price,
        "cache_read_nanousd_per_mtok": None,
        "output_nanousd_per_mtok": 2 * price,
        "note": "contract 7",
    }
    return PriceRow(**(values | more))  # type: ignore[arg-type] # a row with some values replaced


def add(store: Store, *rows: PriceRow, namespace: str = NAMESPACE) -> list[Addition]:
    return store.transact(add_price_rows, namespace, rows)


def stretches(store: Store) -> list[tuple[datetime, datetime | None, int]]:
    views = store.read(read_price_rows, NAMESPACE)
    return [(view.row.valid_from, view.row.valid_until, view.row.input_nanousd_per_mtok) for view in views]


def test_a_row_comes_back_as_it_was_given(store: Store) -> None:
    (addition,) = add(store, row(1, provider=None, model="Llama-*", valid_until=day(2)))
    (view,) = store.read(read_price_rows, NAMESPACE)
    assert view.row == addition.row
    assert (view.row.name, view.row.note, view.row.cache_read_nanousd_per_mtok) == ("*/llama-*", "contract 7", None)
    assert abs(view.created_at - moment_of(START_US)) < timedelta(minutes=5)


def test_a_new_row_ends_the_one_that_holds_until_further_notice(store: Store) -> None:
    (first,) = add(store, row(1, 1_000))
    (second,) = add(store, row(10, 2_000))
    assert second.ended is not None and second.ended.id == first.row.id
    assert stretches(store) == [(day(1), day(10), 1_000), (day(10), None, 2_000)]


def test_rows_of_one_file_follow_each_other_whatever_their_order(store: Store) -> None:
    add(store, row(20, 3_000), row(1, 1_000), row(10, 2_000))
    assert stretches(store) == [(day(1), day(10), 1_000), (day(10), day(20), 2_000), (day(20), None, 3_000)]


def test_a_row_that_is_there_already_is_left_as_it_is(store: Store) -> None:
    add(store, row(1, 1_000), row(10, 2_000))
    again = add(store, row(1, 1_000), row(10, 2_000), row(20, 3_000))
    assert [addition.change for addition in again] == [Change.UNCHANGED, Change.UNCHANGED, Change.ADDED]
    assert len(stretches(store)) == 3


@pytest.mark.parametrize(
    ("wrong", "remedy"),
    [
        (row(10, 9_000), "rows are never rewritten; let the new one begin later"),
        (row(5, 9_000), r"end the new row at 2026-11-10T00:00:00\+00:00 or before"),
        (row(2, 9_000, valid_until=day(11)), r"end the new row at 2026-11-10T00:00:00\+00:00 or before"),
    ],
)
def test_an_overlap_is_refused_naming_both_rows_and_nothing_is_changed(
    store: Store, wrong: PriceRow, remedy: str
) -> None:
    (first,) = add(store, row(10, 1_000))
    with pytest.raises(InvalidInput, match=rf"own:{first.row.id} openai/gpt-4o holds .* the new row .* {remedy}"):
        add(store, row(1, model="other"), wrong)
    assert stretches(store) == [(day(10), None, 1_000)]


def test_a_row_with_an_end_is_not_cut_short(store: Store) -> None:
    add(store, row(1, 1_000, valid_until=day(20)))
    with pytest.raises(InvalidInput, match=r"let the new row begin at 2026-11-20T00:00:00\+00:00 or after"):
        add(store, row(10, 2_000))
    add(store, row(20, 2_000))
    assert stretches(store) == [(day(1), day(20), 1_000), (day(20), None, 2_000)]


def test_other_models_providers_and_namespaces_do_not_overlap(store: Store) -> None:
    add(store, row(1), row(1, model="gpt-4o*"), row(1, provider=None), row(1, provider="azure"))
    add(store, row(1), namespace="another")
    assert len(store.read(read_price_rows, NAMESPACE)) == 4
    assert len(store.read(read_price_rows, "another")) == 1


def test_two_writers_at_once_leave_no_overlap(store: Store) -> None:
    ready = threading.Barrier(4)
    refused: list[InvalidInput] = []

    def write(number: int) -> None:
        ready.wait()
        try:
            add(store, row(number + 1, number))
        except InvalidInput as error:
            refused.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = stretches(store)
    assert len(found) + len(refused) == 4
    assert all(earlier[1] == later[0] for earlier, later in pairwise(found))
    assert [end for _, end, _ in found].count(None) == 1


def test_the_migrations_make_the_tables_that_the_code_declares(store: Store) -> None:
    with store.database.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "version_table": VERSION_TABLE})
        assert compare_metadata(context, METADATA) == []
