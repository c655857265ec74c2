"""The Celery app and its tasks, as a team would write them without Paidonce.

The queue and the broker come from the environment, because Celery's worker imports this module by name. The last
task of a run puts a message into the ``done`` queue, which works the same on every broker.
"""

from __future__ import annotations

import os
import time

from celery import Celery
from kombu import Queue

from benchmarks.values import step_result, turn_text

QUEUE = os.environ.get("PAIDONCE_BENCH_QUEUE", "bench")
BROKER_URL = os.environ.get("PAIDONCE_BENCH_BROKER_URL", "memory://")
DONE = Queue(f"{QUEUE}.done", routing_key=f"{QUEUE}.done", durable=True)

app = Celery("plain", broker=BROKER_URL)
app.conf.update(
    task_acks_late=True,
    worker_prefetch_multiplier=1,
    task_reject_on_worker_lost=True,
    task_ignore_result=True,
    task_serializer="json",
    accept_content=["json"],
    broker_connection_retry_on_startup=True,
    task_default_queue=QUEUE,
    worker_hijack_root_logger=False,
)
if BROKER_URL.startswith("amqp"):
    app.conf.update(task_default_queue_type="quorum", broker_transport_options={"confirm_publish": True})
else:
    app.conf.broker_transport_options = {"max_connections": 600, "visibility_timeout": 3600}


def report_done(run: int) -> None:
    """Tell the harness that a run (or one part of a fan-out) has ended."""
    with app.producer_pool.acquire(block=True) as producer:
        producer.publish({"run": run}, routing_key=DONE.name, exchange="", declare=[DONE], serializer="json")


@app.task(name="plain.chain")
def chain(run: int, position: int, steps: int, wait_seconds: float, result_bytes: int, value: str) -> None:
    """One step; the next one gets its result."""
    if wait_seconds:
        time.sleep(wait_seconds)
    result = step_result(run, position, result_bytes)
    if position == steps:
        report_done(run)
    else:
        chain.delay(run, position + 1, steps, wait_seconds, result_bytes, result)


@app.task(name="plain.part")
def part(run: int, position: int, result_bytes: int) -> None:
    """One of many at once."""
    step_result(run, position, result_bytes)
    report_done(run)


@app.task(name="plain.turn")
def turn(run: int, steps: int, turn_bytes: int, messages: list[str]) -> None:
    """One turn; the next one gets all messages so far, through the broker."""
    messages.append(turn_text(run, len(messages) + 1, turn_bytes))
    if len(messages) == steps:
        report_done(run)
    else:
        turn.delay(run, steps, turn_bytes, messages)
