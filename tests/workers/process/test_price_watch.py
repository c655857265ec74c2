"""One price book for a process, read apart from everything that spends, and what a worker's calls cost by it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from sqlalchemy import text

from paidonce import agent, record_usage, step
from paidonce_models.database.transactions import Database
from paidonce_models.pricing import PriceRow
from paidonce_models.store.ledger.prices import add_price_rows
from paidonce_workers.process import price_watch
from paidonce_workers.process.price_watch import PriceWatch
from tests.services.waiting import wait_until
from tests.workers.stand import NAMESPACE, Stand, StandWorker

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


@step(name="priced.ask")
def ask() -> None:
    record_usage(provider="openai", model="gpt-4o-mini", input_tokens=100, output_tokens=10)


@agent(name="priced")
async def priced() -> None:
    await ask()


@pytest.fixture
def stand() -> Iterator[Stand]:
    with Stand() as made:
        yield made


@pytest.fixture
def watch(stand: Stand) -> Iterator[PriceWatch]:
    made = PriceWatch(database=stand.database, namespace=NAMESPACE)
    yield made
    made.stop()


def own_price(stand: Stand, nanousd_per_token: int, begins: datetime = LONG_AGO) -> None:
    row = PriceRow(
        provider="openai",
        model="gpt-4o-mini",
        valid_from=begins,
        input_nanousd_per_mtok=nanousd_per_token * 10**6,
        output_nanousd_per_mtok=0,
    )
    stand.database.transact(lambda connection: add_price_rows(connection, NAMESPACE, [row]))


def cost_of_a_run(stand: Stand, worker: StandWorker) -> int | None:
    run_id = stand.submit(priced)
    stand.serve(worker)
    assert stand.run(run_id).state == "succeeded"
    return stand.attempts(run_id)[0].cost_nanousd


def test_a_workers_calls_are_priced_by_the_rows_of_its_store(stand: Stand, watch: PriceWatch) -> None:
    worker = stand.worker(priced, ask, prices=watch.current)
    assert cost_of_a_run(stand, worker) == 100 * 150 + 10 * 600
    own_price(stand, 7)
    watch.read()
    assert cost_of_a_run(stand, worker) == 100 * 7


def test_a_row_is_found_without_a_restart(stand: Stand, watch: PriceWatch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(price_watch, "READ_EVERY_SECONDS", 0.01)
    watch.start()
    assert watch.current().rows == ()
    own_price(stand, 7)
    wait_until(lambda: len(watch.current().rows) == 1, "the watch has read the new row")


def test_rows_that_have_not_changed_keep_the_book_and_what_it_remembers(stand: Stand, watch: PriceWatch) -> None:
    own_price(stand, 7)
    watch.read()
    book = watch.current()
    watch.read()
    assert watch.current() is book


def test_rows_that_overlap_all_the_same_leave_the_book_as_it_was(
    stand: Stand, watch: PriceWatch, caplog: pytest.LogCaptureFixture
) -> None:
    own_price(stand, 7)
    own_price(stand, 8, datetime(2021, 1, 1, tzinfo=UTC))
    watch.read()
    book = watch.current()
    with stand.database.write() as connection:
        connection.execute(text("UPDATE price_rows SET valid_until_us = valid_until_us + 1 WHERE valid_until_us > 0"))
    with caplog.at_level(logging.WARNING):
        watch.read()
    assert watch.current() is book
    assert "price rows overlap: own:" in caplog.text


def test_a_store_without_the_table_costs_a_line_in_the_log_and_no_more(
    stand: Stand, watch: PriceWatch, caplog: pytest.LogCaptureFixture
) -> None:
    with stand.database.write() as connection:
        connection.execute(text("ALTER TABLE price_rows RENAME TO elsewhere"))
    watch.read()
    assert "price rows could not be read" in caplog.text
    assert cost_of_a_run(stand, stand.worker(priced, ask, prices=watch.current)) == 100 * 150 + 10 * 600


def test_a_price_never_waits_for_the_store(stand: Stand, watch: PriceWatch, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, go_on = threading.Event(), threading.Event()
    read = Database.read

    def slow(database: Database) -> object:
        reading.set()
        assert go_on.wait(30)
        return read(database)

    monkeypatch.setattr(Database, "read", slow)
    thread = threading.Thread(target=watch.read)
    thread.start()
    try:
        assert reading.wait(30)
        assert watch.current().rows == ()
    finally:
        go_on.set()
        thread.join()
