"""The connections of one process to the Redis that circuits are shared in; nobody waits for them for long.

Owns one promise: ``Link.run`` returns or raises ``StoreAway`` within the time
it is given, whatever the server, the network or the name server does. So
connections are made by a thread of their own (a name look-up cannot be given a
time limit), and callers only take what is ready. The first caller who is
answered too late, or with an error, declares the store *away*: from then on
everybody is refused at once, and only that thread asks, with growing pauses,
until the store does what is needed again. One line in the log says so each time.

Never retries a script: whether it was executed is not known. Fork-safe as far
as a forked child makes a ``Link`` of its own.
"""

# mypy: allow-untyped-calls
# because redis-py's connections are typed in part only.

from __future__ import annotations

import hashlib
import logging
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Final

from redis.connection import AbstractConnection
from redis.exceptions import NoScriptError, RedisError

log = logging.getLogger(__name__)

MOST_CONNECTIONS: Final = 32
FIRST_PAUSE_SECONDS: Final = 0.5
LONGEST_PAUSE_SECONDS: Final = 5.0
STEADY_SECONDS: Final = 30.0
"""A store that goes away again within this time is asked after pauses that go on growing."""

Argument = str | int | float


class StoreAway(Exception):
    """The store did not answer, or is not asked because it did not answer lately. Never leaves this package."""


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script of this package."""

    name: str
    text: str = field(repr=False)
    sha: str

    @classmethod
    def load(cls, name: str) -> Script:
        """Read it from the package."""
        text = resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
        return cls(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


class Link:
    """Connections of one process, and whether the store is away. Safe to use from many threads."""

    def __init__(
        self,
        *,
        make: Callable[[], AbstractConnection],
        check: Callable[[AbstractConnection], None],
        address: str,
        setting: str,
    ) -> None:
        """``check`` raises unless the server behind a fresh connection does what is needed; ``setting`` names it."""
        self._make = make
        self._check = check
        self._address = address
        self._setting = setting
        self._changed = threading.Condition(threading.Lock())
        self._idle: list[AbstractConnection] = []
        # Weak, so that a connection whose user was interrupted between two lines is not counted for ever.
        self._live: weakref.WeakSet[AbstractConnection] = weakref.WeakSet()
        self._connector: threading.Thread | None = None
        self._grow_from = 0.0
        self._away_since: float | None = None
        self._back_since = time.monotonic() - STEADY_SECONDS
        self._pause_seconds = FIRST_PAUSE_SECONDS
        self._closing = threading.Event()

    @property
    def address(self) -> str:
        """Of the Redis, without its password."""
        return self._address

    @property
    def is_away(self) -> bool:
        """Whether scripts are refused at present."""
        return self._away_since is not None

    @property
    def pause_seconds(self) -> float:
        """How long until a store that is away is asked again, at most."""
        return self._pause_seconds

    def run(self, script: Script, key: str, arguments: Sequence[Argument], *, limit_seconds: float) -> object:
        """The script's answer. Raises ``StoreAway`` when the time is over, and at once while the store is away."""
        return self._use(
            lambda connection, deadline: evaluate(connection, script, key, arguments, deadline), limit_seconds
        )

    def command(self, *parts: Argument, limit_seconds: float) -> object:
        """The answer to a plain command, under the same rules."""
        return self._use(lambda connection, deadline: exchange(connection, parts, deadline), limit_seconds)

    def close(self) -> None:
        """Close what is idle; scripts are refused from now on."""
        self._closing.set()
        with self._changed:
            idle, self._idle = self._idle, []
            self._changed.notify_all()
        for connection in idle:
            connection.disconnect()

    def _use(self, act: Callable[[AbstractConnection, float], object], limit_seconds: float) -> object:
        deadline = time.monotonic() + limit_seconds
        connection = self._take(deadline)
        try:
            answer = act(connection, deadline)
        except (RedisError, OSError) as error:
            self._drop(connection)
            self._lose(_said(error))
            raise StoreAway(str(error)) from error
        except BaseException:
            self._drop(connection)  # an interrupt: the answer is still on its way
            raise
        self._give(connection)
        return answer

    def _take(self, deadline: float) -> AbstractConnection:
        with self._changed:
            while True:
                if self._closing.is_set():
                    raise StoreAway("closed")
                if self._away_since is not None:
                    self._start_connector()  # it runs, unless whoever declared it away was interrupted right then
                    raise StoreAway("away")
                while self._idle:
                    connection = self._idle.pop()
                    if _is_sound(connection):
                        return connection
                    self._live.discard(connection)
                if len(self._live) < MOST_CONNECTIONS and time.monotonic() >= self._grow_from:
                    self._start_connector()
                left = deadline - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    break
            there_is_none = not self._live
        if there_is_none:
            self._lose("no connection in time")
        raise StoreAway("no connection in time")

    def _give(self, connection: AbstractConnection) -> None:
        with self._changed:
            keep = self._away_since is None and not self._closing.is_set()
            if keep:
                self._idle.append(connection)
                self._changed.notify()
        if not keep:
            connection.disconnect()

    def _drop(self, connection: AbstractConnection) -> None:
        connection.disconnect()
        with self._changed:
            self._live.discard(connection)

    def _start_connector(self) -> None:
        """Under the lock. One at a time: a name server that hangs holds one thread, not one for each call."""
        if self._closing.is_set() or (self._connector is not None and self._connector.is_alive()):
            return
        self._connector = threading.Thread(target=self._connect, name="paidonce-breakers-connect", daemon=True)
        self._connector.start()

    def _connect(self) -> None:
        """Make one connection; while the store is away, try until it is back."""
        while not self._closing.is_set():
            if self.is_away and self._closing.wait(self._pause_seconds):
                return
            try:
                connection = self._make()
                connection.connect()
                self._check(connection)
            except (RedisError, OSError) as error:
                with self._changed:
                    if self._live and self._away_since is None:
                        self._grow_from = time.monotonic() + FIRST_PAUSE_SECONDS
                        self._connector = None
                        return  # the connections that are there will do
                self._lose(_said(error))
                self._pause_seconds = min(self._pause_seconds * 2, LONGEST_PAUSE_SECONDS)
                continue
            if self._welcome(connection):
                return

    def _welcome(self, connection: AbstractConnection) -> bool:
        with self._changed:
            if self._closing.is_set():
                connection.disconnect()
                return True
            away_since, self._away_since = self._away_since, None
            if away_since is not None:
                self._back_since = time.monotonic()
            self._live.add(connection)
            self._idle.append(connection)
            self._connector = None  # this thread is about to end
            self._changed.notify_all()
        if away_since is not None:
            log.warning(
                "the Redis of circuits and retry budgets (%s, %s) is back after %.1f s: they are shared again",
                self._address,
                self._setting,
                time.monotonic() - away_since,
                extra={"event": "breaker_store_back"},
            )
        return True

    def _lose(self, why: str) -> None:
        """Declare the store away; once, whoever finds out first."""
        with self._changed:
            if self._away_since is not None or self._closing.is_set():
                return
            now = time.monotonic()
            self._away_since = now
            if now - self._back_since >= STEADY_SECONDS:
                self._pause_seconds = FIRST_PAUSE_SECONDS
            idle, self._idle = self._idle, []
            self._live.clear()
            self._start_connector()
            self._changed.notify_all()
        for connection in idle:
            connection.disconnect()
        log.warning(
            "the Redis of circuits and retry budgets (%s, %s) is away: %s. Until it is back this process decides by "
            "itself, from what it sees itself; policies with `when_store_down: refuse` let nothing through",
            self._address,
            self._setting,
            why,
            extra={"event": "breaker_store_away"},
        )


def evaluate(
    connection: AbstractConnection, script: Script, key: str, arguments: Sequence[Argument], deadline: float
) -> object:
    """Run a script on this connection; a server that does not know it yet is told it."""
    try:
        return exchange(connection, ("EVALSHA", script.sha, 1, key, *arguments), deadline)
    except NoScriptError:
        return exchange(connection, ("EVAL", script.text, 1, key, *arguments), deadline)


def exchange(connection: AbstractConnection, parts: Sequence[Argument], deadline: float) -> object:
    """One command and its answer. Waits in ``can_read``, which takes a time limit in every redis-py."""
    connection.send_command(*parts)
    if not connection.can_read(max(0.0, deadline - time.monotonic())):
        raise TimeoutError("no answer in time")
    answer: object = connection.read_response()
    return answer


def _is_sound(connection: AbstractConnection) -> bool:
    """Whether an idle connection is still open: then nothing is to be read from it."""
    try:
        readable = connection.can_read(0)
    except (RedisError, OSError):
        return False
    if readable:
        connection.disconnect()
    return not readable


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
