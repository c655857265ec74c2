"""kombu's RabbitMQ transport, for messages whose properties py-amqp cannot read.

A text that is no UTF-8, a date past the year 9999, a type of another client's: py-amqp
raises while it reads the frame, which costs the connection; RabbitMQ then delivers
the message again to the next one, for ever. Here such a message arrives without
properties, with a content type that says so, and its consumer refuses it like any other.
"""

# mypy: allow-untyped-calls, allow-subclassing-any
# because kombu and py-amqp are typed in part only.

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from amqp.method_framing import frame_handler  # type: ignore[import-untyped]  # py-amqp publishes no types
from amqp.serialization import PROPERTY_CLASSES  # type: ignore[import-untyped]  # as above
from kombu.transport import pyamqp

from paidonce.unread_bodies import refuse_compression

CONTENT_HEADER = 2
UNREADABLE = "application/x-unreadable-properties"
_FIXED = struct.Struct(">HHQ")
"""Class, weight and size of the body; the properties follow."""

Frame = tuple[int, int, Any]


def read_frames(connection: Any, callback: Callable[..., object]) -> Callable[[Frame], bool]:
    """py-amqp's reader of frames, which gets a header it cannot read a second time without the properties."""
    read: Callable[[Frame], bool] = frame_handler(connection, callback)

    def on_frame(frame: Frame) -> bool:
        try:
            return read(frame)
        except Exception:
            kind, channel, content = frame
            # A message without a body is delivered from in here: what its consumer raises is not meant.
            if kind != CONTENT_HEADER or _can_be_read(content):
                raise
            return read((kind, channel, _without_properties(content)))

    return on_frame


def _can_be_read(content: Any) -> bool:
    try:
        PROPERTY_CLASSES[_FIXED.unpack_from(content)[0]](content, _FIXED.size)
    except Exception:  # noqa: BLE001 - whatever it was, it was the properties
        return False
    return True


def _without_properties(content: Any) -> bytes:
    only_content_type = struct.pack(">HB", 0x8000, len(UNREADABLE)) + UNREADABLE.encode()
    return bytes(content[: _FIXED.size]) + only_content_type


class Message(pyamqp.Message):
    """A message of RabbitMQ's."""

    def __init__(self, msg: Any, channel: Any = None, **options: Any) -> None:
        headers = msg.properties.get("application_headers")
        refuse_compression(self, headers if isinstance(headers, dict) else {})
        super().__init__(msg, channel=channel, **options)


class Channel(pyamqp.Channel):
    """A channel of such messages.

    Their bodies stay bytes: py-amqp would decode them by whatever codec of Python's the message names, and some of
    them (``punycode``) take minutes for what fits into one message.
    """

    Message = Message

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "auto_decode": False})


class Connection(pyamqp.Connection):
    """A connection that outlives every header."""

    Channel = Channel

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, frame_handler=read_frames, **options)


class AmqpTransport(pyamqp.Transport):
    """kombu's transport with our connection."""

    Connection = Connection
