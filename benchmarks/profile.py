"""``python -m benchmarks.profile [W1]``: where the workers' CPU goes, in milliseconds a step and by part.

A case is played as by ``python -m benchmarks``, while py-spy samples who holds the interpreter's lock in every worker;
it is installed into ``.bench-venv-profile`` at first use. Each sample belongs to the innermost frame of the list below;
the shares are those of the CPU that the operating system counted. One JSON line.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from benchmarks.dbos_queue.system import ENVIRONMENT
from benchmarks.harness import measure_case
from benchmarks.workloads import PAIDONCE, WORKLOADS

SAMPLES_PER_SECOND = 200

PARTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("SQLAlchemy", ("sqlalchemy/", "sqlmodel/")),
    ("psycopg", ("psycopg/", "psycopg_binary/", "psycopg_pool/")),
    ("Redis", ("redis/", "valkey/")),
    ("Celery and kombu", ("celery/", "kombu/", "vine/", "amqp/", "billiard/")),
    ("agent's code and replay", ("paidonce/replay/", "benchmarks/agents.py")),
    ("advancing and values", ("paidonce/runs/", "paidonce/values/", "paidonce/usage/", "paidonce/policies/")),
    ("store statements", ("paidonce_models/store/", "paidonce_models/database/")),
    ("payloads", ("paidonce_models/payloads/",)),
    ("bodies", ("paidonce_workers/bodies/", "asyncio/")),
    ("breakers", ("paidonce_workers/breakers/", "paidonce_workers/resilience/", "pybreaker")),
    ("executing", ("paidonce_workers/execution/",)),
    ("delivery and pools", ("paidonce_workers/delivery/", "paidonce_workers/pools/", "paidonce/broker/")),
    ("recovery", ("paidonce_workers/recovery/", "paidonce_workers/liveness", "paidonce_models/liveness")),
)
"""What a frame's file has in its path, the first that fits; frames of the standard library belong to their callers."""


@click.command(help=__doc__)
@click.argument("name", type=click.Choice(list(WORKLOADS), case_sensitive=False), default="W1")
@click.option("--case", "case_filter", default="", help="The first case whose name contains this.")
@click.option("--store", type=click.Choice(["postgresql", "sqlite"]), default="postgresql", show_default=True)
@click.option("--broker", "broker_kind", type=click.Choice(["redis", "rabbitmq"]), default="redis", show_default=True)
@click.option("--scale", type=click.FloatRange(min=0, min_open=True), default=1.0, show_default=True)
def main(name: str, case_filter: str, store: str, broker_kind: str, scale: float) -> None:
    case = next((case for case in WORKLOADS[name.upper()].cases if case_filter in case.name), None)
    if case is None:
        raise click.UsageError(f"no case of {name} contains {case_filter!r}")
    if PAIDONCE not in case.only:
        raise click.UsageError(f"Paidonce does not play {case.name!r}")
    samples: Counter[str] = Counter()
    with sampled(samples) as watch:
        (line,) = measure_case(name.upper(), case.scaled(scale), (PAIDONCE,), store, broker_kind, watch=watch)
    parts = line["cpu_ms_per_step_by_part"]
    if not isinstance(parts, dict):
        raise TypeError(f"cpu_ms_per_step_by_part is {parts!r}")
    total = samples.total() or 1
    workers_ms = float(parts["workers"])
    by_part = {part: round(workers_ms * count / total, 3) for part, count in samples.most_common()}
    kept = ("workload", "case", "steps", "steps_per_second", "cpu_ms_per_step", "cpu_ms_per_step_by_part")
    click.echo(json.dumps({key: line[key] for key in kept} | {"samples": samples.total(), "workers_by_part": by_part}))


@contextmanager
def sampled(samples: Counter[str]) -> Iterator[Watch]:
    """Watch processes from when they are named until the block ends, and count their samples by part."""
    program = py_spy()
    with tempfile.TemporaryDirectory(prefix="paidonce-profile-") as folder:
        watch = Watch(program, Path(folder))
        try:
            yield watch
        finally:
            watch.stop()
        for file in Path(folder).glob("*.raw"):
            samples.update(count_by_part(file.read_text().splitlines()))


class Watch:
    """One py-spy for each process that is named."""

    def __init__(self, program: Path, folder: Path) -> None:
        self._program = program
        self._folder = folder
        self._running: list[subprocess.Popen[bytes]] = []

    def begin(self, process_ids: Iterable[int]) -> None:
        """Sample these until ``stop``."""
        for pid in process_ids:
            command = [str(self._program), "record", "--gil", "--format", "raw", "--rate", str(SAMPLES_PER_SECOND)]
            command += ["--duration", "unlimited", "--output", str(self._folder / f"{pid}.raw"), "--pid", str(pid)]
            self._running.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))

    def stop(self) -> None:
        """End sampling and write what was seen."""
        for process in self._running:
            process.send_signal(signal.SIGINT)  # it writes its samples
        for process in self._running:
            process.wait(30)
        self._running.clear()


def count_by_part(stacks: Iterable[str]) -> Counter[str]:
    """Lines ``frame (file:line);frame (file:line) count``, outermost first, as py-spy writes them."""
    counted: Counter[str] = Counter()
    for stack in stacks:
        frames, _, count = stack.rpartition(" ")
        counted[part_of(frames.split(";"))] += int(count)
    return counted


def part_of(frames: list[str]) -> str:
    """The part of the innermost frame that has one."""
    for frame in reversed(frames):
        for part, places in PARTS:
            if any(place in frame for place in places):
                return part
    return "other"


def py_spy() -> Path:
    """Its program; installed if it is not there."""
    program = ENVIRONMENT.parent / ".bench-venv-profile" / "bin" / "py-spy"
    if not program.exists():
        folder = program.parents[1]
        print(f"making {folder.name} with py-spy", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", str(folder)], check=True)
        install = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "--quiet"]
        subprocess.run([*install, "py-spy>=0.4,<1"], check=True, stdout=sys.stderr)
    return program


if __name__ == "__main__":
    main()
