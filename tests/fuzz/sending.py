"""Bringing junk to a broker, past every check that a client makes."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Sequence
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

import amqp
import redis

from paidonce.broker.broker_urls import redis_client_url, speaks_redis
from tests.fuzz.shapes import DEFAULT, SUBMIT, Junk

OVERDUE_SECONDS = 3_600
QUEUES = (DEFAULT, SUBMIT)


class Sender(Protocol):
    """The way to one broker."""

    def send(self, junk: Sequence[Junk]) -> None:
        """Bring them there."""

    def waiting(self) -> int:
        """How many messages wait in the queues."""

    def close(self) -> None:
        """Let go of the broker."""


def sender_to(url: str) -> Sender:
    """For a broker's URL."""
    return RedisSender(url) if speaks_redis(url) else RabbitSender(url)


class RedisSender:
    """Writes envelopes of its own."""

    def __init__(self, url: str) -> None:
        self._client = redis.Redis.from_url(redis_client_url(url))
        self._database = int(self._client.connection_pool.connection_kwargs.get("db") or 0)

    def send(self, junk: Sequence[Junk]) -> None:
        """In one round trip."""
        pipe = self._client.pipeline(transaction=False)
        for each in junk:
            if each.place == "item":
                pipe.lpush(each.key, each.raw)
            elif each.place == "unacked":
                pipe.hset("paidonce.unacked", each.key, each.raw)
                pipe.zadd("paidonce.unacked_index", {each.key: time.time() - OVERDUE_SECONDS})
            elif each.place == "broadcast":
                pipe.publish(f"/{self._database}.{each.key}", each.raw)
            else:
                pipe.lpush(each.queue, _envelope(each))
        pipe.execute()

    def waiting(self) -> int:
        """In all priorities."""
        suffixes = ("", "\x06\x163", "\x06\x166", "\x06\x169")
        return sum(int(self._client.llen(f"{queue}{suffix}")) for queue in QUEUES for suffix in suffixes)  # type: ignore[arg-type]  # typed for both kinds of client

    def close(self) -> None:
        """Let go of it."""
        self._client.close()


def _envelope(junk: Junk) -> bytes:
    made = {
        "body": base64.b64encode(junk.body).decode(),
        "content-type": junk.properties.get("content_type", "application/json"),
        "content-encoding": junk.properties.get("content_encoding", "utf-8"),
        "headers": junk.headers,
        "properties": {
            **junk.properties,
            "body_encoding": "base64",
            "delivery_tag": "x",
            "delivery_info": {"exchange": "", "routing_key": junk.queue},
        },
    }
    return json.dumps(made).encode()


class _Wire(amqp.Message):  # type: ignore[misc]  # py-amqp publishes no types
    """A message whose properties go onto the wire as they are."""

    wire = b""

    def _serialize_properties(self) -> bytes:
        return self.wire


class RabbitSender:
    """Publishes with py-amqp alone."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._connection = amqp.Connection(
            f"{parts.hostname}:{parts.port or 5672}",
            userid=unquote(parts.username or "guest"),
            password=unquote(parts.password or "guest"),
            virtual_host=unquote(parts.path[1:]) or "/",
        )
        self._connection.connect()
        self._channel = self._connection.channel()

    def send(self, junk: Sequence[Junk]) -> None:
        """One after the other, without confirms."""
        for each in junk:
            self._channel.basic_publish(
                _amqp_message(each),
                exchange=each.key if each.place == "exchange" else "",
                routing_key="worker.heartbeat" if each.place == "exchange" else each.queue,
            )

    def waiting(self) -> int:
        """Ready ones."""
        return sum(int(self._channel.queue_declare(queue, passive=True).message_count) for queue in QUEUES)

    def close(self) -> None:
        """Let go of it."""
        self._connection.close()


def _amqp_message(junk: Junk) -> Any:
    if junk.place == "wire":
        made = _Wire(junk.body)
        made.wire = junk.raw
        return made
    properties = {"content_type": "application/json", "content_encoding": "utf-8", **junk.properties}
    headers = {name: value for name, value in (junk.headers or {}).items() if len(name) < 128}
    return amqp.Message(junk.body, application_headers=headers, **properties)
