"""The connections of one process to the Redis that circuits are shared in; nobody waits for them for long.

Owns one promise: ``Link.run`` returns or raises ``StoreAway`` within the time
it is given, whatever the server, the network or the name server does. So
connections are made by a thread of their own (a name look-up cannot be given a
time limit), and callers only take what is ready. The first caller who is
answered too late, or with an error, declares the store *away*: from then on
everybody is refused at once, and only that thread asks, with growing pauses,
until the store does what is needed again. One line in the log says so each time.

Callers may be struck by an interrupt at any bytecode (``interrupt``), so they
touch no lock but those that are taken and freed in C, wait for a connection
without holding any, and leave behind nothing that is counted.

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
from functools import partial
from importlib import resources
from queue import Empty, SimpleQueue
from typing import Final

from redis.connection import AbstractConnection
from redis.exceptions import NoScriptError, RedisError

from paidonce_models.log_texts import loggable
from paidonce_workers.breakers.own_threads import Begin

log = logging.getLogger(__name__)

MOST_CONNECTIONS: Final = 32
LOOK_UP_SECONDS: Final = 0.02
"""How often whoever waits for a connection looks whether the store is away by now."""
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
        tell: Callable[[Callable[[], None]], None],
        begin: Begin,
    ) -> None:
        """``check`` raises unless the server behind a fresh connection does what is needed; ``setting`` names it.

        ``tell`` has something said soon, by another thread than those that ask and connect; ``begin`` begins a thread.
        """
        self._make = make
        self._check = check
        self._address = address
        self._setting = setting
        self._tell = tell
        self._begin_thread = begin
        self._lock = threading.Lock()
        self._idle: SimpleQueue[AbstractConnection] = SimpleQueue()
        # Weak, so that a connection whose user was interrupted between two lines is not counted for ever.
        self._live: list[weakref.ref[AbstractConnection]] = []
        self._is_connecting = False
        self._connect_again_from = 0.0
        self._grow_from = 0.0
        self._away_since: float | None = None
        self._unsaid: str | None = None
        """Why the store is away, until that is told."""
        self._said_since: float | None = None
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
        with self._lock:
            self._closing.set()
            idle = self._empty_idle()
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
            raise StoreAway(_said(error)) from error
        except BaseException:
            self._drop(connection)  # an interrupt: the answer is still on its way
            raise
        self._give(connection)
        return answer

    def _take(self, deadline: float) -> AbstractConnection:
        while True:
            if self._closing.is_set():
                raise StoreAway("closed")
            if self.is_away:
                # Both are done, unless whoever declared it away was interrupted right then.
                self._have_it_said()
                self._start_connector()
                raise StoreAway("away")
            connection = self._next_idle(deadline)
            if connection is not None:
                if _is_sound(connection):
                    return connection
                self._forget(connection)
                del connection
            elif time.monotonic() >= deadline:
                break
        if self._how_many_live() == 0:
            self._lose("no connection in time")
        raise StoreAway("no connection in time")

    def _next_idle(self, deadline: float) -> AbstractConnection | None:
        """One that is idle, or becomes so in a moment. An interrupt may lose it, and then another one is made."""
        try:
            return self._idle.get_nowait()
        except Empty:
            if self._how_many_live() < MOST_CONNECTIONS and time.monotonic() >= self._grow_from:
                self._start_connector()
        try:
            return self._idle.get(timeout=max(0.0, min(deadline - time.monotonic(), LOOK_UP_SECONDS)))
        except Empty:
            return None

    def _give(self, connection: AbstractConnection) -> None:
        with self._lock:
            keep = not self.is_away and not self._closing.is_set()
            if keep:
                self._idle.put(connection)
        if not keep:
            connection.disconnect()

    def _drop(self, connection: AbstractConnection) -> None:
        connection.disconnect()
        self._forget(connection)

    def _forget(self, connection: AbstractConnection) -> None:
        with self._lock:
            self._live = [each for each in self._live if each() not in (None, connection)]

    def _how_many_live(self) -> int:
        return sum(each() is not None for each in self._live)

    def _empty_idle(self) -> list[AbstractConnection]:
        """Under the lock, so that none is given back meanwhile."""
        idle = []
        while True:
            try:
                idle.append(self._idle.get_nowait())
            except Empty:
                return idle

    def _start_connector(self) -> None:
        now = time.monotonic()
        if self._is_connecting or self._closing.is_set() or now < self._connect_again_from:
            return
        self._begin_thread(self._connect, "paidonce-breakers-connect")
        # Last: a caller who is interrupted before leaves it to the next. And others need not order it as well.
        self._connect_again_from = now + LOOK_UP_SECONDS

    def _connect(self) -> None:
        """In a thread. One at a time: a name server that hangs holds one thread, not one for each call."""
        with self._lock:
            if self._is_connecting or not (self.is_away or self._idle.empty()):
                return  # several callers began one at once
            self._is_connecting = True
        try:
            while not self._closing.is_set():
                if self._connect_once():
                    return
        finally:
            self._is_connecting = False
            self._connect_again_from = 0.0

    def _connect_once(self) -> bool:
        """Make one connection, after a pause if the store is away; whether there is nothing left to do."""
        if self.is_away and self._closing.wait(self._pause_seconds):
            return True
        try:
            connection = self._make()
            connection.connect()
            self._check(connection)
        except (RedisError, OSError) as error:
            with self._lock:
                if self._how_many_live() and not self.is_away:
                    self._grow_from = time.monotonic() + FIRST_PAUSE_SECONDS
                    return True  # the connections that are there will do
            self._lose(_said(error))
            self._pause_seconds = min(self._pause_seconds * 2, LONGEST_PAUSE_SECONDS)
            return False
        self._welcome(connection)
        return True

    def _welcome(self, connection: AbstractConnection) -> None:
        self._have_it_said()
        away_since = self._away_since
        if away_since is not None:
            self._tell(partial(self._say_that_it_is_back, time.monotonic() - away_since))
        with self._lock:
            is_closing = self._closing.is_set()
            if not is_closing:
                if away_since is not None:
                    self._back_since = time.monotonic()
                    self._away_since = None
                self._live = [*(each for each in self._live if each() is not None), weakref.ref(connection)]
                self._idle.put(connection)
        if is_closing:
            connection.disconnect()

    def _lose(self, why: str) -> None:
        """Declare the store away; once, whoever finds out first."""
        with self._lock:
            if self.is_away or self._closing.is_set():
                return
            now = time.monotonic()
            if now - self._back_since >= STEADY_SECONDS:
                self._pause_seconds = FIRST_PAUSE_SECONDS
            self._unsaid = why
            self._away_since = now
            self._live = []
            idle = self._empty_idle()
        self._have_it_said()
        self._start_connector()
        for connection in idle:
            connection.disconnect()

    def _have_it_said(self) -> None:
        why, away_since = self._unsaid, self._away_since
        if why is not None and away_since is not None:
            self._tell(partial(self._say_that_it_is_away, why, away_since))
            self._unsaid = None  # last, so that a caller who is interrupted before leaves it to the next

    def _say_that_it_is_away(self, why: str, away_since: float) -> None:
        if away_since == self._said_since:
            return  # several callers had it said at once
        self._said_since = away_since
        log.warning(
            "the Redis of circuits and retry budgets (%s, %s) is away: %s. Until it is back this process decides by "
            "itself, from what it sees itself; policies with `when_store_down: refuse` let nothing through",
            self._address,
            self._setting,
            why.rstrip("."),
            extra={"event": "breaker_store_away"},
        )

    def _say_that_it_is_back(self, after_seconds: float) -> None:
        if self._closing.is_set():
            return  # nobody calls through it any more
        log.warning(
            "the Redis of circuits and retry budgets (%s, %s) is back after %.1f s: they are shared again",
            self._address,
            self._setting,
            after_seconds,
            extra={"event": "breaker_store_back"},
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
    return loggable(" ".join(str(error).split()))[:200] or type(error).__name__
