"""gunicorn with ``--preload``: the master has used its client before it forks; each request reads its own run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from paidonce.embedded import stop_embedded
from paidonce_models.database.schema import upgrade
from paidonce_models.database.transactions import Database
from tests.services.waiting import wait_until

REQUESTS = 200
CHILDREN = 4

SITE = """
import faulthandler
import json
import os
import threading

from paidonce import Client, agent


@agent
async def echo(number: int) -> int:
    return number


client = Client()
client.submit("echo", {"number": -1})  # the master's own connections, which its children inherit
for connection in [client.database.engine.connect() for _ in range(6)]:
    connection.close()


def keep_busy():
    while True:
        client.runs(most=1)


threading.Thread(target=keep_busy, daemon=True).start()


def app(environ, start_response):
    faulthandler.dump_traceback_later(30)  # where a request that hangs has stopped
    number = environ["PATH_INFO"].strip("/")
    run = client.submit("echo", {"number": int(number)}, key=number)
    read = client.run(run.id).view()
    warned = client._publisher._away_until > 0
    start_response("200 OK", [("Content-Type", "application/json")])
    said = {"pid": os.getpid(), "run": run.id, "key": read.key, "input": json.loads(read.input), "away": warned}
    return [json.dumps(said).encode()]
"""


@pytest.fixture(params=["embedded", "redis", "rabbitmq"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, str]]:
    """SQLite with the embedded broker, and PostgreSQL with each of the others."""
    home = tmp_path / "home"
    chosen = {"PAIDONCE_HOME": str(home)}
    if request.param != "embedded":
        chosen["PAIDONCE_DATABASE_URL"] = url = request.getfixturevalue("postgres_database")
        database = Database(url, pool_size=1)
        upgrade(database)
        database.close()
        chosen["PAIDONCE_BROKER_URL"] = request.getfixturevalue(f"{request.param}_url")
    yield chosen
    stop_embedded(home)


def test_each_request_submits_and_reads_its_own_run(settings: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "site_of_a_team.py").write_text(SITE)
    log = tmp_path / "gunicorn.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "gunicorn", "--preload", "--workers", str(CHILDREN), "--threads", "4"),
                *("--timeout", "50", "--bind", "127.0.0.1:0", "site_of_a_team:app"),
            ],
            cwd=tmp_path,
            env={**os.environ, **settings, "PYTHONWARNINGS": "ignore"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        wait_until(lambda: log.read_text().count("Booting worker") >= CHILDREN, "gunicorn's children", timeout=40)
        address = log.read_text().partition("Listening at: http://")[2].split()[0]
        said = ask_all(address, REQUESTS, log)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    assert [answer["key"] for answer in said] == [str(number) for number in range(REQUESTS)], log.read_text()[-3000:]
    assert [answer["input"] for answer in said] == [{"number": number} for number in range(REQUESTS)]
    assert len({answer["run"] for answer in said}) == REQUESTS
    assert not any(answer["away"] for answer in said), log.read_text()[-3000:]
    assert len({answer["pid"] for answer in said}) > 1
    assert "Traceback" not in log.read_text()


def ask_all(address: str, requests: int, log: Path) -> list[dict[str, object]]:
    """The responses to ``requests`` requests, eight at a time; an error quotes the site's log."""
    with ThreadPoolExecutor(8) as pool:
        try:
            return list(pool.map(lambda number: ask(address, number), range(requests)))
        except OSError as error:
            raise AssertionError(f"{error}; the site says:\n{log.read_text()[-20_000:]}") from error


def ask(address: str, number: int) -> dict[str, object]:
    with urllib.request.urlopen(f"http://{address}/{number}", timeout=50) as answer:
        said: dict[str, object] = json.load(answer)
    return said
