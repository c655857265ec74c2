"""The price book of one process: list prices and the store's own price rows, refreshed periodically.

Owns when the rows are read: once before the process takes its first step, then on a
separate thread, which delays neither a heartbeat nor a call. A call is priced with
the book that is there. If the store is away or rows are unusable, the book stays as
it was.
"""

from __future__ import annotations

import logging
import threading
from typing import Final

from paidonce_models.database.transactions import Database
from paidonce_models.errors import PaidonceError
from paidonce_models.pricing import PriceBook
from paidonce_models.privacy.log_texts import failure_of
from paidonce_models.store.ledger.prices import read_price_rows

log = logging.getLogger(__name__)

READ_EVERY_SECONDS: Final = 30.0
"""How long a worker may not know of a new row, in seconds."""
FIRST_READ_AGAIN_SECONDS: Final = 1.0
"""Seconds between tries until the rows were read once: until then calls are priced by the list alone."""


class PriceWatch:
    """Keeps a ``PriceBook`` up to date with the store. Thread-safe."""

    def __init__(self, *, database: Database, namespace: str) -> None:
        self._database = database
        self._namespace = namespace
        self._book = PriceBook()
        self._was_read = False
        self._was_told = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="paidonce-prices", daemon=True)

    def current(self) -> PriceBook:
        """The book to price a call with. Opens no connection and does not block."""
        return self._book

    def start(self) -> None:
        """Read the rows now and then periodically; retries a store that is away."""
        self.read()
        self._thread.start()

    def stop(self) -> None:
        """Stop reading; waits for a read in progress."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def read(self) -> None:
        """Load what the store holds now. Never raises."""
        try:
            with self._database.read() as connection:
                rows = [view.row for view in read_price_rows(connection, self._namespace)]
            book = PriceBook(rows)
        except PaidonceError as error:
            log.log(
                logging.DEBUG if self._was_told else logging.WARNING,
                "price rows could not be read, those known before are used: %s",
                error.message,
                extra={"event": "prices_not_read"},
            )
            self._was_told = True
            return
        except Exception as error:  # noqa: BLE001 - told by type and place
            log.error(
                "price rows could not be read, those known before are used: %s",
                failure_of(error),
                extra={"event": "prices_not_read"},
            )
            return
        self._was_read, self._was_told = True, False
        if book.rows != self._book.rows:
            # A book remembers its look-ups, so an unchanged one is kept.
            self._book = book
            log.info("calls are priced with %d own price rows", len(rows), extra={"event": "prices_read"})

    def _serve(self) -> None:
        while not self._stopping.wait(READ_EVERY_SECONDS if self._was_read else FIRST_READ_AGAIN_SECONDS):
            self.read()
