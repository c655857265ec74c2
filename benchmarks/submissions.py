"""``python -m benchmarks.submissions``: how many runs one producer submits in a second, one by one and many at once.

A worker is registered that holds the agent, and none runs: what is measured is the producer, the store and the broker
alone. One JSON line for each way, then one for each mark. CPU is that of the producer.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from benchmarks.services import broker, postgres_database, sqlite_database
from paidonce import Client, Submission
from paidonce_models.database.schema import upgrade
from paidonce_models.database.transactions import Database
from paidonce_models.queues import DEFAULT_NAMESPACE, DEFAULT_QUEUE
from paidonce_models.store.recovery.workers import HeldAgent, Registration, register_worker

AGENT = "research"
ONE_BY_ONE, MANY = "submit", "submit_many"
MARKS = {ONE_BY_ONE: 500.0, MANY: 3_000.0}
"""Submissions a second on PostgreSQL and Redis."""
WARM_UP = 20

Line = dict[str, object]


@click.command(help=__doc__)
@click.option("--store", type=click.Choice(["postgresql", "sqlite"]), default="postgresql", show_default=True)
@click.option("--broker", "broker_kind", type=click.Choice(["redis", "rabbitmq"]), default="redis", show_default=True)
@click.option(
    "--runs", type=click.IntRange(min=10), default=1_000, show_default=True, help="One by one; ten times many."
)
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True, help="The best counts.")
def main(store: str, broker_kind: str, runs: int, repeats: int) -> None:
    best: dict[str, Line] = {}
    with (
        postgres_database() if store == "postgresql" else sqlite_database() as url,
        broker(broker_kind) as queues,
        tempfile.TemporaryDirectory(prefix="paidonce-bench-") as home,
    ):
        _prepare(url)
        client = Client(home=Path(home), database_url=url, broker_url=queues.url)
        for _ in range(repeats):
            for line in measure(client, runs):
                click.echo(json.dumps({"workload": "submissions", "store": store, "broker": broker_kind} | line))
                act = str(line["act"])
                if act not in best or _rate(line) > _rate(best[act]):
                    best[act] = line
        client.database.close()
    for act, line in best.items():
        mark = f"submissions a second by one producer, {act}, on {store} and {broker_kind}"
        verdict = {"mark": mark, "value": _rate(line), "at_least": MARKS[act], "kept": _rate(line) >= MARKS[act]}
        click.echo(json.dumps(verdict))


def measure(client: Client, runs: int) -> Iterator[Line]:
    """Submit so many runs one by one, and ten times as many at once, each with a key, a tag and a small input."""
    begun = time.time_ns()

    def given(number: int) -> Submission:
        return Submission(
            input={"question": f"why {number}?", "depth": 3}, key=f"{begun}-{number}", tags={"user": f"u{number % 97}"}
        )

    def one_by_one() -> int:
        for number in range(runs):
            each = given(number)
            client.submit(AGENT, each.input, key=each.key, tags=each.tags)
        return runs

    def many() -> int:
        return len(client.submit_many(AGENT, map(given, range(runs, 11 * runs))))

    for number in range(WARM_UP):
        client.submit(AGENT, {"warm": number})
    yield _timed(ONE_BY_ONE, one_by_one)
    yield _timed(MANY, many)


def _timed(act: str, work: Callable[[], int]) -> Line:
    cpu, began = time.process_time(), time.perf_counter()
    runs = work()
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    return {
        "act": act,
        "runs": runs,
        "submissions_per_second": round(runs / seconds, 1),
        "cpu_ms_per_submission": round(cpu * 1000 / runs, 3),
    }


def _prepare(url: str) -> None:
    database = Database(url, pool_size=1)
    upgrade(database)
    registration = Registration(
        worker="bench",
        namespace=DEFAULT_NAMESPACE,
        hostname="bench",
        pid=1,
        python_minor="3.11",
        queues=[DEFAULT_QUEUE],
        agents=[HeldAgent(name=AGENT, version="1", signature="bench")],
    )
    database.transact(lambda connection: register_worker(connection, registration))
    database.close()


def _rate(line: Line) -> float:
    return float(str(line["submissions_per_second"]))


if __name__ == "__main__":
    main()
