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


class PgBouncer:
    """A pooler of a test's own before a server, on a free port; ``ignored`` startup parameters are swallowed."""

    def __init__(self, server_url: str, *, pool_mode: str, ignored: str = "", size: int = 20) -> None:
        server, port = make_url(server_url), free_port()
        self._folder = Path(tempfile.mkdtemp(prefix="paidonce-pgbouncer-"))
        self._user = server_user()
        self._process: subprocess.Popen[bytes] | None = None
        self._url = server.set(host="127.0.0.1", port=port)
        (self._folder / "users.txt").write_text(f'"{server.username}" ""\n')
        (self._folder / "pgbouncer.ini").write_text(
            f"[databases]\n* = host={server.host} port={server.port or 5432}\n[pgbouncer]\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = trust\n"
            f"auth_file = {self._folder}/users.txt\npool_mode = {pool_mode}\n"
            f"ignore_startup_parameters = {ignored}\ndefault_pool_size = {size}\n"
        )
        if self._user:
            for path in (self._folder, *self._folder.iterdir()):
                shutil.chown(path, self._user)

    @property
    def url(self) -> str:
        """Of the same database through it."""
        return self._url.render_as_string(hide_password=False)

    def start(self) -> None:
        """Returns when it lets us in."""
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [pgbouncer_program(), str(self._folder / "pgbouncer.ini")],
                user=self._user,
                cwd=self._folder,
                stdout=log,
                stderr=log,
            )
        wait_until(self._answers, f"PgBouncer listens on port {self._url.port}", START_SECONDS)

    def kill(self) -> None:
        """End it by SIGKILL, with every connection through it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def remove(self) -> None:
        """End it and delete its files."""
        self.kill()
        shutil.rmtree(self._folder)

    def _answers(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            raise RuntimeError(f"PgBouncer ended:\n{(self._folder / 'log').read_text()[-2000:]}")
        try:
            plain = self._url.set(drivername="postgresql").render_as_string(hide_password=False)
            psycopg.connect(plain, connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True


@contextmanager
def running_pgbouncer(server_url: str, *, pool_mode: str, ignored: str = "", size: int = 20) -> Iterator[PgBouncer]:
    """A pooler that runs."""
    pooler = PgBouncer(server_url, pool_mode=pool_mode, ignored=ignored, size=size)
    try:
        pooler.start()
        yield pooler
    finally:
        pooler.remove()


@pytest.fixture
def private_pgbouncer(postgres_database: str) -> Iterator[PgBouncer]:
    """A running pooler in transaction mode before this test's database, which it may kill and start."""
    with running_pgbouncer(postgres_database, pool_mode="transaction", size=5) as pooler:
        yield pooler


@pytest.fixture
def pgbouncer(postgres_database: str) -> Iterator[Callable[..., str]]:
    """``pgbouncer(mode)`` gives the URL of this test's database through a pooler."""
    with ExitStack() as stack:
        yield (
            lambda mode, **options: (
                stack.enter_context(running_pgbouncer(postgres_database, pool_mode=mode, **options)).url
            )
        )
