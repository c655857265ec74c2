"""What the operating system and PostgreSQL say of a process that lives, and of one that was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy.engine import make_url

from paidonce_models.database.transactions import Database
from paidonce_models.liveness import (
    FileLock,
    PooledConnection,
    ServerLock,
    file_lock_is_held,
    process_is_alive,
    remove_lock_file,
    start_of,
    this_place,
)
from tests.services.waiting import wait_until

SLEEP = "import time; time.sleep(600)"
HOLDS_FILE = """
import os, sys, time
from pathlib import Path
from paidonce_models.liveness import FileLock
FileLock(Path(sys.argv[1]), "w").acquire()
"""
HOLDS_SESSION = """
import os, sys, time
from paidonce_models.database.transactions import Database
from paidonce_models.liveness import ServerLock
lock = ServerLock(Database(sys.argv[1], pool_size=1))
lock.acquire()
"""
FORKS = """
if os.fork() == 0:
    print(os.getpid(), flush=True)
    time.sleep(600)
os.wait()
"""
TELLS = "print(os.getpid(), flush=True); time.sleep(600)"

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start Python with a program and return once it has said that it is ready; everything is killed in the end."""
    processes: list[subprocess.Popen[str]] = []
    children: list[int] = []

    def begin(program: str, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen([sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, text=True)
        processes.append(process)
        if process.stdout is not None and "print" in program:
            children.append(int(process.stdout.readline()))
        return process

    yield begin
    for pid in children:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    for process in processes:
        process.kill()
        process.communicate()


def test_a_process_is_alive_until_it_is_killed_even_before_its_parent_knows(start: Start) -> None:
    process = start(SLEEP)
    started = start_of(process.pid)
    assert process_is_alive(process.pid, started) is True
    process.send_signal(signal.SIGSTOP)
    assert process_is_alive(process.pid, started) is True
    process.kill()
    wait_until(lambda: process_is_alive(process.pid, started) is False, "the zombie counts as dead")
    process.wait()
    assert process_is_alive(process.pid, started) is False


def test_another_process_of_the_same_pid_is_not_the_one_that_was_meant(start: Start) -> None:
    process = start(SLEEP)
    assert process_is_alive(process.pid, str(int(start_of(process.pid)) - 1)) is False


def test_processes_of_one_host_are_at_one_place(start: Start) -> None:
    program = "import os; from paidonce_models.liveness import this_place; print(this_place())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == this_place()
    assert len(this_place()) <= 200


def test_a_file_is_locked_for_as_long_as_its_process_lives(start: Start, tmp_path: Path) -> None:
    store = tmp_path / "store.db"
    assert file_lock_is_held(store, "w") is None
    process = start(HOLDS_FILE + TELLS, str(store))
    assert file_lock_is_held(store, "w") is True
    process.send_signal(signal.SIGSTOP)
    assert file_lock_is_held(store, "w") is True
    process.kill()
    wait_until(lambda: file_lock_is_held(store, "w") is False, "the kernel has dropped the lock")
    remove_lock_file(store, "w")
    assert file_lock_is_held(store, "w") is None


def test_a_forked_child_does_not_keep_its_parents_file_locked(start: Start, tmp_path: Path) -> None:
    process = start(HOLDS_FILE + FORKS, str(tmp_path / "store.db"))
    assert file_lock_is_held(tmp_path / "store.db", "w") is True
    process.kill()
    wait_until(lambda: file_lock_is_held(tmp_path / "store.db", "w") is False, "the lock went with the parent")


def test_asking_about_a_lock_of_this_process_does_not_drop_it(tmp_path: Path) -> None:
    store = tmp_path / "store.db"
    lock = FileLock(store, "w")
    lock.acquire()
    assert lock.is_held and file_lock_is_held(store, "w") is True
    program = "import sys; from pathlib import Path; from paidonce_models.liveness import file_lock_is_held as held; "
    program += "sys.exit(0 if held(Path(sys.argv[1]), 'w') else 1)"
    assert subprocess.run([sys.executable, "-c", program, str(store)], check=False).returncode == 0
    lock.release()
    assert file_lock_is_held(store, "w") is None


@pytest.mark.parametrize("then", [TELLS, FORKS], ids=["alone", "with a forked child that lives on"])
def test_the_server_drops_the_lock_of_a_process_that_is_killed(start: Start, postgres_database: str, then: str) -> None:
    process = start(HOLDS_SESSION + then, postgres_database)
    assert advisory_locks(postgres_database) == 1
    process.send_signal(signal.SIGSTOP)
    assert advisory_locks(postgres_database) == 1
    process.kill()
    wait_until(lambda: advisory_locks(postgres_database) == 0, "the server has dropped the lock")


def test_the_end_of_a_session_is_noticed_and_another_lock_taken(postgres_database: str) -> None:
    database = Database(postgres_database, pool_size=1)
    lock = ServerLock(database)
    lock.acquire()
    key, (never, waker) = lock.key, os.pipe()
    assert not lock.wait_until_lost(never, 0.01)
    with connected(postgres_database) as connection:
        # Of this database: other tests, and whoever else uses the server, hold locks in theirs.
        connection.execute(
            "SELECT pg_terminate_backend(l.pid) FROM pg_locks l JOIN pg_database d ON d.oid = l.database "
            "WHERE l.locktype = 'advisory' AND d.datname = current_database()"
        )
    assert lock.wait_until_lost(never, 10)
    assert not lock.is_held
    lock.acquire()
    assert lock.is_held and lock.key != key and advisory_locks(postgres_database) == 1
    lock.close()
    database.close()
    os.close(never)
    os.close(waker)


@pytest.mark.parametrize("mode", ["transaction", "session"])
def test_behind_a_pooler_a_lock_proves_nothing_and_none_is_taken(
    postgres_database: str, pgbouncer: Callable[[str], str], mode: str
) -> None:
    database = Database(pgbouncer(mode), pool_size=1)
    with pytest.raises(PooledConnection, match="pooler"):
        ServerLock(database).acquire()
    assert advisory_locks(postgres_database) == 0
    database.close()


def connected(url: str) -> psycopg.Connection[tuple[object, ...]]:
    """A connection of the test's own."""
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    return psycopg.connect(plain, autocommit=True)


def advisory_locks(url: str) -> int:
    """How many advisory locks are held in this database."""
    with connected(url) as connection:
        query = "SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database WHERE locktype = 'advisory' "
        row = connection.execute(query + "AND datname = current_database()").fetchone()
    assert row is not None
    return int(str(row[0]))
