"""A project folder of a test's own, in which the real command line runs as a process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from paidonce.client import Client
from paidonce.embedded import stop_embedded
from paidonce.settings import Settings
from paidonce_models.database.schema import upgrade
from paidonce_models.database.transactions import Database
from tests.services import fork_server
from tests.services.fork_server import ForkedProcess

PROGRAM = (sys.executable, "-m", "paidonce.cli")
COMMAND_SECONDS = 50
NOBODY_LISTENS = "127.0.0.1:1"

AGENTS = """
import asyncio

from paidonce import agent, record_usage, step, tool


@step
async def add(a: int, b: int) -> int:
    record_usage(None, provider="openai", model="gpt-4o-mini", input_tokens=1_000, output_tokens=50)
    return a + b


@tool(queue="side")
def divide(a: int, b: int) -> float:
    return a / b


@step
async def dawdle(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "done"


@agent
async def adder(count: int) -> int:
    total = 0
    for number in range(count):
        total = await add(total, number)
    return total


@agent(name="division")
async def divides(a: int, b: int) -> float:
    return await divide(a, b)


@agent
async def family(count: int) -> int:
    return await add(await adder(count), 1)


@agent
async def slow(seconds: float) -> str:
    return await dawdle(seconds)
"""


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document on standard output; fails if there is anything else."""
        return json.loads(self.out)

    @property
    def error(self) -> dict[str, Any]:
        """The error on standard output; no traceback may stand on the other."""
        assert "Traceback" not in self.err, self.err
        error: dict[str, Any] = self.document["error"]
        return error


class Project:
    """A folder with ``agents.py``, its settings, and ``paidonce`` run inside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / ".paidonce"
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("PAIDONCE_")}
        self.environment["PYTHONWARNINGS"] = "ignore"  # Celery's about running as root

    def paidonce(self, *arguments: str, stdin: str | None = None, **settings: str) -> Result:
        """Run one command to its end; ``settings`` without their prefix."""
        with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            given.write((stdin or "").encode())
            given.seek(0)
            process = fork_server.start(
                "paidonce.cli",
                arguments,
                folder=self.folder,
                environment=self.with_settings(settings),
                stdin=given.fileno(),
                stdout=out.fileno(),
                stderr=err.fileno(),
            )
            try:
                code = process.wait(COMMAND_SECONDS)
            finally:
                process.kill()
            out.seek(0)
            err.seek(0)
            return Result(code, out.read().decode(), err.read().decode())

    def entry_point(self, *arguments: str, stdin: str | None = None, **settings: str) -> Result:
        """``paidonce`` as a new interpreter runs it, which costs a second."""
        done = subprocess.run(
            [*PROGRAM, *arguments],
            cwd=self.folder,
            env=self.with_settings(settings),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    @contextmanager
    def started(self, *arguments: str, **settings: str) -> Iterator[ForkedProcess]:
        """A command that goes on beside the test; killed at the end if it still runs. Its output is in a file."""
        with (self.folder / "started.log").open("w") as log:
            process = fork_server.start(
                "paidonce.cli",
                arguments,
                folder=self.folder,
                environment=self.with_settings(settings),
                stdout=log.fileno(),
                stderr=log.fileno(),
            )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()

    def log(self) -> str:
        """What the started command has printed so far."""
        return (self.folder / "started.log").read_text()

    def with_settings(self, settings: Mapping[str, str]) -> dict[str, str]:
        """The environment of a command."""
        return {**self.environment, **{f"PAIDONCE_{name}": value for name, value in settings.items()}}

    def client(self) -> Client:
        """A client on the project's store, for what a test has to arrange."""
        return Client(Settings(home=self.home))


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with today's tables, to be copied: to make one takes as long as several commands."""
    file = tmp_path_factory.mktemp("empty-store") / "paidonce.db"
    database = Database(f"sqlite:///{file}", pool_size=1)
    upgrade(database)
    database.close()
    return file


@pytest.fixture
def new_project(tmp_path: Path) -> Iterator[Project]:
    """No store, no broker yet, and the agents above."""
    (tmp_path / "agents.py").write_text(AGENTS)
    made = Project(tmp_path)
    yield made
    stop_embedded(made.home)


@pytest.fixture
def project(new_project: Project, empty_store: Path) -> Project:
    """An empty store, no broker yet, and the agents above."""
    new_project.home.mkdir(mode=0o700)
    shutil.copy(empty_store, new_project.home)
    (new_project.home / empty_store.name).chmod(0o600)
    return new_project
