"""``python -m benchmarks.ledger``: how long the cost queries take over a million calls, one JSON line each.

The calls are generated in the database and rolled up as a worker's sweeper does it; then every question that must be
quick is asked several times through ``paidonce.costs``, on both engines. The last lines say whether the marks are kept.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator, Sequence
from itertools import combinations

import click

from benchmarks.ledger_store import NAMESPACE, fill, settle
from benchmarks.services import postgres_database, sqlite_database
from paidonce.costs import answer, cost_question
from paidonce_models.database.schema import upgrade
from paidonce_models.database.transactions import Database
from paidonce_models.store.ledger.rolling_up import roll_up

ENGINES = ("postgresql", "sqlite")
MARKS_MS = {"postgresql": 250.0, "sqlite": 500.0}
QUICK = ("agent", "step", "tool", "model", "cause", "day")
QUESTIONS: tuple[tuple[str, ...], ...] = (
    *((name,) for name in QUICK),
    *combinations(QUICK, 2),
    ("run",),
    ("tag:customer",),
)
SLOWER: tuple[tuple[str, ...], ...] = (("run", "cause"), ("tag:customer", "agent"), ("tag:customer", "model"))
"""Asked to know, without a mark: a second name beside a run or a tag."""

Line = dict[str, object]


@click.command(help=__doc__)
@click.option("--store", "engines", multiple=True, type=click.Choice(ENGINES), help="Only these; default both.")
@click.option("--calls", type=click.IntRange(min=1000), default=1_000_000, show_default=True)
@click.option("--repeats", type=click.IntRange(min=1), default=5, show_default=True, help="The median counts.")
def main(engines: tuple[str, ...], calls: int, repeats: int) -> None:
    lines: list[Line] = []
    for engine in engines or ENGINES:
        with postgres_database() if engine == "postgresql" else sqlite_database() as url:
            for line in measure(Database(url), calls, repeats):
                lines.append({"workload": "ledger", "store": engine, "calls": calls} | line)
                click.echo(json.dumps(lines[-1]))
    for verdict in judge(lines):
        click.echo(json.dumps(verdict))


def measure(database: Database, calls: int, repeats: int) -> Iterator[Line]:
    """Fill an empty store, roll it up, and ask every question."""
    upgrade(database)
    began = time.perf_counter()
    fill(database, calls)
    yield {"act": "fill", "seconds": round(time.perf_counter() - began, 1)}
    settle(database)
    began, rolled, batches = time.perf_counter(), 0, []
    while True:
        batch_began = time.perf_counter()
        moved = database.transact(lambda connection: roll_up(connection, NAMESPACE))
        if moved == 0:
            break
        rolled += moved
        batches.append(time.perf_counter() - batch_began)
    seconds = time.perf_counter() - began
    yield {
        "act": "roll up",
        "rolled_up": rolled,
        "calls_per_second": round(rolled / seconds),
        "batch_ms_median": round(statistics.median(batches) * 1000, 1),
        "batch_ms_worst": round(max(batches) * 1000, 1),
    }
    settle(database)
    for by in (*QUESTIONS, *SLOWER):
        yield _ask(database, by, repeats)
    database.close()


def _ask(database: Database, by: Sequence[str], repeats: int) -> Line:
    question = cost_question(namespace=NAMESPACE, by=by)
    taken, rows = [], 0
    for _ in range(repeats + 1):
        began = time.perf_counter()
        rows = len(answer(database, question).rows)
        taken.append((time.perf_counter() - began) * 1000)
    return {
        "act": "ask",
        "by": ",".join(by),
        "rows": rows,
        "ms_median": round(statistics.median(taken[1:]), 1),
        "ms_worst": round(max(taken[1:]), 1),
    }


def judge(lines: Sequence[Line]) -> list[Line]:
    """One verdict per engine: the slowest median of the questions that must be quick."""
    verdicts: list[Line] = []
    quick = {",".join(by) for by in QUESTIONS}
    for engine, mark in MARKS_MS.items():
        asked = [line for line in lines if line["store"] == engine and line.get("by") in quick]
        if asked:
            slowest = max(asked, key=lambda line: float(str(line["ms_median"])))
            value = float(str(slowest["ms_median"]))
            name = f"ledger on {engine}: the slowest question, by {slowest['by']}, in ms"
            verdicts.append({"mark": name, "value": value, "at_most": mark, "kept": value <= mark})
    return verdicts


if __name__ == "__main__":
    main()
