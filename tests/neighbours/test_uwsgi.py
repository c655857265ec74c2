"""uWSGI without ``lazy-apps``: the master has used its client before it forks, past Python's own hooks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from paidonce_models.database.schema import upgrade
from paidonce_models.database.transactions import Database
from tests.capture.conftest import client_environment
from tests.neighbours.test_gunicorn import SITE, ask_all
from tests.services.availability import free_port
from tests.services.waiting import wait_until

REQUESTS = 100
CHILDREN = 4
BUSY = "threading.Thread(target=keep_busy, daemon=True).start()"


@pytest.fixture
def program(request: pytest.FixtureRequest) -> Path:
    """Installed once and kept; no package of ours, as most machines that need a compiler for it have none."""
    assert request.config.cache is not None
    return client_environment(request.config.cache, "uwsgi", ["pyuwsgi>=2.0.30,<2.1"]).with_name("pyuwsgi")


@pytest.fixture(params=["redis", "rabbitmq"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, str]]:
    url = request.getfixturevalue("postgres_database")
    database = Database(url, pool_size=1)
    upgrade(database)
    database.close()
    broker = request.getfixturevalue(f"{request.param}_url")
    yield {"PAIDONCE_HOME": str(tmp_path), "PAIDONCE_DATABASE_URL": url, "PAIDONCE_BROKER_URL": broker}


@pytest.mark.timeout(300)  # may have to compile it
@pytest.mark.parametrize("has_threads", [False, True], ids=["calm", "threads in the master"])
def test_each_request_submits_and_reads_its_own_run(
    settings: dict[str, str], program: Path, has_threads: bool, tmp_path: Path
) -> None:
    (tmp_path / "site_of_a_team.py").write_text(SITE if has_threads else SITE.replace(BUSY, ""))
    address = f"127.0.0.1:{free_port()}"
    log = tmp_path / "uwsgi.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [
                *(program, "--http-socket", address, "--master", "--processes", str(CHILDREN), "--threads", "2"),
                *("--enable-threads", "--die-on-term", "--worker-reload-mercy", "5", "--need-app"),
                *("--virtualenv", sys.prefix, "--module", "site_of_a_team:app"),
                *(["--py-call-uwsgi-fork-hooks"] if has_threads else []),
            ],
            cwd=tmp_path,
            env={**os.environ, **settings, "PYTHONWARNINGS": "ignore"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        wait_until(lambda: log.read_text().count("spawned uWSGI worker") >= CHILDREN, "uWSGI's children", timeout=60)
        said = ask_all(address, REQUESTS, log)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    assert [answer["key"] for answer in said] == [str(number) for number in range(REQUESTS)], log.read_text()[-3000:]
    assert [answer["input"] for answer in said] == [{"number": number} for number in range(REQUESTS)]
    assert len({answer["run"] for answer in said}) == REQUESTS
    assert len({answer["pid"] for answer in said}) > 1
    assert "Traceback" not in log.read_text()
