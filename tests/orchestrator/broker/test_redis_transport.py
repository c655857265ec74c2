"""Our Redis transport: what it keeps in Redis, what it puts back, and that kombu's own peers understand it."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from random import Random
from typing import Any

import pytest
import redis
from celery import Celery
from kombu import Connection, Exchange, Queue
from kombu.transport.redis import Transport as KombuTransport

from paidonce.broker.connection import PaidonceAMQP, PaidonceConnection
from paidonce.broker.redis_transport import Transport
from tests.fuzz.shapes import another_place, broadcast, broken_envelope, raw_item
from tests.fuzz.shapes import unacked as made_unacked

STEPS = Queue("paidonce.default", Exchange(""), routing_key="paidonce.default")
SUBMISSIONS = Queue("paidonce.submit", Exchange(""), routing_key="paidonce.submit")


@pytest.fixture
def connection(redis_url: str) -> Iterator[PaidonceConnection]:
    with PaidonceConnection(redis_url) as opened:
        yield opened


def publish(url: str, queue: Queue, number: int, **headers: object) -> None:
    """With kombu's own transport, as a foreign producer does."""
    with Connection(url) as connection, connection.Producer() as producer:
        producer.publish({"number": number}, routing_key=queue.name, exchange="", declare=[queue], headers=headers)


