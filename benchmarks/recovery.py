"""``python -m benchmarks.recovery``: how long after a SIGKILL the next attempt of what was lost begins.

Plays ``paidonce drill crash`` on every pair of store and broker, with threads and with prefork: a worker, one child,
all children or the parent alone are killed while others are up. Prints one row per pair as a Markdown table, of
kills that took something with them: each counts once, with the last of its steps that went on. Exit code 1 if a
finished step was repeated. PostgreSQL and RabbitMQ must run (see ``services``).
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import click

from benchmarks.services import broker, postgres_database
from paidonce.drill.crash import CrashDrill, CrashReport, run_crash_drill

PAIRS = ("sqlite-embedded", "postgresql-redis", "postgresql-rabbitmq")
POOLS = ("threads", "prefork")
SECONDS_PER_KILL = 30.0


@click.command(help=__doc__)
@click.option("--kills", type=click.IntRange(1), default=100, show_default=True, help="For each row.")
@click.option("--pair", "pairs", multiple=True, type=click.Choice(PAIRS), help="Only these; default all.")
@click.option("--pool", "pools", multiple=True, type=click.Choice(POOLS), help="Only these; default all.")
@click.option("--workers", type=click.IntRange(2), default=3, show_default=True)
def main(kills: int, pairs: tuple[str, ...], pools: tuple[str, ...], workers: int) -> None:
    repeated = 0
    click.echo("| store and broker | pool | kills | p50 | p99 | worst | finished steps repeated |")
    click.echo("|---|---|---|---|---|---|---|")
    for pair in pairs or PAIRS:
        for pool in pools or POOLS:
            report = _measure(pair, pool, kills, workers)
            evidence = report.evidence
            repeated += evidence.repeated
            times = " | ".join(
                "-" if seconds is None else f"{seconds:.2f} s"
                for seconds in map(evidence.recovery_by_kill, (0.5, 0.99, 1.0))
            )
            click.echo(f"| {pair} | {pool} | {len(evidence.slowest_by_kill)} | {times} | {evidence.repeated} |")
            sys.stdout.flush()
    sys.exit(1 if repeated else 0)


def _measure(pair: str, pool: str, kills: int, workers: int) -> CrashReport:
    # Each worker alone has room for all runs, so that what is measured is never the wait for a free place.
    with _engines(pair) as (database_url, broker_url):
        drill = CrashDrill(
            runs=4,
            steps=kills * 6,
            kills=kills,
            workers=workers,
            concurrency=6,
            pool=pool,
            latency_ms=1500.0,
            every_seconds=0.5,
            database_url=database_url,
            broker_url=broker_url,
            limit_seconds=kills * SECONDS_PER_KILL,
            ends_with_the_kills=True,
        )
        return run_crash_drill(drill, lambda line: click.echo(line, err=True))


@contextlib.contextmanager
def _engines(pair: str) -> Iterator[tuple[str | None, str | None]]:
    """Store and broker for one row; ``None`` is the embedded default of the drill."""
    if pair == "sqlite-embedded":
        yield None, None
        return
    with postgres_database() as database, broker(pair.partition("-")[2]) as found:
        yield database, found.url


if __name__ == "__main__":
    main()
