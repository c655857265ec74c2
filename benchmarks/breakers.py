"""``python -m benchmarks.breakers``: what a closed circuit costs each call that it guards.

Nothing is called but an empty function, on a Valkey of the command's own on loopback, or a server of yours (``--url``).
Prints a table of microseconds a call and of the commands that the server was sent for it, then whether the marks are
kept. ``--json`` prints one JSON line for each row and mark instead, like the other benchmarks.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain

import click
import redis

from benchmarks.services import broker
from paidonce.policies import BreakerPolicy, describe_failure
from paidonce_workers.breakers import SUCCESS, CircuitBreakers

MOST_US = 1000.0
MOST_COMMANDS = 2.0
CIRCUIT = "benchmark"
RUN_BY_SCRIPTS = frozenset({"cmdstat_get", "cmdstat_set", "cmdstat_time", "cmdstat_info"})
"""Counted by the server, but not sent by a client; and our own question."""

Line = dict[str, object]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One row: how long each call took, in microseconds, and commands that clients sent."""

    case: str
    taken_us: list[float]
    commands: int
    wall_seconds: float

    @property
    def line(self) -> Line:
        """What is printed."""
        ordered = sorted(self.taken_us)
        calls = len(ordered)
        return {
            "case": self.case,
            "calls": calls,
            "us_p50": round(ordered[calls // 2], 1),
            "us_p99": round(ordered[calls * 99 // 100], 1),
            "calls_per_second": round(calls / self.wall_seconds),
            "commands_per_call": round(self.commands / calls, 3),
        }


@click.command(help=__doc__)
@click.option("--url", help="A Redis or Valkey that nobody else uses meanwhile; default one of our own.")
@click.option("--calls", type=click.IntRange(min=100), default=10_000, show_default=True, help="Of each row.")
@click.option("--json", "as_json", is_flag=True, help="One JSON line for each row and mark.")
def main(url: str | None, calls: int, as_json: bool) -> None:
    with _server(url) as address:
        lines = [row.line for row in measure(address, calls)]
    verdicts = judge(lines)
    if as_json:
        for line in (*lines, *verdicts):
            click.echo(json.dumps({"workload": "breakers"} | line))
        return
    click.echo(f"{'':34}{'µs p50':>9}{'µs p99':>9}{'calls/s':>10}{'commands/call':>15}")
    for line in lines:
        click.echo(
            f"{line['case']:34}{line['us_p50']:>9}{line['us_p99']:>9}{line['calls_per_second']:>10}"
            f"{line['commands_per_call']:>15}"
        )
    for verdict in verdicts:
        click.echo(f"{'kept' if verdict['kept'] else 'MISSED'}: {verdict['mark']}: {verdict['value']}")


@contextmanager
def _server(url: str | None) -> Iterator[str]:
    with broker("redis") if url is None else nullcontext() as own:
        yield url if own is None else own.url


def measure(url: str, calls: int) -> Iterator[Measured]:
    """All rows, each after a tenth of its calls as a warm-up."""
    breakers = CircuitBreakers(url, namespace=f"benchmark-{uuid.uuid4().hex[:8]}", classify=describe_failure)
    policy = BreakerPolicy()

    def guard() -> None:
        with breakers.guard(CIRCUIT, policy):
            _nothing()

    def step() -> None:
        admission = breakers.admit(CIRCUIT, policy, token="benchmark")
        _nothing()
        breakers.report(admission, SUCCESS)

    async def guard_async() -> None:
        async with breakers.guard(CIRCUIT, policy):
            await _nothing_async()

    breakers.start()
    try:
        with redis.Redis.from_url(url) as client:
            yield _threads(client, "PING by redis-py", client.ping, calls)
            yield _threads(client, "def, unguarded", _nothing, calls)
            yield _threads(client, "def, guarded", guard, calls)
            yield _threads(client, "def, guarded, 8 threads", guard, calls, threads=8)
            yield _threads(client, "step: admit and report", step, calls)
            yield _tasks(client, "async def, unguarded", _nothing_async, calls)
            yield _tasks(client, "async def, guarded", guard_async, calls)
            yield _tasks(client, "async def, guarded, 16 at once", guard_async, calls, tasks=16)
    finally:
        breakers.close()


def judge(lines: list[Line]) -> list[Line]:
    """The two promises about a call through a closed circuit, for the slowest of those made one at a time."""
    guarded = [line for line in lines if line["case"] in ("def, guarded", "step: admit and report")]
    slowest = max(float(str(line["us_p50"])) for line in guarded)
    most = max(float(str(line["commands_per_call"])) for line in lines if "guarded" in str(line["case"]))
    return [
        {"mark": "a guarded call in µs, p50", "value": slowest, "at_most": MOST_US, "kept": slowest <= MOST_US},
        {"mark": "commands for a guarded call", "value": most, "at_most": MOST_COMMANDS, "kept": most <= MOST_COMMANDS},
    ]


def _threads(client: redis.Redis, case: str, act: Callable[[], object], calls: int, *, threads: int = 1) -> Measured:
    def work(times: int) -> list[float]:
        taken = []
        for _ in range(times):
            began = time.perf_counter()
            act()
            taken.append((time.perf_counter() - began) * 1e6)
        return taken

    with ThreadPoolExecutor(threads) as pool:
        each = calls // threads
        list(pool.map(work, [each // 10] * threads))
        before, began = _commands(client), time.perf_counter()
        taken = list(chain.from_iterable(pool.map(work, [each] * threads)))
        wall_seconds, commands = time.perf_counter() - began, _commands(client) - before
    return Measured(case=case, taken_us=taken, commands=commands, wall_seconds=wall_seconds)


def _tasks(
    client: redis.Redis, case: str, act: Callable[[], Awaitable[object]], calls: int, *, tasks: int = 1
) -> Measured:
    async def work(times: int) -> list[float]:
        taken = []
        for _ in range(times):
            began = time.perf_counter()
            await act()
            taken.append((time.perf_counter() - began) * 1e6)
        return taken

    async def run() -> Measured:
        each = calls // tasks
        await asyncio.gather(*(work(each // 10) for _ in range(tasks)))
        before, began = _commands(client), time.perf_counter()
        taken = list(chain.from_iterable(await asyncio.gather(*(work(each) for _ in range(tasks)))))
        wall_seconds, commands = time.perf_counter() - began, _commands(client) - before
        return Measured(case=case, taken_us=taken, commands=commands, wall_seconds=wall_seconds)

    return asyncio.run(run())


def _commands(client: redis.Redis) -> int:
    """Commands that clients have sent to the server so far."""
    found = client.info("commandstats")
    return sum(stats["calls"] for name, stats in found.items() if name not in RUN_BY_SCRIPTS)


def _nothing() -> None:
    """What is guarded."""


async def _nothing_async() -> None:
    """What is guarded."""


if __name__ == "__main__":
    main()
