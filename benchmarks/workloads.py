"""What is measured: the seven workloads, each a few cases that every system runs in the same shape.

A case's ``shape`` says how its steps depend on each other: ``chain`` (each after the one before), ``gather`` (all at
once), ``conversation`` (a chain whose argument is the list of all earlier turns). ``only`` names the systems that can
do it at all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

PAIDONCE, PLAIN_CELERY, DBOS = "paidonce", "plain-celery", "dbos"


class PlainPool(NamedTuple):
    """A pool of stock Celery: children of one prefork worker, or worker processes with ``threads`` each."""

    pool: str
    processes: int
    threads: int = 16


@dataclass(frozen=True, kw_only=True)
class Case:
    """One measurement. ``processes`` and ``concurrency`` are those of Paidonce's and DBOS's worker fleet."""

    name: str
    runs: int = 1
    steps: int
    shape: str = "chain"
    agent: str | None = None
    """Paidonce's agent for it, where that is not the shape's."""
    wait_seconds: float = 0.0
    result_bytes: int = 1024
    processes: int = 2
    concurrency: int = 16
    cache_size: int = 1000
    turn_seconds: float = 5.0
    only: tuple[str, ...] = (PLAIN_CELERY, PAIDONCE, DBOS)
    plain_pools: tuple[PlainPool, ...] = (PlainPool("prefork", 2),)
    burst_steps: int = 0
    """How many steps that do nothing one more run has, which begins at the same moment and is not measured itself."""

    @property
    def total_steps(self) -> int:
        """Steps over all runs."""
        return self.runs * self.steps

    def scaled(self, factor: float) -> Case:
        """Fewer (or more) runs, and where there is one run fewer steps, never below 5."""
        if factor == 1:
            return self
        if self.runs > 1:
            return replace(self, runs=max(5, round(self.runs * factor)))
        return replace(self, steps=max(5, round(self.steps * factor)))


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A named group of cases and what it shows."""

    name: str
    shows: str
    cases: tuple[Case, ...]


WORKLOADS: dict[str, Workload] = {
    workload.name: workload
    for workload in (
        Workload(
            name="W1",
            shows="what one step costs: 100 runs of 48 steps that do nothing and return 1 KB",
            cases=(
                Case(
                    name="100 x 48 no-op",
                    runs=100,
                    steps=48,
                    plain_pools=(PlainPool("prefork", 2), PlainPool("threads", 1), PlainPool("threads", 2)),
                ),
                Case(
                    name="100 x 48 no-op, a call recorded in each",
                    runs=100,
                    steps=48,
                    agent="chain_with_calls",
                    only=(PAIDONCE,),
                ),
                Case(
                    name="100 x 48 no-op, a call recorded in each and a breaker on each",
                    runs=100,
                    steps=48,
                    agent="chain_with_breakers",
                    only=(PAIDONCE,),
                ),
            ),
        ),
        Workload(
            name="W2",
            shows="waiting steps side by side: 500 runs at once of 10 steps that wait 200 ms",
            cases=(
                Case(
                    name="500 x 10 x 200 ms",
                    runs=500,
                    steps=10,
                    wait_seconds=0.2,
                    concurrency=250,
                    plain_pools=(PlainPool("threads", 1, 500), PlainPool("threads", 2, 250)),
                ),
            ),
        ),
        Workload(
            name="W3",
            shows="whether a step late in a long run costs more: one run of 100, 1,000 and 5,000 steps",
            cases=tuple(Case(name=f"1 x {steps}", steps=steps) for steps in (100, 1000, 5000)),
        ),
        Workload(
            name="W4",
            shows="what it costs when runs move between processes and out of the cache",
            cases=(
                Case(name="1 x 2000 over 2 processes", steps=2000),
                Case(
                    name="1 x 2000 over 8 processes",
                    steps=2000,
                    processes=8,
                    concurrency=2,
                    plain_pools=(PlainPool("prefork", 8),),
                ),
                Case(
                    name="1 x 2000 over 8 processes, each step over the broker",
                    steps=2000,
                    processes=8,
                    concurrency=2,
                    turn_seconds=0.0,
                    only=(PAIDONCE,),
                ),
                Case(name="500 x 10 cache 1000", runs=500, steps=10, only=(PAIDONCE,)),
                Case(name="500 x 10 cache 50", runs=500, steps=10, cache_size=50, only=(PAIDONCE,)),
            ),
        ),
        Workload(
            name="W5",
            shows="whether a fan-out is linear: one run that gathers 500 and 5,000 steps",
            cases=tuple(
                Case(name=f"gather {steps}", steps=steps, shape="gather", plain_pools=(PlainPool("threads", 1),))
                for steps in (500, 5000)
            ),
        ),
        Workload(
            name="W6",
            shows="a message list that grows by 8 KB a turn over 200 turns",
            cases=(Case(name="200 turns x 8 KB", steps=200, shape="conversation", result_bytes=8192),),
        ),
        Workload(
            name="W7",
            shows="what is added to a step's own 200 ms with 1, 100 and 1,000 runs at once, and beside a burst",
            cases=(
                Case(name="1 x 40 no-op", steps=40, only=(PAIDONCE,)),
                *(
                    Case(
                        name=f"{runs} x 10 x 200 ms",
                        runs=runs,
                        steps=10,
                        wait_seconds=0.2,
                        concurrency=max(16, runs // 2),
                        only=(PAIDONCE,),
                    )
                    for runs in (1, 100, 1000)
                ),
                Case(
                    name="100 x 10 x 200 ms beside 2000 no-op",
                    runs=100,
                    steps=10,
                    wait_seconds=0.2,
                    concurrency=60,
                    burst_steps=2000,
                    only=(PAIDONCE,),
                ),
            ),
        ),
    )
}
