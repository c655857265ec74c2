"""One measurement from start to end, and the line it prints."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from benchmarks.dbos_queue.system import DbosQueue
from benchmarks.measuring import Meter, StoreCounters, read_store_counters
from benchmarks.paidonce_system import Paidonce
from benchmarks.plain_celery.system import PlainCelery
from benchmarks.services import Broker, broker, postgres_database, sqlite_database
from benchmarks.systems import System
from benchmarks.workloads import DBOS, PAIDONCE, PLAIN_CELERY, Case, PlainPool

Line = dict[str, object]


class Watcher(Protocol):
    """Something that looks at the workers while a case is measured."""

    def begin(self, process_ids: Sequence[int]) -> None:
        """The case begins, in these processes and their children."""

    def stop(self) -> None:
        """The case has ended; the processes still run."""


def measure_case(
    workload: str,
    case: Case,
    system_names: tuple[str, ...],
    store: str,
    broker_kind: str,
    *,
    watch: Watcher | None = None,
) -> Iterator[Line]:
    """Measure one case with each system that can do it, on servers of its own; yields one line each.

    ``watch`` is told the worker processes after the warm-up, and the end.
    """
    for name in case.only:
        if name not in system_names:
            continue
        variants: tuple[PlainPool | None, ...] = case.plain_pools if name == PLAIN_CELERY else (None,)
        for pool in variants:
            with _system(name, case, store, broker_kind, pool) as (system, database_url, broker_ids):
                yield {"workload": workload, "case": case.name} | _measure(
                    system, case, database_url, broker_ids, watch
                )


@contextmanager
def _system(
    name: str, case: Case, store: str, broker_kind: str, pool: PlainPool | None
) -> Iterator[tuple[System, str | None, tuple[int, ...]]]:
    """The system and what it runs on; everything is gone afterwards."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="paidonce-bench-", dir="/tmp")))
        database_url: str | None = None
        own_broker: Broker | None = None
        if name == DBOS or (name == PAIDONCE and store == "postgresql"):
            database_url = stack.enter_context(postgres_database())
        elif name == PAIDONCE:
            database_url = stack.enter_context(sqlite_database())
        if name != DBOS:
            own_broker = stack.enter_context(broker(broker_kind))
        broker_ids = own_broker.process_ids if own_broker is not None else ()
        yield _build(name, case, database_url, own_broker, folder, pool), database_url, broker_ids


def _build(
    name: str, case: Case, database_url: str | None, own_broker: Broker | None, folder: Path, pool: PlainPool | None
) -> System:
    if name == PLAIN_CELERY and own_broker is not None and pool is not None:
        return PlainCelery(case, own_broker, folder, pool)
    if name == DBOS and database_url is not None:
        return DbosQueue(case, database_url, folder)
    if name == PAIDONCE and database_url is not None and own_broker is not None:
        return Paidonce(case, database_url, own_broker, folder)
    raise ValueError(f"no system is named {name!r}")


def _measure(
    system: System,
    case: Case,
    database_url: str | None,
    broker_ids: tuple[int, ...],
    watch: Watcher | None,
) -> Line:
    postgres = database_url if database_url is not None and database_url.startswith("postgresql") else None
    warm_up = replace(case, runs=min(20, case.runs * 4), steps=min(3, case.steps))
    system_started = False
    try:
        system.start()
        system_started = True
        system.run(warm_up)
        before = read_store_counters(postgres) if postgres is not None else StoreCounters()
        meter = Meter(trees=system.trees, producers=system.producers, broker_ids=broker_ids, database_url=postgres)
        if watch is not None:
            watch.begin(system.trees)
        meter.start()
        system.run(case)
        reading = meter.stop()
        if watch is not None:
            watch.stop()
        extra = _optional(system, "details")
    finally:
        system.stop()
    if not system_started:
        raise RuntimeError(f"{system.name} did not start")
    steps = case.total_steps
    cpu_total = sum(reading.cpu_seconds.values())
    line: Line = {
        "system": system.name,
        "variant": system.variant,
        "steps": steps,
        "result_bytes": case.result_bytes,
        "wall_seconds": round(reading.wall_seconds, 3),
        "steps_per_second": round(steps / reading.wall_seconds, 1),
        "wall_ms_per_step": round(reading.wall_seconds * 1000 / steps, 3),
        "cpu_ms_per_step": round(cpu_total * 1000 / steps, 3),
        "cpu_ms_per_step_by_part": {
            part: round(seconds * 1000 / steps, 3) for part, seconds in reading.cpu_seconds.items()
        },
        "peak_memory_mib": round(reading.peak_memory_bytes / 2**20, 1),
    }
    if postgres is not None:
        after = read_store_counters(postgres)
        line |= {
            "rows_read_per_step": round((after.rows_read - before.rows_read) / steps, 2),
            "rows_read_per_step_by_table": {
                table: round(per_step, 2)
                for table, read in sorted(after.rows_read_by_table.items())
                if (per_step := (read - before.rows_read_by_table.get(table, 0)) / steps) >= 0.1
            },
            "rows_written_per_step": round((after.rows_written - before.rows_written) / steps, 2),
            "commits_per_step": round((after.commits - before.commits) / steps, 2),
            "stored_bytes": after.stored_bytes - before.stored_bytes,
        }
    return line | extra | {"python": platform.python_version()}


def _optional(system: System, name: str) -> Line:
    """What only some systems can tell, such as the time of single turns."""
    tell: Callable[[], Line] | None = getattr(system, name, None)
    return tell() if tell is not None else {}
