"""``paidonce drill``: the drills' options, and what is printed at their end."""

from __future__ import annotations

import click

from paidonce.cli.exit_codes import EXIT_FAILED, EXIT_OK
from paidonce.cli.output import json_option, print_json, say
from paidonce.drill.crash import CrashDrill, run_crash_drill
from paidonce.drill.outage import OutageDrill, run_side
from paidonce.drill.outage_report import OutageReport, outage_document, outage_lines
from paidonce.drill.report import crash_document, crash_lines


@click.command()
@click.option("--runs", type=click.IntRange(1), default=20, show_default=True, help="How many runs are submitted.")
@click.option("--steps", type=click.IntRange(1), default=48, show_default=True, help="Paid steps of each run.")
@click.option("--kills", type=click.IntRange(0), default=3, show_default=True, help="How often a worker is killed.")
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="Worker processes.")
@click.option("--concurrency", type=click.IntRange(1), default=8, show_default=True, help="Steps at once per worker.")
@click.option("--pool", type=click.Choice(["threads", "prefork", "mixed"]), default="threads", show_default=True)
@click.option("--latency-ms", type=click.FloatRange(0), default=20.0, show_default=True, help="Time of each paid call.")
@click.option(
    "--every",
    "every_seconds",
    type=click.FloatRange(0.1),
    default=4.0,
    show_default=True,
    help="Seconds between two kills, at most.",
)
@click.option("--seed", type=int, default=None, help="Repeat the choice of victims and moments.")
@click.option("--database-url", default=None, help="A store of the drill's own; by default SQLite in a fresh folder.")
@click.option("--broker-url", default=None, help="A broker of the drill's own; by default the embedded Valkey.")
@click.option(
    "--limit",
    "limit_seconds",
    type=click.FloatRange(1),
    default=600.0,
    show_default=True,
    help="Seconds after which to give up.",
)
@json_option
def crash(
    runs: int,
    steps: int,
    kills: int,
    workers: int,
    concurrency: int,
    pool: str,
    latency_ms: float,
    every_seconds: float,
    seed: int | None,
    database_url: str | None,
    broker_url: str | None,
    limit_seconds: float,
    as_json: bool,
) -> int:
    """Kill workers at random moments and count, at a server outside, whether a finished step was paid again.

    Uses a store and a broker of its own and leaves those of PAIDONCE_DATABASE_URL and PAIDONCE_BROKER_URL alone.
    Exit code 0 if every run finished and no finished step was repeated, else 1.
    """
    report = run_crash_drill(
        CrashDrill(
            runs=runs,
            steps=steps,
            kills=kills,
            workers=workers,
            concurrency=concurrency,
            pool=pool,
            latency_ms=latency_ms,
            every_seconds=every_seconds,
            seed=seed,
            database_url=database_url,
            broker_url=broker_url,
            limit_seconds=limit_seconds,
        ),
        say,
    )
    if as_json:
        print_json(crash_document(report))
    else:
        for line in crash_lines(report):
            click.echo(line)
    return EXIT_OK if report.holds else EXIT_FAILED


@click.command()
@click.option("--runs", type=click.IntRange(1), default=50, show_default=True, help="Runs that need the tool.")
@click.option("--workers", type=click.IntRange(1), default=4, show_default=True, help="Worker processes.")
@click.option("--concurrency", type=click.IntRange(1), default=2, show_default=True, help="Steps at once per worker.")
@click.option("--seconds", type=click.FloatRange(5), default=60.0, show_default=True, help="How long the tool is down.")
@click.option("--only-protected", is_flag=True, help="Leave out the same agents without the breaker.")
@click.option("--database-url", default=None, help="A store of the drill's own; by default SQLite in a fresh folder.")
@click.option("--broker-url", default=None, help="A broker of the drill's own; by default the embedded Valkey.")
@click.option(
    "--limit",
    "limit_seconds",
    type=click.FloatRange(1),
    default=300.0,
    show_default=True,
    help="Seconds after the tool is back, after which to give up.",
)
@json_option
def outage(
    runs: int,
    workers: int,
    concurrency: int,
    seconds: float,
    only_protected: bool,
    database_url: str | None,
    broker_url: str | None,
    limit_seconds: float,
    as_json: bool,
) -> int:
    """Take a tool down under many agents and count, at its own server, what reaches it and what is spent about it.

    The same agents run a second time with PAIDONCE_BREAKERS=off; both bills are printed. Exit code 0 if the tool was
    left alone while it was down, no model call was made about it, and every run finished soon after.
    """
    drill = OutageDrill(
        runs=runs,
        workers=workers,
        concurrency=concurrency,
        seconds=seconds,
        limit_seconds=limit_seconds,
        database_url=database_url,
        broker_url=broker_url,
    )
    protected = run_side(drill, has_breaker=True, say=say)
    without = None
    if not only_protected:
        say("once more, with PAIDONCE_BREAKERS=off")
        without = run_side(drill, has_breaker=False, say=say)
    report = OutageReport(drill=drill, protected=protected, without=without)
    if as_json:
        print_json(outage_document(report))
    else:
        for line in outage_lines(report):
            click.echo(line)
    return EXIT_FAILED if report.faults else EXIT_OK


@click.group(commands=[crash, outage])
def drill() -> None:
    """Break things on purpose and count what it costs."""
