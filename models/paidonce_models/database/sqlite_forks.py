"""SQLite and forks: when a process forks, no connection is open and no thread is inside SQLite.

SQLite keeps in the memory of a process which locks that process holds on a file, and its own mutexes. A child that is
forked while a connection is open takes the parent's locks for its own: it waits for ever for a write lock that is never
released, or reads without one while others write. A child forked while a thread is inside SQLite waits for ever for a
mutex. Closing the connection in the child would write to memory that is shared with the parent.
So before a fork new connections are blocked, those in use are waited for, and idle ones are closed; afterwards the
parent opens new ones as it needs them. If that was not possible, the child must not open the file.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from types import CodeType, FrameType
from typing import Any, Final

from sqlalchemy import Engine, event
from sqlalchemy.pool import PoolProxiedConnection, QueuePool
from sqlalchemy.util.queue import Empty

from paidonce_models.forks import before_fork, in_child

log = logging.getLogger(__name__)

LONGEST_WAIT_SECONDS: Final = 60.0
"""Seconds: twice as long as SQLite waits for another process's lock; a thread that takes longer is stuck."""
_LOOK_SECONDS: Final = 0.0005


class ForkGate:
    """Blocks new connections of all pools of this process while it forks."""

    def __init__(self) -> None:
        self.forks_under_way = 0
        self.held: dict[int, int] = {}
        """Who holds a connection: the identity of its record, and that of the thread."""

    def shut(self) -> None:
        """Called before a fork."""
        self.forks_under_way += 1

    def reopen(self) -> None:
        """Called after it, in the parent."""
        self.forks_under_way -= 1

    def forget(self) -> None:
        """Called in the child, where no fork is in progress and no other thread exists."""
        self.forks_under_way = 0
        self.held.clear()

    def pass_through(self) -> None:
        """Wait while the process forks. A thread that holds a connection continues: the fork waits for it."""
        while self.forks_under_way and threading.get_ident() not in self.held.values():
            time.sleep(_LOOK_SECONDS)

    def is_empty(self) -> bool:
        """Whether no other thread holds, takes or returns a connection.

        Looks at the threads instead of counting: one that was interrupted between two lines would be counted for ever.
        """
        own = threading.get_ident()
        return not any(ident != own for ident in list(self.held.values())) and not any(
            _is_inside(frame) for ident, frame in sys._current_frames().items() if ident != own
        )


the_gate: Final = ForkGate()
# The gate counts forks itself: a Database may be created or dropped while one is in progress. It is registered before
# the first of them, so that it shuts before any closes its connections, and opens when all are ready again.
before_fork(the_gate, ForkGate.shut, ForkGate.reopen)
in_child(the_gate, ForkGate.forget)


class GatedPool(QueuePool):
    """The connection pool of an SQLite file."""

    def connect(self) -> PoolProxiedConnection:
        """Take a connection; waits while the process forks."""
        the_gate.pass_through()
        return super().connect()

    def _do_return_conn(self, record: Any) -> None:
        super()._do_return_conn(record)

    def close_idle(self) -> None:
        """Like ``dispose``, which logs each time and makes a pool unusable that is used meanwhile."""
        while True:
            try:
                record = self._pool.get(False)
            except Empty:
                return
            record.close()
            self._dec_overflow()


def watch_connections(engine: Engine) -> None:
    """Tell the gate who holds a connection of this engine."""

    @event.listens_for(engine, "checkout")
    def _taken(_connection: Any, record: Any, _proxy: Any) -> None:
        the_gate.held[id(record)] = threading.get_ident()

    @event.listens_for(engine, "checkin")
    def _given_back(_connection: Any, record: Any) -> None:
        the_gate.held.pop(id(record), None)


def close_for_fork(engine: Engine | None) -> bool:
    """Called before a fork, with the gate shut: False if a connection stays open that the child will inherit."""
    until = time.monotonic() + LONGEST_WAIT_SECONDS
    while not the_gate.is_empty():
        if time.monotonic() > until:
            log.error(
                "this process forks although a transaction on the SQLite store has not ended for %.0f s; "
                "the child cannot use the store",
                LONGEST_WAIT_SECONDS,
                extra={"event": "fork_in_transaction"},
            )
            return False
        time.sleep(_LOOK_SECONDS)
    if engine is not None and isinstance(engine.pool, GatedPool):
        engine.pool.close_idle()
    return threading.get_ident() not in the_gate.held.values()


_INSIDE: Final[frozenset[CodeType]] = frozenset(
    {GatedPool.connect.__code__, GatedPool._do_return_conn.__code__, GatedPool.dispose.__code__}
)
_WAITING: Final = ForkGate.pass_through.__code__


def _is_inside(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code is _WAITING:
            return False
        if frame.f_code in _INSIDE:
            return True
        frame = frame.f_back
    return False
