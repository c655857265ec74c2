"""Messages that no task of the worker takes: handed back, put back, or dropped with one clear error."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from amqp.exceptions import NotFound  # type: ignore[import-untyped]  # py-amqp publishes no types
from kombu import Connection

from tests.workers.pools.test_thread_pool import ToyWorker

pytestmark = pytest.mark.slow

QUEUE = "paidonce.toy"


@pytest.fixture(params=["redis", pytest.param("rabbitmq", marks=pytest.mark.service)])
def worker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ToyWorker]:
    worker = ToyWorker(str(request.getfixturevalue(f"{request.param}_url")), tmp_path)
    worker.start("-c", "2")
    yield worker
    worker.close()


def goes_on(worker: ToyWorker, tag: str) -> None:
    """The worker is the same process as before and takes tasks."""
    worker.send("plain", tag, 0.0)
    worker.wait_for(f"{tag} ended")
    assert worker.process is not None
    assert worker.process.poll() is None


def ends_with_an_empty_queue(worker: ToyWorker) -> None:
    worker.signal(signal.SIGTERM)
    assert worker.wait_for_end(15) == 0
    assert worker.messages_waiting() == 0, "every message was acknowledged"


def publish(worker: ToyWorker, body: object, headers: object = None, **properties: Any) -> None:
    """A message as a foreign producer may send it."""
    with Connection(worker.broker_url) as connection, connection.Producer() as producer:
        producer.publish(body, routing_key=QUEUE, exchange="", headers=headers, **properties)


def test_a_worker_declares_no_queues_for_delayed_delivery_on_rabbitmq(rabbitmq_url: str, tmp_path: Path) -> None:
    worker = ToyWorker(rabbitmq_url, tmp_path)
    worker.start("-c", "2")
    try:
        goes_on(worker, "first")
        with Connection(rabbitmq_url) as connection, pytest.raises(NotFound):
            connection.default_channel.queue_declare("celery_delayed_0", passive=True)
    finally:
        worker.close()


def test_a_step_that_is_not_held_here_is_handed_back_and_acknowledged(worker: ToyWorker) -> None:
    for number in range(5):
        worker.send("other.module.step", f"run-{number}", 3)
    for number in range(5):
        worker.wait_for(f"unknown other.module.step ['run-{number}', 3] {{}}")
    goes_on(worker, "next")
    ends_with_an_empty_queue(worker)


def test_a_step_that_cannot_be_handed_back_returns_and_is_offered_again(worker: ToyWorker) -> None:
    worker.send("store.is_down", "run-1", 3)
    line = "unknown store.is_down ['run-1', 3] {}"
    worker.wait_for_output("could not requeue it (ConnectionError: the store is down)")
    worker.wait_for_output("this worker does not hold store.is_down; it was requeued")
    goes_on(worker, "next")
    assert worker.lines().count(line) == 2
    ends_with_an_empty_queue(worker)


def test_a_step_that_can_never_be_handed_back_is_dropped_after_some_tries(worker: ToyWorker) -> None:
    worker.send("store.stays_down", "run-1", 3)
    worker.wait_for_output("its message is dropped, the sweeper sends another")
    goes_on(worker, "next")
    assert worker.lines().count("unknown store.stays_down ['run-1', 3] {}") == 3
    ends_with_an_empty_queue(worker)


def test_a_task_that_belongs_to_nobody_is_dropped_with_an_error(worker: ToyWorker) -> None:
    worker.send("nobody.knows")
    worker.wait_for_output("task nobody.knows is not registered here, and no step waits for it")
    goes_on(worker, "next")
    ends_with_an_empty_queue(worker)


def test_malformed_messages_are_dropped_with_one_error_each_and_the_worker_goes_on(worker: ToyWorker) -> None:
    task: dict[str, Any] = {"task": "toy.plain", "id": "m1", "lang": "py"}
    malformed: list[tuple[object, object, dict[str, Any]]] = [
        ("no task at all", {}, {}),
        ({"neither": "nor"}, {}, {}),
        ([[], {}, {}], {"task": "toy.plain"}, {}),
        ("its body is no list", task, {}),
        ([1, 2], task, {}),
        ([["tag", 0.0], {}, {}], {**task, "eta": "not a time"}, {}),
        (b"\xff\xfe not json", task, {"content_type": "application/json", "content_encoding": "utf-8"}),
        (b"cos\nsystem\n", task, {"content_type": "application/x-python-serialize", "content_encoding": "binary"}),
        (b"text", task, {"content_type": "no/such-type", "content_encoding": "binary"}),
        ("an unknown task's body is no list", {**task, "task": "other.step"}, {}),
        ([["secret input"], "no mapping", {}], {**task, "task": "other.step"}, {}),
        (b"[" * 500_000, task, {"content_type": "application/json", "content_encoding": "utf-8"}),
    ]
    for body, headers, properties in malformed:
        publish(worker, body, headers, **properties)
    goes_on(worker, "next")
    ends_with_an_empty_queue(worker)
    printed = worker.printed()
    assert printed.count(f"a message on queue {QUEUE} cannot be used and was dropped: ") == len(malformed)
    assert "Traceback" not in printed
    assert "secret input" not in printed


def test_an_envelope_that_the_transport_cannot_read_does_not_end_the_worker(redis_url: str, tmp_path: Path) -> None:
    worker = ToyWorker(redis_url, tmp_path)
    try:
        worker.start("-c", "2")
        worker.send("step", "meanwhile", 3.0, "async")
        worker.wait_for("meanwhile began")
        with redis.Redis.from_url(redis_url) as client:
            client.lpush(QUEUE, "not even JSON", "7", "{}", json.dumps({"body": 1, "properties": {}}))
        goes_on(worker, "next")
        worker.wait_for("meanwhile ended")
        ends_with_an_empty_queue(worker)
        assert "has no readable envelope" in worker.printed()
    finally:
        worker.close()
