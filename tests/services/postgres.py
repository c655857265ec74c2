"""PostgreSQL for tests: a fresh database on a shared server, or a cluster of one's own that may be stopped.

The shared server is ``TEST_POSTGRES_URL``, else the one on 127.0.0.1:5432 if it lets ``postgres`` in, else a cluster
that the session starts from the installed binaries.
"""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from sqlalchemy.engine import URL, make_url

from tests.services.availability import free_port, service_missing
from tests.services.certificates import Certificates
from tests.services.waiting import wait_until

LOCAL_SERVER = "postgresql+psycopg://postgres@127.0.0.1:5432/postgres"
BINARY_FOLDERS = ("/usr/lib/postgresql", "/opt/homebrew/opt", "/usr/local/opt")
START_SECONDS = 30.0


class PostgresCluster:
    """A PostgreSQL of its own on a free port, with its data in a folder of its own, run by a user that is not root.

    ``fsync`` is off: processes may be killed at will, the machine may not.
    """

    def __init__(self, binaries: Path) -> None:
        self._binaries = binaries
        self._user = server_user()
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0
        """Chosen at the first start."""
        # Not under pytest's tmp_path, which the server's user cannot enter.
        self.folder = Path(tempfile.mkdtemp(prefix="paidonce-postgres-"))
        if self._user:
            shutil.chown(self.folder, self._user)
        self._run("initdb", "--auth=trust", "--username=postgres", "--no-sync", "--encoding=UTF8", "--locale=C")

    @property
    def pid(self) -> int:
        """Of the postmaster. Raises when it is stopped."""
        if self._process is None:
            raise RuntimeError("the cluster is stopped")
        return self._process.pid

    def url(self, database: str = "postgres") -> str:
        """For SQLAlchemy."""
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Returns when it accepts connections."""
        self.port = self.port or free_port()
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    self._binaries / "postgres",
                    *("-D", self._data, "-p", str(self.port), "-h", "127.0.0.1", "-k", self.folder),
                    *("-c", "fsync=off", "-c", "max_connections=200"),
                ],
                user=self._user,
                group=self._user,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        wait_until(self._is_ready, f"PostgreSQL accepts connections on port {self.port}", START_SECONDS)

    def stop(self, *, immediately: bool = False) -> None:
        """Throw all sessions out and end; ``immediately`` as after a power cut, with a recovery at the next start."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGQUIT if immediately else signal.SIGINT)
        self._process.wait(timeout=START_SECONDS)
        self._process = None

    def restart(self, *, immediately: bool = False) -> None:
        """Stop and start on the same port with the same data."""
        self.stop(immediately=immediately)
        self.start()

    def remove(self) -> None:
        """Stop and delete the data."""
        self.stop(immediately=True)
        shutil.rmtree(self.folder)

    def require_passwords(self) -> None:
        """From now on nobody is let in without one."""
        self._admit("host")

    def require_tls(self, certificates: Certificates) -> None:
        """From now on nobody is let in without TLS and a password."""
        for source, name in ((certificates.certificate, "server.crt"), (certificates.key, "server.key")):
            shutil.copy(source, self._data / name)
            (self._data / name).chmod(0o600)
            if self._user:
                shutil.chown(self._data / name, self._user)
        with (self._data / "postgresql.conf").open("a") as configuration:
            configuration.write("ssl = on\n")
        self._admit("hostssl")

    def _admit(self, how: str) -> None:
        (self._data / "pg_hba.conf").write_text(f"{how} all all 127.0.0.1/32 scram-sha-256\n")
        self.reload()

    def reload(self) -> None:
        """Have it read its configuration; what it lets in changes a moment later."""
        plain = self.url().replace("+psycopg", "")
        os.kill(self.pid, signal.SIGHUP)
        wait_until(lambda: not _lets_in(plain), "PostgreSQL has read its configuration", START_SECONDS)

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def _run(self, program: str, *arguments: str) -> None:
        command: list[str | Path] = [self._binaries / program, "-D", self._data, *arguments]
        done = subprocess.run(
            command, user=self._user, group=self._user, cwd=self.folder, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise RuntimeError(f"{program} failed:\n{done.stdout}{done.stderr}")

    def _is_ready(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            raise RuntimeError(f"PostgreSQL ended:\n{(self.folder / 'server.log').read_text()[-2000:]}")
        return _accepts(self.url())


@contextmanager
def fresh_database(server_url: str) -> Iterator[str]:
    """An empty database on that server, dropped afterwards whoever is still connected."""
    name = f"paidonce_test_{uuid.uuid4().hex[:12]}"
    with _connect(server_url) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    try:
        yield make_url(server_url).set(database=name).render_as_string(hide_password=False)
    finally:
        with _connect(server_url) as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture(scope="session")
def postgres_binaries() -> Path:
    """The folder of ``initdb`` and ``postgres``, the newest version found."""
    found = _find_binaries()
    return found or service_missing("no PostgreSQL server programs (Debian: apt install postgresql)")


@pytest.fixture(scope="session")
def postgres_server(request: pytest.FixtureRequest, session_servers: set[int]) -> Iterator[str]:
    """The URL of a server that the session's tests share. Never stop it."""
    configured = os.environ.get("TEST_POSTGRES_URL")
    if configured or _accepts(LOCAL_SERVER):
        url = configured or LOCAL_SERVER
        if not _accepts(url):
            service_missing(f"PostgreSQL does not let us in at TEST_POSTGRES_URL={make_url(url)!r}")
        yield url
        return
    cluster = PostgresCluster(request.getfixturevalue("postgres_binaries"))
    try:
        cluster.start()
        session_servers.add(cluster.pid)
        yield cluster.url()
    finally:
        cluster.remove()


@pytest.fixture
def postgres_database(postgres_server: str) -> Iterator[str]:
    """The URL (``postgresql+psycopg://…``) of an empty database of this test's own."""
    with fresh_database(postgres_server) as url:
        yield url


@pytest.fixture
def private_postgres(postgres_binaries: Path) -> Iterator[PostgresCluster]:
    """A running cluster of this test's own, which it may ``stop``, ``start``, ``restart`` and freeze."""
    cluster = PostgresCluster(postgres_binaries)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.remove()


def _lets_in(url: str) -> bool:
    try:
        psycopg.connect(url, connect_timeout=30).close()
    except psycopg.OperationalError:
        return False
    return True


def _connect(url: str) -> psycopg.Connection[tuple[object, ...]]:
    parsed: URL = make_url(url)
    plain = parsed.set(drivername="postgresql").render_as_string(hide_password=False)
    return psycopg.connect(plain, autocommit=True, connect_timeout=30)


def _accepts(url: str) -> bool:
    try:
        _connect(url).close()
    except psycopg.OperationalError:
        return False
    return True


def _find_binaries() -> Path | None:
    candidates = [path.parent for root in BINARY_FOLDERS for path in Path(root).glob("*/bin/initdb")]
    if on_path := shutil.which("initdb"):
        candidates.append(Path(on_path).parent)
    return max(candidates, key=_version, default=None)


def _version(binaries: Path) -> float:
    """15.0 for ``/usr/lib/postgresql/15/bin`` and for ``…/postgresql@15/bin``; 0 if the folder does not say."""
    digits = binaries.parent.name.rpartition("@")[2]
    return float(digits) if digits.replace(".", "", 1).isdigit() else 0.0


def server_user() -> str | None:
    """PostgreSQL refuses to run as root: the user to become then, otherwise ``None``."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"
