"""The committer of a process: commits what its threads hand over, all that waits at that moment in one statement.

An item that this statement did not take is committed by its own thread, in the same form, but waiting for the run's
lock.

The first thread that finds no leader becomes the leader. It takes the items that wait (and never waits for more of
them), commits them in one statement of ``batch_statement``, and tells each item's thread. It repeats this until nothing
waits, or until its own item is done and another thread's turn has come. So a lone item is committed by its own thread
without any hand-over, and there is no thread that a fork would lose.

Must never lose an item. A leader that is interrupted may have committed: everything it had taken is then in doubt, as
after a lost response, and each thread finds out by trying again. Another thread leads the items that still wait; each
waiting thread checks every second whether there still is a leader.
"""

from __future__ import annotations

import copy
import itertools
import threading
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Final

from sqlalchemy import Connection, text

from paidonce_models.database.dedicated_session import RolledBack
from paidonce_models.database.plain_statements import execute_numbered
from paidonce_models.database.transactions import Database
from paidonce_models.errors import StoreUnreachable
from paidonce_models.forks import in_child, notice_fork
from paidonce_models.store.commits.batch_statement import DIVISION_BY_ZERO, commit_items
from paidonce_models.store.commits.items import Item, Outcome

MOST_ITEMS: Final = 64
MOST_BYTES: Final = 1 << 20
"""Limits of a batch: how long one run waits must not depend on how much others write."""
_MOST_ROUNDS: Final = 8
"""How many batches a leader commits for others before another thread has its turn."""
_LOOK_AGAIN_SECONDS: Final = 1.0
_LOCK_RUN: Final = text("SELECT 1 FROM runs WHERE id = :run_id FOR UPDATE")


class _UndoneError(Exception):
    """A part of the statement found fewer rows than had passed: the transaction must be undone."""


class Committer:
    """Commits items on a PostgreSQL store. Thread-safe."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._begin_empty()
        in_child(self, Committer._begin_empty)

    def _begin_empty(self) -> None:
        """Also in a forked child, where the threads that wait do not exist."""
        self._guard = threading.Lock()
        self._waiting: deque[Item] = deque()
        self._leader: Item | None = None
        self._taken: Sequence[Item] = ()
        """The batch that the leader is committing. If it is still here when another thread leads, it is in doubt."""

    def commit(self, item: Item) -> bool:
        """Commit the item. False: nothing was written, and the caller must use the statements that handle every case.

        False if a guard fails, or if the item is large: no other item may have to wait for its bytes.

        Raises ``StoreUnreachable`` if it is unknown whether it is committed, ``StatementRefused`` if the store does
        not take it.
        """
        notice_fork()
        item.thread = threading.get_ident()
        if item.is_large:
            return False
        return self._commit_with_others(item) or self._commit_alone(item)

    def _commit_alone(self, item: Item) -> bool:
        """Commit it by itself: waits for whoever has locked its run, where a batch skips the run, but for no batch."""

        def work(connection: Connection) -> bool:
            connection.execute(_LOCK_RUN, {"run_id": item.run_id})
            try:
                return bool(commit_items(partial(execute_numbered, connection), [item]))
            except Exception as error:
                if getattr(error, "sqlstate", None) == DIVISION_BY_ZERO:
                    raise _UndoneError from None
                raise

        try:
            return self._database.transact(work)
        except _UndoneError:
            return False

    def _commit_with_others(self, item: Item) -> bool:
        """Commit it in a batch. False: nothing was written.

        False if its run is locked, if a guard fails, if the store refuses the batch, or if this thread is itself in the
        middle of a commit.
        """
        try:
            if not self._accepts(item):
                return False
            while not item.is_settled:
                if self._leads(item):
                    self._lead(item)
                    self._resign(item)
                else:
                    item.sleep(_LOOK_AGAIN_SECONDS)
        finally:
            # Even if this thread is interrupted from here on: others see that it no longer leads, and no batch takes
            # the item.
            item.has_left = True
            self._withdraw(item)
        if item.error is not None:
            raise item.error
        return item.outcome is Outcome.COMMITTED

    def _accepts(self, item: Item) -> bool:
        """Put the item into the queue, unless its thread is in a commit."""
        with self._guard:
            leader = self._leader
            if leader is not None and leader.thread == item.thread and not leader.has_left:
                return False
            self._waiting.append(item)
            return True

    def _leads(self, item: Item) -> bool:
        with self._guard:
            if self._leader is None or self._leader.has_left:
                self._leader = item
            return self._leader is item

    def _lead(self, own: Item) -> None:
        self._settle_interrupted()
        for done in itertools.count():
            batch = self._take()
            if not batch or (own.is_settled and done >= _MOST_ROUNDS):
                return
            self._taken = batch
            try:
                self._commit(batch)
            finally:
                self._settle_interrupted()

    def _take(self) -> list[Item]:
        """The items that have waited longest; they stay in the queue until they are settled.

        Of one run, a batch holds either one exclusive item or any number of others. An item that does not fit waits for
        the next batch, and so do the later items of its run.
        """
        with self._guard:
            while self._waiting and self._waiting[0].is_settled:
                self._waiting.popleft()
            batch: list[Item] = []
            is_closed: dict[str, bool] = {}
            size = 0
            for item in self._waiting:
                if item.is_settled:
                    continue
                if item.run_id in is_closed and (item.is_exclusive or is_closed[item.run_id]):
                    is_closed[item.run_id] = True
                    continue
                size += item.size
                if batch and (size > MOST_BYTES or len(batch) == MOST_ITEMS):
                    break
                is_closed[item.run_id] = item.is_exclusive
                batch.append(item)
            return batch

    def _commit(self, batch: Sequence[Item]) -> None:
        try:
            committed = commit_items(self._database.execute_dedicated, batch)
        except RolledBack:
            # Split: a deadlock, a refused value or a lock concerns only one of them. Each is tried alone, in its own
            # thread, where it is retried or refused with its own error.
            for item in batch:
                item.settle(Outcome.NOT_TAKEN)
        except Exception as error:  # noqa: BLE001 - every thread gets it
            for item in batch:
                item.settle(error=copy.copy(error))
        else:
            for item in batch:
                item.settle(Outcome.COMMITTED if item.key in committed else Outcome.NOT_TAKEN)

    def _settle_interrupted(self) -> None:
        """If a leader was interrupted during a commit, it is unknown which of the items it had taken are committed."""
        for item in self._taken:
            if not item.is_settled:
                item.settle(error=StoreUnreachable(f"the commit of run {item.run_id} was interrupted; try again"))
        self._taken = ()

    def _resign(self, item: Item) -> None:
        """Stop leading. Threads that came while there was a leader are asleep: wake the next one, which must lead."""
        with self._guard:
            if self._leader is not item:
                return
            self._leader = None
            waiting = next((each for each in self._waiting if not each.is_settled), None)
        if waiting is not None:
            waiting.wake()

    def _withdraw(self, item: Item) -> None:
        with self._guard:
            if not item.is_settled:
                item.outcome = Outcome.NOT_TAKEN
        self._resign(item)
