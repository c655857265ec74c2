"""The connections of one process to the Redis that shares the circuits. No caller waits for it long.

Owns one promise: ``Link.run`` returns or raises ``StoreAway`` within the time that
it is given, whatever the server, the network or the name server does. So a
separate thread makes the connections (a name look-up has no time limit), and
callers only use one that is ready. The first call that gets its response too late,
or an error, declares the store *away*: from then on every call is refused at once,
and only that thread retries, with growing pauses, until the store works again.
Each change is logged once.

Never retries a script, because it is unknown whether it was executed. Fork-safe if
the forked child creates its own ``Link``.
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
from queue import Empty, SimpleQueue
from typing import Final

from redis.connection import AbstractConnection
from redis.exceptions import NoScriptError, RedisError

from paidonce_models.privacy.log_texts import failure_of, loggable

log = logging.getLogger(__name__)

MOST_CONNECTIONS: Final = 32
LOOK_UP_SECONDS: Final = 0.02
"""How often a caller that waits for a connection checks whether the store is away."""
FIRST_PAUSE_SECONDS: Final = 0.5
LONGEST_PAUSE_SECONDS: Final = 5.0
STEADY_SECONDS: Final = 30.0
"""If the store goes away again within this time, the pauses continue to grow."""

CLOSING_SECONDS: Final = 0.5

Argument = str | int | float


class StoreAway(Exception):
    """The store did not respond, or is not tried because it did not respond recently. Never leaves this package."""


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script of this package."""

    name: str
    text: str = field(repr=False)
    sha: str

    @classmethod
    def load(cls, name: str) -> Script:
        """Load it from the package."""
        text = resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
        return cls(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


class Link:
    """Connections of one process, and whether the store is away. Thread-safe."""

    def __init__(
        self,
        *,
        make: Callable[[], AbstractConnection],
        check: Callable[[AbstractConnection], None],
        address: str,
        setting: str,
    ) -> None:
        """``check`` raises unless the server of a new connection supports what is needed; ``setting`` names it."""
        self._make = make
        self._check = check
        self.address = address
        """The address of the Redis, without its password."""
        self._setting = setting
        self._lock = threading.Lock()
        self._idle: SimpleQueue[AbstractConnection] = SimpleQueue()
        # Weak: if a signal handler interrupts the user of a connection between two lines, it is not counted for ever.
        self._live: weakref.WeakSet[AbstractConnection] = weakref.WeakSet()
        self._connector: threading.Thread | None = None
        self._grow_from = 0.0
        self._away_since: float | None = None
        self._back_since = time.monotonic() - STEADY_SECONDS
        self.pause_seconds = FIRST_PAUSE_SECONDS
        """How long until a store that is away is tried again, at most."""
        self._closing = threading.Event()

    def run(self, script: Script, key: str, arguments: Sequence[Argument], *, limit_seconds: float) -> object:
        """The script's response. Raises ``StoreAway`` when the time is over, and at once while the store is away."""
        return self._use(
            lambda connection, deadline: evaluate(connection, script, key, arguments, deadline), limit_seconds
        )

    def command(self, *parts: Argument, limit_seconds: float) -> object:
        """The response to a plain command, under the same rules."""
        return self._use(lambda connection, deadline: exchange(connection, parts, deadline), limit_seconds)

    def close(self) -> None:
        """Close idle connections; from now on scripts are refused."""
        self._closing.set()
        self._disconnect_idle()
        connector = self._connector
        if connector is not None:
            connector.join(CLOSING_SECONDS)  # it may have to log that the store is away

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
            self._drop(connection)  # Ctrl-C: the response is still on its way
            raise
        self._give(connection)
        return answer

    def _take(self, deadline: float) -> AbstractConnection:
        while True:
            if self._closing.is_set():
                raise StoreAway("closed")
            if self._away_since is not None:
                self._start_connector()  # it runs, unless no thread could start
                raise StoreAway("away")
            if self._idle.empty() and len(self._live) < MOST_CONNECTIONS and time.monotonic() >= self._grow_from:
                self._start_connector()
            try:
                connection = self._idle.get(timeout=max(0.0, min(deadline - time.monotonic(), LOOK_UP_SECONDS)))
            except Empty:
                if time.monotonic() < deadline:
                    continue
                if not self._live:
                    self._lose("no connection in time")
                raise StoreAway("no connection in time") from None
            if _is_sound(connection):
                return connection
            self._drop(connection)

    def _give(self, connection: AbstractConnection) -> None:
        with self._lock:  # else it could be put back just after `_lose` and `close` have checked
            keep = connection in self._live and not self._closing.is_set()
            if keep:
                self._idle.put(connection)
        if not keep:
            connection.disconnect()

    def _drop(self, connection: AbstractConnection) -> None:
        with self._lock:
            self._live.discard(connection)
        connection.disconnect()

    def _disconnect_idle(self) -> None:
        with self._lock:
            self._live.clear()
        while True:
            try:
                self._idle.get_nowait().disconnect()
            except Empty:
                return

    def _lose(self, why: str) -> None:
        """Declare the store away, once."""
        now = time.monotonic()
        with self._lock:
            if self._away_since is not None or self._closing.is_set():
                return
            if now - self._back_since >= STEADY_SECONDS:
                self.pause_seconds = FIRST_PAUSE_SECONDS
            self._away_since = now
        self._disconnect_idle()
        self._start_connector()
        log.warning(
            "the Redis of circuits and retry budgets (%s, %s) is away: %s. Until it is back this process decides by "
            "itself, from its own calls; policies with `when_store_down: refuse` refuse every call",
            self.address,
            self._setting,
            why.rstrip("."),
            extra={"event": "breaker_store_away"},
        )

    # -- the connector's thread --------------------------------------------------------

    def _start_connector(self) -> None:
        """One thread at a time: a name server that hangs blocks one thread, not one per call."""
        missing: RuntimeError | None = None
        with self._lock:
            # If it died of an unforeseen error it is replaced; otherwise this process would stay cut off for ever.
            if self._closing.is_set() or (self._connector is not None and self._connector.is_alive()):
                return
            self._connector = threading.Thread(target=self._connect, name="paidonce-breakers-connect", daemon=True)
            try:
                self._connector.start()
            except RuntimeError as error:
                self._connector, missing = None, error
        if missing is not None:  # outside the lock: a log handler may be slow, or use a circuit itself
            log.warning("no thread for circuits: %s", missing, extra={"event": "breaker_thread_missing"})

    def _connect(self) -> None:
        """Open one more connection; while the store is away, retry after each pause until it is back."""
        while not (self._away_since is not None and self._closing.wait(self.pause_seconds)):
            try:
                self._welcome(self._connected())
            except Exception as error:  # noqa: BLE001 - whatever it was, Redis is asked again; a host name may be bad
                if self._live and self._away_since is None:  # the existing connections suffice
                    self._grow_from = time.monotonic() + FIRST_PAUSE_SECONDS
                else:
                    self._lose(_said(error))
                    self.pause_seconds = min(self.pause_seconds * 2, LONGEST_PAUSE_SECONDS)
            with self._lock:  # a caller that declares it away from now on starts another thread
                if self._away_since is None or self._closing.is_set():
                    self._connector = None
                    return

    def _connected(self) -> AbstractConnection:
        connection = self._make()
        try:
            connection.connect()
            self._check(connection)
        except BaseException:
            connection.disconnect()
            raise
        return connection

    def _welcome(self, connection: AbstractConnection) -> None:
        with self._lock:
            away_since, self._away_since = self._away_since, None
            self._back_since = self._back_since if away_since is None else time.monotonic()
            self._live.add(connection)
        self._give(connection)
        if away_since is not None and not self._closing.is_set():
            log.warning(
                "the Redis of circuits and retry budgets (%s, %s) is back after %.1f s: they are shared again",
                self.address,
                self._setting,
                time.monotonic() - away_since,
                extra={"event": "breaker_store_back"},
            )


def evaluate(
    connection: AbstractConnection, script: Script, key: str, arguments: Sequence[Argument], deadline: float
) -> object:
    """Run a script on this connection; load it first if the server does not know it."""
    try:
        return exchange(connection, ("EVALSHA", script.sha, 1, key, *arguments), deadline)
    except NoScriptError:
        return exchange(connection, ("EVAL", script.text, 1, key, *arguments), deadline)


def exchange(connection: AbstractConnection, parts: Sequence[Argument], deadline: float) -> object:
    """One command and its response. Waits in ``can_read``, which takes a time limit in every redis-py."""
    connection.send_command(*parts)
    if not connection.can_read(max(0.0, deadline - time.monotonic())):
        raise TimeoutError("no response in time")
    answer: object = connection.read_response()
    return answer


def _is_sound(connection: AbstractConnection) -> bool:
    """Whether an idle connection is still open: then nothing can be read from it."""
    try:
        return not connection.can_read(0)
    except (RedisError, OSError):
        return False


def _said(error: Exception) -> str:
    if not isinstance(error, RedisError | OSError):
        return failure_of(error)  # unforeseen, and its message may quote an address
    return loggable(" ".join(str(error).split()))[:200] or type(error).__name__
