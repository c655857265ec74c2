"""``python -m benchmarks [W1 …]``: measure workloads and print one JSON line per case and system, then one per mark.

Everything is started and removed by the command itself; PostgreSQL must run (see ``services``). Standard output
carries the lines only, standard error what is going on.
"""

from __future__ import annotations

import json
import signal
import sys

import click

from benchmarks.harness import measure_case
from benchmarks.marks import judge
from benchmarks.workloads import DBOS, PAIDONCE, PLAIN_CELERY, WORKLOADS

SYSTEMS = (PLAIN_CELERY, DBOS, PAIDONCE)


@click.command(help=__doc__)
@click.argument("names", nargs=-1, type=click.Choice(list(WORKLOADS), case_sensitive=False))
@click.option("--store", type=click.Choice(["postgresql", "sqlite"]), default="postgresql", help="Paidonce's store.")
@click.option("--broker", "broker_kind", type=click.Choice(["redis", "rabbitmq"]), default="redis")
@click.option("--system", "systems", multiple=True, type=click.Choice(SYSTEMS), help="Only these; default all.")
@click.option("--scale", type=click.FloatRange(min=0, min_open=True), default=1.0, help="0.1 does a tenth.")
@click.option("--case", "case_filter", default="", help="Only cases whose name contains this.")
def main(
    names: tuple[str, ...], store: str, broker_kind: str, systems: tuple[str, ...], scale: float, case_filter: str
) -> None:
    # `timeout` and CI end us by SIGTERM: what was started must go then, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    lines: list[dict[str, object]] = []
    for name in names or tuple(WORKLOADS):
        workload = WORKLOADS[name.upper()]
        click.echo(f"{workload.name}: {workload.shows}", err=True)
        for case in workload.cases:
            if case_filter not in case.name:
                continue
            for line in measure_case(workload.name, case.scaled(scale), systems or SYSTEMS, store, broker_kind):
                lines.append(line | {"store": store, "broker": broker_kind, "scale": scale})
                click.echo(json.dumps(lines[-1]))
                sys.stdout.flush()
    for verdict in judge(lines):
        click.echo(json.dumps(verdict))


if __name__ == "__main__":
    main()
