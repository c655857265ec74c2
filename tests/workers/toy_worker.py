"""A Celery app on our pool and consumer, with no store: what the tests of both start as a worker process.

Everything worth knowing is appended to the file ``TOY_LOG``, one line each.
"""

import asyncio
import hashlib
import os
import threading
import time
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded

from paidonce_models.errors import StepInterrupt
from paidonce_workers.bodies.body_runner import BodyCancelled, BodyRunner, BodyTimedOut
from paidonce_workers.bodies.interrupt import shielded
from paidonce_workers.process.worker_parts import WorkerParts
from paidonce_workers.startup.worker_program import choose_pool

QUEUE = "paidonce.toy"


def note(line: str) -> None:
    """One write, so that lines of several threads and processes do not mix."""
    descriptor = os.open(os.environ["TOY_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, f"{line}\n".encode())
    finally:
        os.close(descriptor)


app = Celery("toy", broker=os.environ.get("TOY_BROKER", "memory://"))
app.conf.update(
    task_default_queue=QUEUE,
    task_acks_late=True,
    worker_prefetch_multiplier=1,
    task_reject_on_worker_lost=True,
    task_ignore_result=True,
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=False,
    worker_consumer="paidonce_workers.delivery.consumer:Consumer",
)
if app.conf.broker_url.startswith("amqp"):
    app.conf.update(task_default_queue_type="quorum", broker_transport_options={"confirm_publish": True})


def on_unknown_step(name: str, args: Sequence[Any], kwargs: Mapping[str, Any], message: Any) -> bool:
    note(f"unknown {name} {list(args)} {dict(kwargs)}")
    if name == "store.is_down" and "refused" not in globals():
        globals()["refused"] = True
        raise ConnectionError("the store is down")
    if name == "store.stays_down":
        raise ConnectionError("the store stays down")
    return name != "nobody.knows"


def on_drain_expired(keys: list[Hashable]) -> None:
    note(f"drain expired {keys}")


bodies = BodyRunner(cancel_grace_seconds=1.0)
choose_pool(
    app,
    WorkerParts(
        bodies=bodies,
        drain_seconds=float(os.environ.get("TOY_DRAIN_SECONDS", "20")),
        interrupt_seconds=1.0,
        hand_back_seconds=1.0,
        on_drain_expired=on_drain_expired,
        on_unknown_step=on_unknown_step,
        requeue_seconds=0.2,
        requeue_tries=3,
    ),
)


def spin(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        sum(range(10))


def compute_in_c(seconds: float) -> None:
    """Longer than any test, in one call that no signal and no interrupt ends."""
    hashlib.pbkdf2_hmac("sha256", b"password", b"salt", int(seconds) * 10_000_000)


async def sleep_async(seconds: float) -> None:
    await asyncio.sleep(seconds)


@app.task(name="toy.where")
def where(tag: str) -> None:
    note(f"{tag} {threading.current_thread().name}")


@app.task(name="toy.plain")
def plain(tag: str, seconds: float) -> None:
    """A task that is no step: limits and revokes strike it as a whole."""
    note(f"{tag} began")
    try:
        spin(seconds)
    except SoftTimeLimitExceeded:
        note(f"{tag} soft limit")
        return
    except StepInterrupt as interrupt:
        note(f"{tag} {type(interrupt).__name__}")
        raise
    note(f"{tag} ended")


@app.task(name="toy.step")
def step(tag: str, seconds: float, kind: str = "def", timeout_seconds: float | None = None) -> None:
    """Like the executor of steps: claim, body, complete, with only the body open to interrupts."""
    fn = {"def": spin, "async": sleep_async, "blocked": time.sleep, "deaf": compute_in_c}[kind]
    with shielded():
        note(f"{tag} began")
        try:
            bodies.run(
                tag, fn, (seconds,), is_async=kind == "async", timeout_seconds=timeout_seconds, label=f"toy.step {tag}"
            )
        except BodyTimedOut:
            note(f"{tag} timed out")
        except BodyCancelled as stopped:
            note(f"{tag} {stopped.reason}")
        else:
            note(f"{tag} ended")


@app.task(name="toy.exits")
def exits(tag: str) -> None:
    note(f"{tag} exits")
    raise SystemExit(3)
