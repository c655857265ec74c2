"""The committer of a process: commits what its threads hand over, whatever waits at that moment in one statement.

What that statement has not taken its thread commits by itself, in the same form but with the run's lock waited for.

The first thread that finds nobody committing becomes the leader: it takes what waits, never waits for more, commits it
in one statement of ``batch_statement``, tells each item's thread, and goes on until its own item is done and nothing
waits, or somebody else has his turn. So a lone item is committed by its own thread without any hand-over, and there is
no thread that a fork would lose.

Must never lose an item. A leader that is interrupted has perhaps committed: then all that it had taken is in doubt, as
after a lost response, and each thread finds out by trying again. What waits is led by the next; a follower looks every
second whether there is still a leader.
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
"""Of a batch: what one run waits for must not depend on how much others write."""
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
        """What the leader commits. Still there when another leads: in doubt."""

    def commit(self, item: Item) -> bool:
        """Commit the item; False: nothing is written, and the statements for every case must decide.

        That is so if a guard fails, or if the item is large: no other may have to wait for its bytes.

        Raises ``StoreUnreachable`` if it is unknown whether it is committed, ``StatementRefused`` if the store does
        not take it.
        """
        notice_fork()
        item.thread = threading.get_ident()
        if item.is_large:
            return False
        return self._commit_with_others(item) or self._commit_alone(item)

    def _commit_alone(self, item: Item) -> bool:
        """With a wait for whoever has locked its run, which a batch skips, and for nobody who waits for a batch."""

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
        """In a batch; False: nothing was written.

        That is so if its run is locked or a guard fails, if the store refuses the batch, or if this thread is in the
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
            # Whatever strikes from here on: who comes next finds that this leader is none, and no batch takes the item.
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

        Of one run either one that is exclusive or others; what does not go with these waits for the next batch, and
        so does what comes behind it.
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
            # Split: a deadlock, a refused value or a lock is the matter of one of them. Each is tried alone, in its own
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
        """A leader was interrupted in the middle: nobody knows what is committed of what it had taken."""
        for item in self._taken:
            if not item.is_settled:
                item.settle(error=StoreUnreachable(f"the commit of run {item.run_id} was interrupted; try again"))
        self._taken = ()

    def _resign(self, item: Item) -> None:
        """Whoever came while there was a leader sleeps: the next of them must lead."""
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
