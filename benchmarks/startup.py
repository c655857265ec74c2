"""``python -m benchmarks.startup``: how much CPU imports, and the commands that read, take before they do anything.

Each is a process of its own, on a SQLite store that is there already and holds one run. Prints one row for each as a
Markdown table: the least and the median of user and system time together, as only the least says what it takes where
others use the machine as well. ``import sqlalchemy`` and ``import celery.app`` are there to compare machines by.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click

from paidonce import Client

IMPORTS = (
    *("pass", "import sqlalchemy", "import celery.app"),
    *("import paidonce", "from paidonce import agent, step, tool", "from paidonce import agent, step, tool, Client"),
    "import paidonce_workers.startup.worker_program",
)
COMMANDS = (
    *("--help", "runs", "show RUN", "costs", "bill RUN", "budget list", "prices list"),
    *("policies show search", "breakers"),
)
AGENTS = """
from paidonce import tool

@tool
def search(query: str) -> str:
    return query
"""


@click.command(help=__doc__)
@click.option("--times", type=click.IntRange(1), default=7, show_default=True, help="How often each is started.")
@click.option("--redis", "redis_url", default="redis://127.0.0.1:6379/15", show_default=True, help="For `breakers`.")
def main(times: int, redis_url: str) -> None:
    click.echo("| what | least CPU | median |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "bench_agents.py").write_text(AGENTS, encoding="utf-8")
        home = str(folder / "home")
        client = Client(home=home, broker_url="memory://")
        run_id = client.submit("nobody").id
        client.database.close()
        outside = {key: value for key, value in os.environ.items() if not key.startswith("PAIDONCE_")}
        inside = {"PAIDONCE_HOME": home, "PAIDONCE_AGENTS": "bench_agents.py", "PAIDONCE_REDIS_URL": redis_url}
        for statement in IMPORTS:
            _tell(f"python -c {statement!r}", [sys.executable, "-c", statement], times, folder, outside | inside)
        for command in COMMANDS:
            arguments = command.replace("RUN", run_id).split()
            program = [sys.executable, "-m", "paidonce.cli", *arguments]
            _tell(f"paidonce {command}", program, times, folder, outside | inside)


def _tell(label: str, program: Sequence[str], times: int, folder: Path, environment: dict[str, str]) -> None:
    taken = [_cpu_seconds(program, folder, environment) for _ in range(times)]
    click.echo(f"| `{label}` | {min(taken):.3f} s | {statistics.median(taken):.3f} s |")


def _cpu_seconds(program: Sequence[str], folder: Path, environment: dict[str, str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(program, cwd=folder, env=environment, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
