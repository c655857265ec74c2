"""The play: workers, junk in bursts, good runs among it, and what is measured of it."""

from __future__ import annotations

import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import psutil
from celery import Celery

from paidonce.broker.broker_urls import broker_url, speaks_redis
from paidonce.run_handle import RunHandle
from paidonce_models.errors import NotFound, PaidonceError
from tests.chaos.engines import Engines
from tests.chaos.stage import Stage
from tests.fuzz.agents import CANARY, good
from tests.fuzz.sending import sender_to
from tests.fuzz.shapes import ON_RABBITMQ, ON_REDIS, make_junk, new_id
from tests.services.waiting import wait_until

MODULES = "tests.fuzz.agents"
BURST = 250
END_SECONDS = 120.0


@dataclass(kw_only=True)
class Figures:
    """What came out of it."""

    seed: int
    messages: int
    shapes: Counter[str]
    seconds: float = 0.0
    good: int = 0
    succeeded: int = 0
    slowest_good_seconds: float = 0.0
    behind_all_seconds: float = 0.0
    """How long a run took that was submitted when all junk lay before it."""
    exit_codes: list[int | None] = field(default_factory=list)
    canary: bool = False
    left_waiting: int = 0
    memory_before_bytes: int = 0
    memory_after_bytes: int = 0
    log_bytes: int = 0
    reconnects: int = 0

    def complaints(self, *, longest_wait_seconds: float = 5.0, most_memory_bytes: int = 250_000_000) -> list[str]:
        """What of the promise does not hold."""
        found = {
            "a worker ended": any(code is not None for code in self.exit_codes),
            "a foreign task was executed": self.canary,
            "a good run did not succeed": self.succeeded != self.good,
            "messages were left": self.left_waiting > 0,
            "something waited too long": self.behind_all_seconds > longest_wait_seconds
            or self.slowest_good_seconds > longest_wait_seconds,
            "memory grew": self.memory_after_bytes - self.memory_before_bytes > most_memory_bytes,
            "a worker reconnected": self.reconnects > 0,
            "the log grew": self.log_bytes > 1_000_000 + 200 * self.messages,
        }
        return [f"{name}: {self}" for name, is_so in found.items() if is_so]


def play(
    engines: Engines, folder: Path, *, messages: int, seed: int, pool: str | None = None, workers: int = 1
) -> Figures:
    """Send so many messages of junk and tell what became of everything else."""
    random = Random(seed)
    canary = folder / "canary"
    stage = Stage(folder, engines, {})
    # Good ones wait for the sweeper only where a message was lost, which is what the play wants to see.
    sender, producer = sender_to(url := broker_url(stage.settings)), Celery("shop", broker=url)
    junk = make_junk(random, messages, ON_REDIS if speaks_redis(url) else ON_RABBITMQ)
    figures = Figures(seed=seed, messages=messages, shapes=Counter(each.shape for each in junk))
    try:
        fleet = stage.start(workers, pool=pool, modules=MODULES, environment={CANARY: str(canary)})
        _wait_for(stage.client.submit(good, {"number": 1}))
        processes = [psutil.Process(process.pid) for process in fleet.processes]
        figures.memory_before_bytes = _memory(processes)
        began = time.monotonic()
        waiting: list[tuple[float, RunHandle | str]] = []
        bursts = [junk[start : start + BURST] for start in range(0, len(junk) // 2, BURST)]
        rest = junk[sum(map(len, bursts)) :]
        for burst in bursts:
            sender.send(burst)
            submitted = time.monotonic()
            figures.good += 2
            task_id = new_id(random)
            producer.send_task(
                "paidonce.submit",
                kwargs={"agent": good.name, "input": {"number": 1}},
                task_id=task_id,
                queue="paidonce.submit",
            )
            waiting += [(submitted, stage.client.submit(good, {"number": 1})), (submitted, task_id)]
            for moment, run in waiting:
                figures.succeeded += _succeeds(stage, run)
                figures.slowest_good_seconds = max(figures.slowest_good_seconds, time.monotonic() - moment)
            waiting.clear()
        # Half of it at once: what is submitted then waits behind all of that.
        sender.send(rest)
        submitted = time.monotonic()
        figures.good += 1
        figures.succeeded += _succeeds(stage, stage.client.submit(good, {"number": 2}))
        figures.behind_all_seconds = time.monotonic() - submitted
        wait_until(lambda: sender.waiting() == 0, "the queues are empty", END_SECONDS)
        figures.seconds = time.monotonic() - began
        figures.memory_after_bytes = _memory(processes)
        figures.exit_codes = [process.poll() for process in fleet.processes]
        figures.left_waiting, figures.canary = sender.waiting(), canary.exists()
        log = stage.log()
        figures.log_bytes, figures.reconnects = len(log), log.count("Connection to broker lost")
        return figures
    finally:
        sender.close()
        producer.close()
        stage.stop()


def _wait_for(run: RunHandle) -> object:
    return run.result(END_SECONDS)


def _succeeds(stage: Stage, run: RunHandle | str) -> bool:
    """Whether it ends well; a submission through the broker is found by its task's id."""

    def found() -> RunHandle | None:
        try:
            return stage.client.run(str(run))
        except NotFound:
            return None

    try:
        handle = run if isinstance(run, RunHandle) else wait_until(found, f"run {run} is there", END_SECONDS)
        if handle is None:
            return False
        _wait_for(handle)
    except (PaidonceError, AssertionError) as error:
        print(error, file=sys.stderr)
        return False
    return True


def _memory(processes: list[psutil.Process]) -> int:
    return sum(process.memory_info().rss for process in processes)
