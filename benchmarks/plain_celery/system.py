"""Running the plain Celery chain as a measured system."""

from __future__ import annotations

import json
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from celery import Celery
from kombu import Queue

from benchmarks.services import Broker
from benchmarks.systems import Fleet
from benchmarks.workloads import PLAIN_CELERY, Case, PlainPool

_CASE_SECONDS = 600.0


class PlainCelery:
    """``prefork``: one worker with that many children; ``threads``: that many workers."""

    name = PLAIN_CELERY

    def __init__(self, case: Case, broker: Broker, folder: Path, pool: PlainPool) -> None:
        self._case, self._broker, self._pool = case, broker, pool
        self._queue = f"bench-{uuid.uuid4().hex[:12]}"
        self._fleet = Fleet(folder)
        self._app = Celery("producer", broker=broker.url)
        self._app.conf.update(
            task_default_queue=self._queue,
            task_ignore_result=True,
            task_default_queue_type="quorum" if broker.kind == "rabbitmq" else "classic",
        )
        self._workers = 1 if pool.pool == "prefork" else pool.processes
        self._concurrency = pool.processes if pool.pool == "prefork" else pool.threads
        shape = f"{pool.processes}" if pool.pool == "prefork" else f"{pool.processes} x {pool.threads}"
        self.variant = f"{pool.pool} {shape}"

    @property
    def trees(self) -> Sequence[int]:
        return self._fleet.process_ids

    @property
    def producers(self) -> Sequence[int]:
        return ()

    def start(self) -> None:
        environment = {"PAIDONCE_BENCH_QUEUE": self._queue, "PAIDONCE_BENCH_BROKER_URL": self._broker.url}
        for number in range(self._workers):
            command = [sys.executable, "-m", "celery", "-A", "benchmarks.plain_celery.app", "worker"]
            command += ["--pool", self._pool.pool, "--concurrency", str(self._concurrency), "--loglevel", "WARNING"]
            command += ["--queues", self._queue, "--hostname", f"bench{number}@%h", "--without-mingle"]
            self._fleet.start([*command, "--without-gossip"], environment)
        end = time.monotonic() + 30
        while len(self._app.control.ping(timeout=0.5)) < self._workers:
            self._fleet.check()
            if time.monotonic() > end:
                raise TimeoutError(f"plain Celery workers did not answer:\n{self._fleet.logs()}")

    def run(self, case: Case) -> None:
        if case.shape == "gather":
            for position in range(1, case.steps + 1):
                self._send("plain.part", 1, position, case.result_bytes)
            self._await_done(case.steps)
            return
        for run in range(1, case.runs + 1):
            if case.shape == "conversation":
                self._send("plain.turn", run, case.steps, case.result_bytes, [])
            else:
                self._send("plain.chain", run, 1, case.steps, case.wait_seconds, case.result_bytes, "")
        self._await_done(case.runs)

    def stop(self) -> None:
        self._fleet.stop()
        self._app.close()

    def _send(self, task: str, *arguments: object) -> None:
        self._app.send_task(task, arguments)

    def _await_done(self, expected: int) -> None:
        done = Queue(f"{self._queue}.done", routing_key=f"{self._queue}.done", durable=True)
        count = 0

        def take(body: object, message: object) -> None:
            nonlocal count
            count += 1

        end = time.monotonic() + _CASE_SECONDS
        with (
            self._app.connection_for_read() as connection,
            connection.Consumer([done], callbacks=[take], no_ack=True, accept=["json"]),
        ):
            while count < expected:
                try:
                    connection.drain_events(timeout=1)
                except TimeoutError:
                    self._fleet.check()
                if time.monotonic() > end:
                    missing = json.dumps({"expected": expected, "done": count})
                    raise TimeoutError(f"plain Celery did not finish: {missing}\n{self._fleet.logs()}")
