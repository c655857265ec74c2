"""CPU, memory and store statistics of one measurement.

Owns what is counted and how. CPU is user + system time between start and stop of: the workers' process trees
(with ended children), the producer, the PostgreSQL backends of the measured database (not the server's shared
background writers), and the broker's process. Memory is the peak sum over the workers' trees, proportional set size
where Linux tells it, resident size elsewhere. Store counters come from PostgreSQL's own statistics and are read after
the workers have gone, because a backend reports them late.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import psycopg

from benchmarks.services import postgres_server

_SAMPLE_SECONDS = 0.25


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What one measurement found; seconds of CPU by part."""

    wall_seconds: float
    cpu_seconds: dict[str, float]
    peak_memory_bytes: int


@dataclass(frozen=True, kw_only=True)
class StoreCounters:
    """PostgreSQL's counters of one database since its creation."""

    rows_read: int = 0
    rows_written: int = 0
    commits: int = 0
    stored_bytes: int = 0
    rows_read_by_table: dict[str, int] = field(default_factory=dict)


@dataclass
class Meter:
    """Measures between ``start`` and ``stop``. ``trees`` are the roots of the workers' process trees."""

    trees: Iterable[int]
    producers: Iterable[int] = ()
    broker_ids: Iterable[int] = ()
    database_url: str | None = None
    _before: dict[str, float] = field(default_factory=dict)
    _backends: dict[int, tuple[float, float]] = field(default_factory=dict)
    _peak: int = 0
    _started: float = 0.0
    _thread_started: float = 0.0
    _ended: threading.Event = field(default_factory=threading.Event)
    _sampler: threading.Thread | None = None

    def start(self) -> None:
        """Begin on the thread that produces: its own CPU counts as the producer's."""
        self._before = {
            "workers": sum(map(_tree_cpu, self.trees)),
            "producer": sum(map(_tree_cpu, self.producers)),
            "broker": sum(map(_tree_cpu, self.broker_ids)),
        }
        self._sample_backends(first=True)
        self._sampler = threading.Thread(target=self._sample, name="meter", daemon=True)
        self._sampler.start()
        self._started, self._thread_started = time.perf_counter(), time.thread_time()

    def stop(self) -> Reading:
        """End, while the workers still live."""
        wall = time.perf_counter() - self._started
        own = time.thread_time() - self._thread_started
        self._ended.set()
        if self._sampler is not None:
            self._sampler.join()
        self._sample_backends(first=False)
        self._sample_memory()
        cpu = {
            "workers": sum(map(_tree_cpu, self.trees)) - self._before["workers"],
            "producer": sum(map(_tree_cpu, self.producers)) - self._before["producer"] + own,
            "broker": sum(map(_tree_cpu, self.broker_ids)) - self._before["broker"],
            "postgresql": sum(last - first for first, last in self._backends.values()),
        }
        return Reading(wall_seconds=wall, cpu_seconds=cpu, peak_memory_bytes=self._peak)

    def _sample(self) -> None:
        while not self._ended.wait(_SAMPLE_SECONDS):
            self._sample_backends(first=False)
            self._sample_memory()

    def _sample_backends(self, *, first: bool) -> None:
        """A backend that appears later began at zero; one that goes keeps its last sample."""
        if self.database_url is None:
            return
        name = urlsplit(self.database_url).path.lstrip("/")
        with psycopg.connect(postgres_server(), autocommit=True) as connection:
            found = connection.execute("SELECT pid FROM pg_stat_activity WHERE datname = %s", (name,)).fetchall()
        for (pid,) in found:
            used = _tree_cpu(pid)
            begin = self._backends[pid][0] if pid in self._backends else (used if first else 0.0)
            self._backends[pid] = (begin, max(used, begin))

    def _sample_memory(self) -> None:
        self._peak = max(self._peak, sum(map(_tree_memory, self.trees)))


def read_store_counters(database_url: str) -> StoreCounters:
    """Rows that scans returned, rows written, commits and bytes on disk of all user tables."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("SELECT pg_stat_force_next_flush()")
        rows = connection.execute(
            "SELECT coalesce(sum(coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0)), 0)::bigint,"
            " coalesce(sum(n_tup_ins + n_tup_upd + n_tup_del), 0)::bigint,"
            " coalesce(sum(pg_total_relation_size(relid)), 0)::bigint FROM pg_stat_user_tables"
        ).fetchone()
        tables = connection.execute(
            "SELECT relname, coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0) FROM pg_stat_user_tables"
        ).fetchall()
        commits = connection.execute(
            "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"
        ).fetchone()
    if rows is None or commits is None:
        return StoreCounters()
    return StoreCounters(
        rows_read=rows[0],
        rows_written=rows[1],
        stored_bytes=rows[2],
        commits=commits[0],
        rows_read_by_table=dict(tables),
    )


def _tree(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _tree_cpu(pid: int) -> float:
    """CPU seconds of a tree, with the children that have ended and been waited for."""
    total = 0.0
    for process in _tree(pid):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def _tree_memory(pid: int) -> int:
    return sum(_memory(process) for process in _tree(pid))


def _memory(process: psutil.Process) -> int:
    try:
        for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux, or just gone
    try:
        resident: int = process.memory_info().rss
    except psutil.NoSuchProcess:
        return 0
    return resident
