"""kombu's RabbitMQ transport, for messages whose properties py-amqp cannot read.

A text that is not UTF-8, a date past the year 9999, a type of another client: py-amqp
raises while it reads the frame, which costs the connection; RabbitMQ then redelivers
the message on the next connection, for ever. Here such a message arrives without
properties, with a content type that indicates this, and its consumer refuses it.
"""

# mypy: allow-untyped-calls, allow-subclassing-any
# because kombu and py-amqp are typed in part only.

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from amqp.exceptions import MessageNacked  # type: ignore[import-untyped]  # py-amqp publishes no types
from amqp.method_framing import frame_handler  # type: ignore[import-untyped]  # as above
from amqp.serialization import PROPERTY_CLASSES  # type: ignore[import-untyped]  # as above
from kombu.transport import pyamqp

from paidonce.broker.unread_bodies import refuse_compression

CONTENT_HEADER = 2
CONFIRM_SECONDS = 5.0
"""How long the server may be silent while it has messages to confirm; it is then treated as unreachable."""
UNREADABLE = "application/x-unreadable-properties"
_FIXED = struct.Struct(">HHQ")
"""Class, weight and size of the body; the properties follow."""

Frame = tuple[int, int, Any]


def read_frames(connection: Any, callback: Callable[..., object]) -> Callable[[Frame], bool]:
    """py-amqp's frame reader, which gets an unreadable header again without its properties."""
    read: Callable[[Frame], bool] = frame_handler(connection, callback)

    def on_frame(frame: Frame) -> bool:
        try:
            return read(frame)
        except Exception:
            kind, channel, content = frame
            # A message without a body is delivered from in here: errors of its consumer must pass through.
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

    Their bodies stay bytes: py-amqp would decode them by any of Python's codecs that the message names, and some of
    them (``punycode``) take minutes for what fits into one message.
    """

    Message = Message
    basic_publish: Any
    _confirm_selected: bool

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "auto_decode": False})
        self._published = 0
        self._unconfirmed: set[int] | None = None
        self._was_refused = False

    @contextmanager
    def together(self) -> Iterator[None]:
        """Wait for the server's confirmations of all messages that are published in the block at its end, not of each.

        Raises ``MessageNacked`` if it refuses one, ``TimeoutError`` if it is silent.
        """
        if not self.connection.confirm_publish:
            yield
            return
        if not self._confirm_selected:
            self._confirm_selected = True
            self.confirm_select()
        self.events["basic_ack"].add(self._confirmed)
        self.events["basic_nack"].add(self._refused)
        confirming, self.basic_publish = self.basic_publish, self._basic_publish
        self._unconfirmed, self._was_refused = set(), False
        try:
            yield
            while self._unconfirmed:
                self.connection.drain_events(timeout=CONFIRM_SECONDS)
            if self._was_refused:
                raise MessageNacked
        finally:
            self.basic_publish = confirming
            self._unconfirmed = None

    def confirm_select(self, *args: Any, **options: Any) -> Any:
        """From here on the server counts what is published, beginning with 1."""
        self._published = 0
        return super().confirm_select(*args, **options)

    def _basic_publish(self, *args: Any, **options: Any) -> Any:
        if self._confirm_selected:
            self._published += 1  # as the server counts
            if self._unconfirmed is not None:
                self._unconfirmed.add(self._published)
        return super()._basic_publish(*args, **options)

    def _confirmed(self, number: int, multiple: bool) -> None:
        if self._unconfirmed is not None:
            settled = {each for each in self._unconfirmed if each <= number} if multiple else {number}
            self._unconfirmed -= settled

    def _refused(self, number: int, multiple: bool) -> None:
        self._was_refused = True
        self._confirmed(number, multiple)


class Connection(pyamqp.Connection):
    """A connection that survives every header."""

    Channel = Channel

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, frame_handler=read_frames, **options)


class AmqpTransport(pyamqp.Transport):
    """kombu's transport with our connection."""

    Connection = Connection
