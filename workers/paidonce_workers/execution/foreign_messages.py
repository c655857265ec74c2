"""Messages for runs of another namespace: dropped and logged."""

from __future__ import annotations

import logging

from paidonce.broker.flood_log import FloodLog
from paidonce_models.database.transactions import Database
from paidonce_models.errors import StoreError
from paidonce_models.privacy.log_texts import loggable, shown_id
from paidonce_models.store.runs.runs_head import namespace_of

log = logging.getLogger(__name__)


class ForeignMessages:
    """The foreign messages of one process."""

    def __init__(self, database: Database, namespace: str) -> None:
        self._database = database
        self._namespace = namespace
        self._flood_log = FloodLog(log)

    def note(self, run_id: str) -> None:
        """Log a message that found no step here if its run belongs to another namespace.

        Dropping it loses nothing: the sweeper of that namespace sends another one, to its own queue.
        """
        try:
            with self._database.read() as connection:
                found = namespace_of(connection, run_id)
        except StoreError as error:
            log.debug("not checked: %s", error)
            return
        if found in (None, self._namespace):
            return
        self._flood_log.report(
            "a message was for a run of another namespace and was dropped",
            logging.WARNING,
            "a message for run %s of namespace %s came to a worker of namespace %s and was dropped; nothing was "
            "executed, and its own workers get another one",
            shown_id(run_id),
            loggable(found),
            self._namespace,
            event="foreign_message",
        )

    def close(self) -> None:
        """Log what has only been counted."""
        self._flood_log.close()
