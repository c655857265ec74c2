"""PgBouncer before a PostgreSQL server, started by the test on a free port, in transaction or session mode."""

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
import pytest
from sqlalchemy.engine import make_url

from tests.services.availability import free_port, service_missing
from tests.services.postgres import server_user
from tests.services.waiting import wait_until

START_SECONDS = 30.0


def pgbouncer_program() -> str:
    """Where it is installed; skips the test, or fails it under CI, where it is not."""
    found = shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin:/opt/homebrew/bin")
    if found is None:
        service_missing("PgBouncer is not installed; install the package pgbouncer")
    return str(found)


@contextmanager
def running_pgbouncer(server_url: str, *, pool_mode: str, ignored: str = "", size: int = 20) -> Iterator[str]:
    """The URL of the same database through a pooler of this mode, which swallows the ``ignored`` startup parameters."""
    server, port = make_url(server_url), free_port()
    folder = Path(tempfile.mkdtemp(prefix="paidonce-pgbouncer-"))
    user = server_user()
    (folder / "users.txt").write_text(f'"{server.username}" ""\n')
    (folder / "pgbouncer.ini").write_text(
        f"[databases]\n* = host={server.host} port={server.port or 5432}\n[pgbouncer]\n"
        f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = trust\n"
        f"auth_file = {folder}/users.txt\npool_mode = {pool_mode}\n"
        f"ignore_startup_parameters = {ignored}\ndefault_pool_size = {size}\n"
    )
    if user:
        for path in (folder, *folder.iterdir()):
            shutil.chown(path, user)
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            [pgbouncer_program(), str(folder / "pgbouncer.ini")], user=user, cwd=folder, stdout=log, stderr=log
        )
    try:
        url = server.set(host="127.0.0.1", port=port)

        def answers() -> bool:
            if process.poll() is not None:
                raise RuntimeError(f"PgBouncer ended:\n{(folder / 'log').read_text()[-2000:]}")
            try:
                psycopg.connect(
                    url.set(drivername="postgresql").render_as_string(hide_password=False), connect_timeout=5
                ).close()
            except psycopg.OperationalError:
                return False
            return True

        wait_until(answers, f"PgBouncer listens on port {port}", START_SECONDS)
        yield url.render_as_string(hide_password=False)
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder)


@pytest.fixture
def pgbouncer(postgres_database: str) -> Iterator[Callable[..., str]]:
    """``pgbouncer(mode)`` gives the URL of this test's database through a pooler."""
    with ExitStack() as stack:
        yield lambda mode, **options: stack.enter_context(
            running_pgbouncer(postgres_database, pool_mode=mode, **options)
        )
