"""docker-compose.yml without Docker: each command as a plain process, the services' addresses made local ones."""

import json
import os
import re
import shlex
import subprocess
import sys
import urllib.request
from base64 import b64encode
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.engine import make_url

from tests.docs.compose_file import COMPOSE_FILE, Service, read_services
from tests.services.availability import answers, free_port
from tests.services.waiting import wait_until

ROOT = COMPOSE_FILE.parent
PROGRAMS = Path(sys.executable).parent
PORTS_OF_SERVICES = {"valkey": "6379", "model": "8800", "documents": "8801", "flower": "5555"}


class Composition:
    """The file's services on this machine."""

    def __init__(self, folder: Path, database_url: str, redis_program: Path) -> None:
        self.folder = folder
        self.services = read_services()
        self.ports = {name: free_port() for name in PORTS_OF_SERVICES}
        self._database = make_url(database_url)
        self._valkey = redis_program

    def arguments(self, service: Service, command: Sequence[str]) -> list[str]:
        """The command with its program found here and its ports changed."""
        program = str(self._valkey) if command[0] == "valkey-server" else str(PROGRAMS / command[0])
        rest = [self._local(part) for part in command[1:]]
        if service.name == "valkey":
            rest += ["--port", str(self.ports["valkey"]), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        return [program, *rest]

    def environment(self, service: Service) -> dict[str, str]:
        """The service's environment with local addresses, and nothing of ours from outside."""
        outside = {name: value for name, value in os.environ.items() if not name.startswith(("PAIDONCE_", "OPENAI_"))}
        given = {name: self._local(value) for name, value in service.environment.items()}
        return {**outside, **given, "PAIDONCE_HOME": str(self.folder / "home"), "PYTHONWARNINGS": "ignore"}

    @contextmanager
    def started(self, name: str) -> Iterator[subprocess.Popen[bytes]]:
        """The service's command, running; ended by SIGTERM as Compose would."""
        service = self.services[name]
        assert service.command is not None
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                self.arguments(service, service.command),
                cwd=ROOT,
                env=self.environment(service),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            yield process
            assert process.poll() is None, self.log(name)
        finally:
            process.terminate()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def run(self, name: str, command: Sequence[str]) -> str:
        """One command of a service to its end; what it printed."""
        service = self.services[name]
        done = subprocess.run(
            self.arguments(service, command),
            cwd=ROOT,
            env=self.environment(service),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def log(self, name: str) -> str:
        """What a service has printed so far."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def _local(self, text: str) -> str:
        database = self._database.set(drivername="postgresql").render_as_string(hide_password=False)
        text = text.replace("postgresql://paidonce:paidonce@postgres:5432/paidonce", database)
        for name, port in PORTS_OF_SERVICES.items():
            text = text.replace(f"//{name}:{port}", f"//127.0.0.1:{self.ports[name]}")
            text = re.sub(rf"(^|=){port}$", rf"\g<1>{self.ports[name]}", text)
        return text.replace("0.0.0.0", "127.0.0.1")


@pytest.fixture
def composition(tmp_path: Path, postgres_database: str, redis_program: Path) -> Composition:
    """An empty database and free ports."""
    return Composition(tmp_path, postgres_database, redis_program)


def test_the_file_holds_the_services_that_are_promised() -> None:
    services = read_services()
    assert {"postgres", "valkey", "migrate", "worker", "flower"} <= services.keys()
    # Whatever is added is either run below or an image's own command.
    assert {name for name, service in services.items() if service.command} == {
        *("valkey", "migrate", "worker", "flower", "model", "documents")
    }
    assert services["postgres"].environment == {
        "POSTGRES_USER": "paidonce",
        "POSTGRES_PASSWORD": "paidonce",
        "POSTGRES_DB": "paidonce",
    }


def test_the_dockerfile_copies_what_an_installation_needs() -> None:
    copied = {name for line in _lines(ROOT / "Dockerfile") if line.startswith("COPY ") for name in line.split()[1:-1]}
    assert {name for name in copied if not (ROOT / name).exists()} == set()
    assert {"pyproject.toml", "README.md", "LICENSE", "models", "orchestrator", "workers", "examples"} <= copied
    assert {f"!{name}" for name in copied} <= set(_lines(ROOT / ".dockerignore"))


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_each_command_runs_as_a_plain_process_and_flower_shows_the_steps(composition: Composition) -> None:
    (submission,) = re.findall(r"docker compose run --rm worker (paidonce submit .*)", COMPOSE_FILE.read_text())
    with ExitStack() as stack:
        for name in ("valkey", "model", "documents"):
            stack.enter_context(composition.started(name))
        for name in ("valkey", "model", "documents"):
            port = composition.ports[name]
            wait_until(lambda port=port: answers("127.0.0.1", port), f"{name} answers", 30)  # type: ignore[misc]
        migrate = composition.services["migrate"]
        assert migrate.command is not None
        assert "is at schema" in composition.run("migrate", migrate.command)
        stack.enter_context(composition.started("worker"))
        stack.enter_context(composition.started("flower"))
        wait_until(lambda: _flower(composition, "/healthcheck") == "OK", "Flower answers", 60)
        wait_until(lambda: "ready." in composition.log("worker"), "the worker is ready", 60)
        wait_until(lambda: "true" in _flower(composition, "/api/workers?status=1"), "Flower sees the worker", 30)
        document = json.loads(composition.run("worker", shlex.split(submission)))
        assert document["state"] == "succeeded"
        tasks = wait_until(lambda: _tasks_of(composition, document["run_id"]), "Flower shows the steps", 30)
    steps = {task["name"] for task in tasks}
    assert {"examples.research.plan", "examples.research.web_search", "examples.research.write"} <= steps
    # Events are sent once Flower has asked for them, so the first step may be missing.
    shown = re.compile(rf"\{{agent=research, step=\d+, run={document['run_id']}\}}")
    assert all(shown.fullmatch(task["kwargs"]) for task in tasks if task["name"].startswith("examples."))


def _tasks_of(composition: Composition, run_id: str) -> list[dict[str, Any]]:
    """What Flower knows of a run, once its last step has arrived; empty before."""
    tasks = json.loads(_flower(composition, "/api/tasks?limit=500") or "{}").values()
    found = [task for task in tasks if run_id in str(task["kwargs"])]
    return found if any(task["name"].endswith(".summarise") for task in found) else []


def _flower(composition: Composition, path: str) -> str:
    """A page of Flower's, or nothing while it does not answer."""
    token = b64encode(b"paidonce:paidonce").decode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{composition.ports['flower']}{path}", headers={"Authorization": f"Basic {token}"}
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            return str(response.read().decode())
    except OSError:
        return ""


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()
