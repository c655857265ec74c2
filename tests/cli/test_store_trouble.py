"""A store that answers and takes nothing: commands end with code 3 and one line, and lose nothing."""

from __future__ import annotations

import psycopg
import pytest
from sqlalchemy.engine import make_url

from tests.cli.conftest import Project
from tests.services.disks import SmallDisk

pytestmark = pytest.mark.timeout(180)  # several processes each, on a machine that may be busy
SECRET = "planted-in-an-input"
SUBMIT = ("submit", "adder", "--input", f'{{"count": 1, "{SECRET}": 1}}')
RUN = ("run", "agents:adder", "--input", '{"count": 1}')
BUDGET = ("budget", "set", "all", "per=day", "usd=20")


@pytest.fixture
def project(new_project: Project) -> Project:
    """Without a store: what creates it is tested here."""
    return new_project


def test_a_read_only_store(project: Project, postgres_database: str) -> None:
    settings = {"DATABASE_URL": postgres_database, "AGENTS": ""}
    assert project.paidonce("db", "upgrade", **settings).code == 0
    server = make_url(postgres_database).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(server, autocommit=True) as connection:
        name = make_url(postgres_database).database
        connection.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on'.encode())
    for command in (SUBMIT, RUN, BUDGET):
        done = project.paidonce(*command, "--json", **settings)
        assert (done.code, done.error["code"]) == (3, "store_unavailable")
        assert "25006" in done.error["message"] and "primary" in done.error["message"]
        assert SECRET not in done.err + str(done.error)
        assert len([line for line in done.err.splitlines() if "Error" in line]) == 1
    assert project.paidonce("runs", "--json", **settings).document == []


def test_a_full_disk(project: Project, small_disk: SmallDisk) -> None:
    settings = {"DATABASE_URL": f"sqlite:///{small_disk.folder}/store.db", "AGENTS": ""}
    for command in (("db", "upgrade"), SUBMIT):
        small_disk.fill()
        done = project.paidonce(*command, "--json", **settings)
        assert done.code == 3 and "nothing was lost" in done.error["message"]
        assert SECRET not in done.err + str(done.error)
        small_disk.free()
        assert project.paidonce("db", "upgrade", **settings).code == 0


def test_a_full_disk_under_the_home(project: Project, small_disk: SmallDisk, sqlite_database: str) -> None:
    settings = {"DATABASE_URL": sqlite_database, "HOME": str(small_disk.folder / "home")}
    small_disk.fill()
    done = project.paidonce("run", "agents:adder", "--input", '{"count": 1}', "--json", **settings)
    assert done.code in (2, 3) and done.error["message"]
