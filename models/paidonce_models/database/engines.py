"""The engines of a store: how connections to SQLite and PostgreSQL are opened, and dropped after a fork."""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy import URL, Connection, Engine, event

from paidonce_models.database.driver_errors import keep_values_out
from paidonce_models.database.sessions import RECYCLE_SECONDS, Sessions
from paidonce_models.database.sqlite_forks import GatedPool, watch_connections
from paidonce_models.database.store_faults import is_fault
from paidonce_models.errors import ConfigurationError
from paidonce_models.privacy.private_files import create_private_file, tighten

_NETWORK_FILE_SYSTEMS = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs", "9p", "afs", "glusterfs"})
UPGRADE_LOCK = ".upgrade-lock"
FILES_BESIDE = ("-wal", "-shm", "-journal", UPGRADE_LOCK)
"""The suffixes of the files that SQLite keeps beside a store."""


def system_clock_us() -> int:
    """Microseconds since the epoch by the system's clock."""
    return time.time_ns() // 1000


def sqlite_engine(url: URL, *, pool_size: int, clock_us: Callable[[], int] | None) -> Engine:
    """An engine whose writes begin with ``BEGIN IMMEDIATE``; ``clock_us`` replaces the store's clock (tests only)."""
    memory = url.database in (None, "", ":memory:")
    if not memory:
        _refuse_network_file_system(Path(str(url.database)))
    options: dict[str, object] = {"connect_args": {"check_same_thread": False, "isolation_level": None, "timeout": 30}}
    if memory:
        options["poolclass"] = sqlalchemy.pool.StaticPool
    else:
        options.update(poolclass=GatedPool, pool_size=pool_size, max_overflow=pool_size, pool_timeout=60)
    engine = sqlalchemy.create_engine(url, hide_parameters=True, **options)
    keep_values_out(engine)
    if not memory:
        watch_connections(engine)
    clock = clock_us or system_clock_us

    if not memory:
        path = str(url.database)

        @event.listens_for(engine, "do_connect")
        def _keep_private(*_: object) -> None:
            # Before SQLite does: it would create the file with the umask's mode, and -wal and -shm with the same.
            try:
                create_private_file(path)
            except OSError:
                pass  # SQLite's own error explains the path better
            tighten(path, *(f"{path}{ending}" for ending in FILES_BESIDE))

    @event.listens_for(engine, "connect")
    def _prepare(connection, _record) -> None:  # type: ignore[no-untyped-def]  # driver's object
        connection.create_function("paidonce_now", 0, clock)
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA busy_timeout=30000")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        write = connection.get_execution_options().get("paidonce_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine


def postgresql_engine(url: URL, *, pool_size: int, sessions: Sessions | None, opened: weakref.WeakSet[Any]) -> Engine:
    """An engine whose sessions get their settings from ``sessions``; adds the driver's connections to ``opened``."""
    engine = sqlalchemy.create_engine(
        url,
        hide_parameters=True,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=60,
        pool_recycle=RECYCLE_SECONDS,
        connect_args=Sessions.connect_arguments(url),
    )
    keep_values_out(engine)
    if sessions is not None:
        sessions.look_after(engine)

    @event.listens_for(engine, "connect")
    def _note(connection: Any, _record: object) -> None:
        opened.add(connection)

    return engine


def let_go_of_socket(connection: Any) -> None:
    """In a forked child: close its copy of a PostgreSQL socket without sending anything to the server.

    If the child kept the socket open, the server would not notice the end of the parent.
    """
    try:
        with open(os.devnull, "rb") as nothing:
            os.dup2(nothing.fileno(), connection.fileno(), inheritable=False)
    except Exception as error:  # a child that keeps it only delays what others see
        if not isinstance(error, OSError) and not is_fault(error):
            raise


def has_connections(engine: Engine) -> bool:
    """Whether any connection to a SQLite file is open."""
    pool = engine.pool
    return isinstance(pool, GatedPool) and pool.checkedin() + pool.checkedout() > 0


def _refuse_network_file_system(path: Path) -> None:
    folder = path.absolute().parent
    try:
        mounts = Path("/proc/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    best, kind = "", ""
    for line in mounts:
        fields = line.split()
        if len(fields) < 3:
            continue
        point = fields[1]
        if (str(folder) + os.sep).startswith(point.rstrip(os.sep) + os.sep) and len(point) >= len(best):
            best, kind = point, fields[2]
    if kind in _NETWORK_FILE_SYSTEMS:
        raise ConfigurationError(
            f"the SQLite store {path} lies on a network file system ({kind} at {best}), where its locks do not hold; "
            "put PAIDONCE_HOME on a local disk or use PostgreSQL"
        )