def drain_until(connection: PaidonceConnection, is_enough: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not is_enough():
        assert time.monotonic() < deadline, "nothing more came"
        with suppress(TimeoutError):
            connection.drain_events(timeout=0.5)


def consume(connection: PaidonceConnection, queue: Queue, *, prefetch: int = 10) -> tuple[Any, list[Any]]:
    """A consuming channel and the list to which it adds what it is delivered."""
    channel = connection.channel()
    messages: list[Any] = []
    consumer = connection.Consumer([queue], callbacks=[lambda body, message: messages.append(message)], channel=channel)
    consumer.qos(prefetch_count=prefetch)
    consumer.consume()
    return channel, messages


def take(connection: PaidonceConnection, queue: Queue, count: int, *, prefetch: int = 10) -> tuple[Any, list[Any]]:
    """A consuming channel and the messages that it has been delivered: so many, and no more came."""
    channel, messages = consume(connection, queue, prefetch=prefetch)
    drain_until(connection, lambda: len(messages) >= count)
    with suppress(TimeoutError):
        connection.drain_events(timeout=0.3)
    return channel, messages


def unacked(url: str) -> int:
    with redis.Redis.from_url(url) as client:
        return int(client.hlen("paidonce.unacked"))  # type: ignore[arg-type]  # typed for both kinds of client


def waiting(url: str, queue: Queue) -> int:
    with redis.Redis.from_url(url) as client:
        return int(client.llen(queue.name))  # type: ignore[arg-type]  # typed for both kinds of client


def test_redis_gets_our_transport_and_other_brokers_kombus_own(connection: PaidonceConnection) -> None:
    assert isinstance(connection.transport, Transport)
    assert not issubclass(PaidonceConnection("memory://").get_transport_cls(), KombuTransport)


def test_a_channel_keeps_one_client_and_follows_a_new_pool(connection: PaidonceConnection) -> None:
    channel = connection.channel()
    first = channel._create_client()
    assert channel._create_client() is first
    channel._disconnect_pools()
    assert channel._create_client() is not first


def test_a_step_under_way_is_not_copied_into_redis_but_a_submission_is(
    redis_url: str, connection: PaidonceConnection
) -> None:
    publish(redis_url, STEPS, 1)
    _, (step,) = take(connection, STEPS, 1)
    assert unacked(redis_url) == 0
    publish(redis_url, SUBMISSIONS, 2)
    _, (submission,) = take(connection, SUBMISSIONS, 1)
    assert unacked(redis_url) == 1
    step.ack()
    submission.ack()
    assert unacked(redis_url) == 0


def test_a_submission_sent_through_another_queue_is_copied_too(redis_url: str, connection: PaidonceConnection) -> None:
    publish(redis_url, STEPS, 1, task="paidonce.submit")
    take(connection, STEPS, 1)
    assert unacked(redis_url) == 1


@pytest.mark.parametrize("queue", [STEPS, SUBMISSIONS], ids=["step", "submission"])
def test_what_was_not_acknowledged_returns_to_its_queue_when_the_channel_closes(
    redis_url: str, connection: PaidonceConnection, queue: Queue
) -> None:
    for number in range(4):
        publish(redis_url, queue, number)
    channel, messages = take(connection, queue, 4)
    messages[1].ack()
    channel.close()
    assert (waiting(redis_url, queue), unacked(redis_url)) == (3, 0)
    _, again = take(connection, queue, 3)
    assert sorted(message.payload["number"] for message in again) == [0, 2, 3]
    assert all(message.properties["delivery_info"]["redelivered"] for message in again)


@pytest.mark.parametrize("queue", [STEPS, SUBMISSIONS], ids=["step", "submission"])
def test_a_connection_that_was_lost_can_be_closed_with_messages_under_way(redis_url: str, queue: Queue) -> None:
    """As Celery does it: the transport is taken apart first, then the connection closed with its channel still open."""
    publish(redis_url, queue, 1)
    connection = PaidonceConnection(redis_url)
    channel = connection.default_channel
    messages: list[Any] = []
    with connection.Consumer([queue], callbacks=[lambda body, message: messages.append(message)], channel=channel):
        drain_until(connection, lambda: len(messages) == 1)
    connection._do_close_transport()
    connection.close()
    with pytest.raises(redis.ConnectionError, match="is closed"):
        messages[0].requeue()


@pytest.mark.parametrize("queue", [STEPS, SUBMISSIONS], ids=["step", "submission"])
def test_a_rejected_message_is_dropped_or_comes_last(
    redis_url: str, connection: PaidonceConnection, queue: Queue
) -> None:
    for number in range(3):
        publish(redis_url, queue, number)
    channel, (zero, one, two) = take(connection, queue, 3)
    one.reject()
    zero.requeue()
    two.requeue()
    channel.close()
    with redis.Redis.from_url(redis_url) as client:
        left = [json.loads(raw) for raw in client.lrange(queue.name, 0, -1)]  # type: ignore[union-attr]  # as above
    assert [json.loads(base64.b64decode(message["body"]))["number"] for message in left] == [2, 0]
    assert unacked(redis_url) == 0


def test_acknowledging_makes_room_for_the_next_message(redis_url: str, connection: PaidonceConnection) -> None:
    for number in range(3):
        publish(redis_url, STEPS, number)
    channel, messages = take(connection, STEPS, 1, prefetch=1)
    assert len(messages) == 1
    for expected in (2, 3):
        messages[-1].ack()
        drain_until(connection, lambda expected=expected: len(messages) >= expected)  # type: ignore[misc]
        assert len(messages) == expected
    channel.close()


def test_the_app_of_paidonce_uses_it(redis_url: str) -> None:
    class App(Celery):  # type: ignore[misc]  # Celery publishes no types
        amqp_cls = PaidonceAMQP

    app = App("x", broker=redis_url, set_as_current=False)
    with app.connection_for_read() as connection:
        assert isinstance(connection.transport, Transport)
    app.close()


def test_what_another_app_runs_on_the_same_redis_is_not_given_again(redis_url: str) -> None:
    theirs = Queue("celery")
    with Connection(redis_url) as their_connection, PaidonceConnection(redis_url) as ours:
        publish(redis_url, theirs, 1)
        channel = their_connection.channel()
        message = theirs(channel).get()
        assert message is not None, "their worker runs it and has not acknowledged it"
        qos = ours.channel().qos
        qos.visibility_timeout = -3600  # as if an hour had passed
        qos.restore_visible()
        assert waiting(redis_url, theirs) == 0
        message.ack()


# --- junk ---------------------------------------------------------------------------------------------------------


def push(url: str, key: str, *items: bytes) -> None:
    with redis.Redis.from_url(url) as client:
        client.lpush(key, *items)


JUNK = [raw_item(Random(seed)).raw for seed in range(40)] + [broken_envelope(Random(seed)).raw for seed in range(80)]


@pytest.mark.parametrize("queue", [STEPS, SUBMISSIONS], ids=["step", "submission"])
def test_junk_on_a_list_is_dropped_without_an_error_and_what_lies_behind_it_comes(
    redis_url: str, connection: PaidonceConnection, queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    push(redis_url, queue.name, *JUNK)
    publish(redis_url, queue, 7)
    bodies: list[bytes] = []

    def keep(message: Any, *_: object) -> None:
        bodies.append(message.body)
        message.ack()

    consumer = connection.Consumer([queue], on_message=keep, accept=["json"])
    consumer.on_decode_error = keep
    with consumer:
        while not bodies or bodies[-1] != b'{"number": 7}':
            connection.drain_events(timeout=20)
    assert (waiting(redis_url, queue), unacked(redis_url)) == (0, 0)
    said = [record for record in caplog.records if getattr(record, "event", "") == "message_malformed"]
    assert 1 <= len(said) < 20, "a flood is counted"
    assert f"a message on queue {queue.name} has no readable envelope" in said[0].getMessage()


def test_a_message_returns_to_the_queue_it_was_taken_from_whatever_it_says(
    redis_url: str, connection: PaidonceConnection
) -> None:
    for tag in range(2):
        made = json.loads(another_place(Random(tag)).raw)
        push(redis_url, STEPS.name, json.dumps(made).encode())
    channel, messages = take(connection, STEPS, 2)
    assert len({message.delivery_tag for message in messages}) == 2, "both said that they are the same"
    channel.close()
    assert waiting(redis_url, STEPS) == 2


def test_a_compressed_body_is_an_error_of_the_message_and_is_not_unpacked(
    redis_url: str, connection: PaidonceConnection
) -> None:
    with Connection(redis_url) as theirs, theirs.Producer() as producer:
        producer.publish({"a": "b" * 100}, routing_key=STEPS.name, exchange="", declare=[STEPS], compression="gzip")
    errors: list[Exception] = []
    consumer = connection.Consumer([STEPS], on_message=lambda message: None, accept=["json"])
    consumer.on_decode_error = lambda message, error: errors.append(error)
    with consumer:
        drain_until(connection, lambda: len(errors) > 0)
    assert "is compressed" in str(errors[0])


def test_a_copy_among_the_unacknowledged_that_is_no_message_is_dropped_and_the_others_come_back(
    redis_url: str, connection: PaidonceConnection, caplog: pytest.LogCaptureFixture
) -> None:
    publish(redis_url, SUBMISSIONS, 1)
    with redis.Redis.from_url(redis_url) as client:
        (taken,) = client.lrange(SUBMISSIONS.name, 0, -1)  # type: ignore[misc]  # typed for both kinds of client
        client.delete(SUBMISSIONS.name)
        overdue = time.time() - 3600
        copies = {f"junk-{seed}": made_unacked(Random(seed)).raw for seed in range(60)}
        copies["a name that is no text"] = json.dumps([json.loads(taken), "", "\ud800"]).encode()
        copies["good"] = json.dumps([json.loads(taken), "any exchange", SUBMISSIONS.name]).encode()
        for tag, copy in copies.items():
            client.hset("paidonce.unacked", tag, copy)
            client.zadd("paidonce.unacked_index", {tag: overdue})
        qos = connection.channel().qos
        qos.visibility_timeout = 1
        qos.restore_visible(num=None)
        assert (unacked(redis_url), client.zcard("paidonce.unacked_index")) == (0, 0)
    restored = waiting(redis_url, SUBMISSIONS)
    assert restored >= 1
    assert "has no readable envelope" in caplog.text and "Traceback" not in caplog.text


def test_keys_of_another_type_are_told_of_and_do_not_end_anything(
    redis_url: str, connection: PaidonceConnection, caplog: pytest.LogCaptureFixture
) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.set("paidonce.unacked_index", "no sorted set")
        client.set(STEPS.name, "no list")
    connection.channel().qos.restore_visible()
    assert "cannot be read" in caplog.text
    consume(connection, STEPS)
    drain_until(connection, lambda: "held a string, not a queue's list" in caplog.text)
    publish(redis_url, STEPS, 1)
    _, messages = take(connection, STEPS, 1)
    assert [message.payload["number"] for message in messages] == [1]


def test_a_message_for_a_key_of_another_type_is_sent_after_all(redis_url: str, connection: PaidonceConnection) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.set(STEPS.name, "no list")
    with connection.Producer() as producer:
        producer.publish(
            {"number": 1}, routing_key=STEPS.name, exchange="", retry=True, retry_policy={"max_retries": 1}
        )
    assert waiting(redis_url, STEPS) == 1


def test_messages_are_sent_together_or_not_at_all(redis_url: str, connection: PaidonceConnection) -> None:
    producer = connection.Producer()
    with producer.channel.together():
        for number in range(300):
            producer.publish({"number": number}, exchange="", routing_key=STEPS.name)
        assert waiting(redis_url, STEPS) == 0
    assert waiting(redis_url, STEPS) == 300
    with pytest.raises(ValueError, match="a mistake"), producer.channel.together():
        producer.publish({"number": 300}, exchange="", routing_key=STEPS.name)
        raise ValueError("a mistake")
    assert waiting(redis_url, STEPS) == 300
    producer.publish({"number": 301}, exchange="", routing_key=STEPS.name)
    assert waiting(redis_url, STEPS) == 301


def test_a_key_of_another_type_is_set_aside_for_messages_that_are_sent_together(
    redis_url: str, connection: PaidonceConnection
) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.set(STEPS.name, "none of ours")
    producer = connection.Producer()
    for error in (redis.ConnectionError, None):
        with pytest.raises(error) if error else nullcontext(), producer.channel.together():
            producer.publish({"number": 1}, exchange="", routing_key=STEPS.name)
    assert waiting(redis_url, STEPS) == 1


def test_a_server_that_refuses_is_an_outage(redis_url: str, connection: PaidonceConnection) -> None:
    channel = connection.channel()
    refused = redis.ResponseError("READONLY You can't write against a read only replica.")

    class Client:
        connection = None

        def parse_response(self, *_: object, **__: object) -> object:
            raise refused

    channel.__dict__["client"] = Client()
    with pytest.raises(redis.ConnectionError, match="refuses to deliver messages: READONLY"):
        channel._brpop_read()


def test_broadcasts_that_are_none_are_dropped(
    redis_url: str, connection: PaidonceConnection, caplog: pytest.LogCaptureFixture
) -> None:
    control = Queue("me.celery.pidbox", Exchange("celery.pidbox", type="fanout"), auto_delete=True, durable=False)
    got: list[Any] = []
    consumer = connection.Consumer([control], callbacks=[lambda body, message: got.append(body)], no_ack=True)
    consumer.on_decode_error = lambda message, error: None
    with consumer, redis.Redis.from_url(redis_url) as client, Connection(redis_url) as theirs:
        database = client.connection_pool.connection_kwargs["db"]
        channel = f"/{database}.celery.pidbox"
        drain_until(connection, lambda: client.publish(channel, broadcast(Random(0)).raw) == 1)  # somebody hears it
        for seed in range(1, 60):
            client.publish(channel, broadcast(Random(seed)).raw)
        with theirs.Producer() as producer:
            producer.publish({"method": "ping"}, exchange=control.exchange, routing_key="", declare=[control.exchange])
        drain_until(connection, lambda: {"method": "ping"} in got)
    assert {"method": "ping"} in got
    assert "has no readable envelope" in caplog.text
