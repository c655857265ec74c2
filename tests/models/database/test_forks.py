"""A forked child has connections and locks of its own, and leaves its parent's alone."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import textwrap
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import text

from paidonce_models.database.sqlite_forks import the_gate
from paidonce_models.database.transactions import Database
from paidonce_models.errors import StoreUnreachable
from paidonce_models.forks import before_fork


def in_a_child(check: Callable[[], object]) -> int:
    """Its exit code: 0 where ``check`` returns true, and the child ended through ``sys.exit``'s way out."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if check() else 2
            gc.collect()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_child_reads_with_a_session_of_its_own_and_the_parents_goes_on(postgres_database: str) -> None:
    database = Database(postgres_database, pool_size=1)
    own_session = text("SELECT pg_backend_pid()")
    with database.read() as connection:
        before = connection.execute(own_session).scalar_one()

    def reads_elsewhere() -> bool:
        with database.read() as connection:
            return bool(connection.execute(own_session).scalar_one() != before)

    assert [in_a_child(reads_elsewhere) for _ in range(3)] == [0, 0, 0]
    with database.read() as connection:
        assert connection.execute(own_session).scalar_one() == before
    database.close()


@pytest.mark.slow
def test_a_child_writes_to_sqlite_although_threads_of_its_parent_write_when_it_is_forked(sqlite_database: str) -> None:
    database = Database(sqlite_database)
    with database.write() as connection:
        connection.execute(text("CREATE TABLE notes (word TEXT)"))
    insert = text("INSERT INTO notes VALUES (:word)")

    def note(word: str) -> bool:
        database.transact(lambda connection: connection.execute(insert, {"word": word}))
        return True

    ending = threading.Event()

    def keep_writing() -> None:
        while not ending.is_set():
            note("parent")

    threads = [threading.Thread(target=keep_writing) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        codes = [in_a_child(lambda: note("child")) for _ in range(5)]
    finally:
        ending.set()
        for thread in threads:
            thread.join()
    assert codes == [0] * 5
    with database.read() as connection:
        assert connection.execute(text("SELECT count(*) FROM notes WHERE word = 'child'")).scalar_one() == 5
    database.close()


def test_no_sqlite_connection_is_inherited(sqlite_database: str) -> None:
    database = Database(sqlite_database)
    database.now_us()
    path = Path(str(database.file)).resolve()

    def has_no_descriptor() -> bool:
        return not any(os.path.realpath(f"/proc/self/fd/{each}") == str(path) for each in os.listdir("/proc/self/fd"))

    if Path("/proc/self/fd").is_dir():
        assert in_a_child(has_no_descriptor) == 0
    database.close()


def test_a_child_forked_inside_a_transaction_refuses_the_store(sqlite_database: str) -> None:
    database = Database(sqlite_database)

    def is_refused() -> bool:
        with pytest.raises(StoreUnreachable, match="forked while its parent had the SQLite store"):
            database.now_us()
        return True

    with database.read():
        assert in_a_child(is_refused) == 0
    assert in_a_child(lambda: database.now_us() > 0) == 0  # forked outside of one
    assert database.now_us() > 0
    database.close()


class WhileForking:
    """Does something after all that were there before it have made ready for a fork."""

    def __init__(self, act: Callable[[], object]) -> None:
        before_fork(self, lambda _: act(), lambda _: None)


@pytest.mark.parametrize(("makes", "drops"), [(True, False), (False, True), (True, True)])
def test_a_store_that_is_made_or_dropped_while_a_process_forks_leaves_the_gate_open(
    sqlite_database: str, tmp_path: Path, makes: bool, drops: bool
) -> None:
    kept, dropped = Database(sqlite_database), [Database(f"sqlite:///{tmp_path}/dropped.db")]
    gone = weakref.ref(dropped[0])
    made: list[Database] = []
    for each in (kept, *dropped):
        each.now_us()
    del each

    def make_or_drop() -> None:
        if makes:
            made.append(Database(f"sqlite:///{tmp_path}/made.db"))
        if drops:
            dropped.clear()
            gc.collect()

    def all_can_be_used() -> bool:
        return the_gate.forks_under_way == 0 and all(each.now_us() > 0 for each in (kept, *made, *dropped))

    meanwhile = WhileForking(make_or_drop)
    assert in_a_child(all_can_be_used) == 0
    del meanwhile
    assert ((gone() is None), len(made)) == (drops, int(makes))
    assert all_can_be_used()
    for database in (kept, *made, *dropped):
        database.close()


def test_what_a_dead_owner_asked_for_is_not_done() -> None:
    program = """
        import gc, os
        from paidonce_models.forks import in_child

        class Owner:
            def forget(self):
                os.write(1, b"forgotten ")

        kept, dropped = Owner(), Owner()
        in_child(kept, Owner.forget)
        in_child(dropped, Owner.forget)
        in_child(kept, lambda owner: os.write(1, b"once"))
        del dropped
        gc.collect()
        if os.fork() == 0:
            os._exit(0)
        os.wait()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    assert done.stdout == "forgotten once", done.stdout


PAST_PYTHON = """
import ctypes, os, sys
from paidonce_models.database.transactions import Database

database = Database(sys.argv[1])
with database.read() as connection:
    mine = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar()
child = ctypes.PyDLL(None).fork()
with database.read() as connection:
    now = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar()
if child == 0:
    os._exit(0 if now != mine else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) or now != mine)
"""


def test_a_child_that_was_forked_past_python_has_connections_of_its_own(postgres_database: str) -> None:
    done = subprocess.run([sys.executable, "-c", PAST_PYTHON, postgres_database], timeout=40, check=False)
    assert done.returncode == 0
