"""Flower as the documentation starts it: on loopback, with a password, and none of it on a command line."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from base64 import b64encode
from pathlib import Path

import psutil
import pytest

from tests.docs.compose_file import COMPOSE_FILE, read_services
from tests.services.waiting import wait_until

ROOT = Path(__file__).parents[2]
OPERATIONS = ROOT / "docs" / "how-to" / "operate.md"
PAGES = [ROOT / "README.md", COMPOSE_FILE, *sorted((ROOT / "docs").rglob("*.md"))]


def documented() -> dict[str, str]:
    """The variables that the page exports before it starts Flower."""
    section = OPERATIONS.read_text(encoding="utf-8").partition("### Flower")[2].partition("```console")[2]
    block = section.partition("```")[0]
    assert block.rstrip().endswith("$ celery -A paidonce_workers flower")
    assert "read -rs FLOWER_BASIC_AUTH && export FLOWER_BASIC_AUTH" in block
    return dict(re.findall(r"\$ export (FLOWER_\w+)=(\S+)", block))


def test_no_command_carries_a_password_or_the_brokers_address() -> None:
    for page in PAGES:
        for line in page.read_text(encoding="utf-8").splitlines():
            if "flower" in line and "celery" in line:
                assert not re.search(r"--basic[_-]auth=|--broker[= ]|-b ", line), f"{page}: {line}"
    command = read_services()["flower"].command
    assert command == ["celery", "-A", "paidonce_workers", "flower"]
    assert re.search(r"^ +- 127\.0\.0\.1:5555:5555$", COMPOSE_FILE.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_flower_as_documented_listens_on_loopback_and_asks_for_the_password(redis_url: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    variables = documented()
    assert variables["FLOWER_ADDRESS"] == "127.0.0.1"
    environment = {
        **os.environ,
        **variables,
        "FLOWER_PORT": str(port),
        "FLOWER_BASIC_AUTH": "bob:Sesame-4711-open",
        "PAIDONCE_HOME": str(tmp_path / "home"),
        "PAIDONCE_BROKER_URL": redis_url,
        "PYTHONWARNINGS": "ignore",
    }
    command = [sys.executable, "-m", "celery", "-A", "paidonce_workers", "flower"]
    log = tmp_path / "flower.log"
    with log.open("wb") as said:
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=said, stderr=said)
    try:
        wait_until(lambda: status(port, "/healthcheck") == 200, "Flower answers", 90)
        assert status(port, "/") == status(port, "/api/workers") == 401
        assert status(port, "/", "bob:Sesame-4711-open") == 200
        listening = {
            each.laddr.ip for each in psutil.Process(process.pid).net_connections("tcp") if each.status == "LISTEN"
        }
        assert listening == {"127.0.0.1"}
        assert "Sesame" not in " ".join(psutil.Process(process.pid).cmdline()) + log.read_text()
    finally:
        process.terminate()
        process.wait(30)


def status(port: int, path: str, user: str = "") -> int:
    """The answer's status, 0 while nobody listens."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}")
    if user:
        request.add_header("Authorization", f"Basic {b64encode(user.encode()).decode()}")
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError:
        return 0
