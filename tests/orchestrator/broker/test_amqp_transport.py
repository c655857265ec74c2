"""RabbitMQ messages whose properties py-amqp cannot read: they arrive, once, and the connection stays."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
from kombu import Exchange, Queue

from paidonce.broker.amqp_transport import UNREADABLE, AmqpTransport
from paidonce.broker.connection import PaidonceConnection
from tests.fuzz.sending import RabbitSender
from tests.fuzz.shapes import DEFAULT, Junk, packed, wire_properties

QUEUE = Queue(DEFAULT, Exchange(""), routing_key=DEFAULT, durable=True)


@pytest.fixture
def connection(rabbitmq_url: str) -> Iterator[PaidonceConnection]:
    with PaidonceConnection(rabbitmq_url) as opened:
        QUEUE(opened.default_channel).declare()
        yield opened


def deliver(connection: PaidonceConnection, url: str, junk: list[Junk]) -> tuple[list[Any], list[Exception]]:
    """What a consumer gets of the junk and of a good message behind it."""
    sender = RabbitSender(url)
    sender.send(junk)
    sender.send([Junk(shape="good", body=b"[7]")])
    sender.close()
    messages: list[Any] = []
    errors: list[Exception] = []

    def keep(message: Any) -> None:
        messages.append(message)
        message.ack()

    consumer = connection.Consumer([QUEUE], on_message=keep, accept=["json"])

    def note(message: Any, error: Exception) -> None:
        errors.append(error)
        message.ack()

    consumer.on_decode_error = note
    with consumer:
        while not (messages and messages[-1].body == b"[7]"):
            connection.drain_events(timeout=10)
    return messages, errors


def test_rabbitmq_gets_our_transport_and_says_so_in_kombus_words(connection: PaidonceConnection) -> None:
    assert isinstance(connection.transport, AmqpTransport)
    assert connection.as_uri().startswith("amqp://guest:**@")


def test_properties_that_cannot_be_read_cost_the_message_and_not_the_connection(
    connection: PaidonceConnection, rabbitmq_url: str
) -> None:
    junk = [wire_properties(Random(seed)) for seed in range(40)]
    before = connection.connection
    messages, errors = deliver(connection, rabbitmq_url, junk)
    assert connection.connection is before
    assert (len(messages), errors) == (len(junk) + 1, [])
    assert sum(message.content_type == UNREADABLE for message in messages) >= 10
    assert QUEUE(connection.default_channel).queue_declare(passive=True).message_count == 0


def test_a_compressed_body_is_not_unpacked(connection: PaidonceConnection, rabbitmq_url: str) -> None:
    _, errors = deliver(connection, rabbitmq_url, [packed(Random(seed)) for seed in range(8)])
    assert len(errors) == 8
    assert all("is compressed" in str(error) for error in errors)


def test_a_body_is_not_decoded_by_the_codec_that_its_message_names(
    connection: PaidonceConnection, rabbitmq_url: str
) -> None:
    slow = b"a" * 100_000 + b"-" + b"b" * 100_000
    junk = [Junk(shape="slow", body=slow, properties={"content_encoding": "punycode"})] * 3
    messages, _ = deliver(connection, rabbitmq_url, junk)
    assert [message.body for message in messages[:3]] == [slow] * 3


def test_messages_that_are_sent_together_are_all_confirmed(connection: PaidonceConnection, rabbitmq_url: str) -> None:
    with PaidonceConnection(rabbitmq_url, transport_options={"confirm_publish": True}) as sending:
        producer = sending.Producer()

        def send(number: int) -> None:
            producer.publish({"number": number}, exchange="", routing_key=DEFAULT)

        send(0)
        for _ in range(2):
            with producer.channel.together():
                for number in range(300):
                    send(number)
        send(1)
    assert QUEUE(connection.default_channel).queue_declare(passive=True).message_count == 602


def test_a_refused_message_is_told_of_after_the_others_are_settled(connection: PaidonceConnection) -> None:
    channel = AmqpTransport.Connection.Channel.__new__(AmqpTransport.Connection.Channel)
    channel._unconfirmed, channel._was_refused = {3, 4, 5, 6}, False
    channel._confirmed(4, True)
    assert (channel._unconfirmed, channel._was_refused) == ({5, 6}, False)
    channel._refused(6, False)
    assert (channel._unconfirmed, channel._was_refused) == ({5}, True)
