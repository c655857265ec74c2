"""Validates a raw item on a Redis list or channel, and normalises it for our transport.

Anyone can push anything to Redis: kombu takes the item for one of its envelopes and
raises ``KeyError``, ``TypeError`` or ``RecursionError`` if it is none, which costs a
reconnect or the worker. Here an item is parsed once, into an envelope that kombu can
process, or is refused with one ``UnreadableEnvelope``.

The origin of the item is known from the list that held it, so an envelope's own claims
(``delivery_info``, ``delivery_tag``) are never used: a forged one would return the
message to another queue, or replace another message.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from typing import Any

from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import loads

from paidonce_models.errors import PaidonceError

BODY_ENCODINGS = (None, "", "utf-8", "base64")


class UnreadableEnvelope(PaidonceError):
    """An item is not a message in kombu's form; it is dropped."""

    code = "unreadable_envelope"


def read_item(item: bytes | str, *, limit_bytes: int) -> dict[str, Any]:
    """The envelope that an item holds, with all its parts. Raises ``UnreadableEnvelope``."""
    return check_envelope(read_json(item, limit_bytes=limit_bytes))


def read_json(item: bytes | str, *, limit_bytes: int) -> object:
    """The JSON of an item. Raises ``UnreadableEnvelope``."""
    if len(item) > limit_bytes:
        raise UnreadableEnvelope(f"it has {len(item)} bytes, the limit is {limit_bytes}")
    try:
        return loads(bytes_to_str(item))
    except json.JSONDecodeError as error:
        raise UnreadableEnvelope(f"it is no JSON: {error.msg} at character {error.pos}") from None
    except Exception as error:  # noqa: BLE001 - nesting, encoding, and whatever kombu's own types raise
        raise UnreadableEnvelope(f"it is no JSON that can be read ({type(error).__name__})") from None


def check_envelope(found: object) -> dict[str, Any]:
    """The parts of an envelope that kombu relies on, each of its type. Raises ``UnreadableEnvelope``."""
    if not isinstance(found, dict):
        raise UnreadableEnvelope(f"it is a JSON {type(found).__name__}, not an object")
    properties = _part(found, "properties", dict)
    headers = {} if found.get("headers") is None else _part(found, "headers", dict)
    body = "" if found.get("body") is None else _part(found, "body", str)
    encoding = properties.get("body_encoding")
    if not (encoding is None or isinstance(encoding, str)) or encoding not in BODY_ENCODINGS:
        raise UnreadableEnvelope("its body_encoding is none of base64 and utf-8")
    content_type = None if found.get("content-type") is None else _part(found, "content-type", str)
    content_encoding = None if found.get("content-encoding") is None else _part(found, "content-encoding", str)
    info = properties.get("delivery_info")
    return {
        **found,
        "body": body,
        "headers": headers,
        "content-type": content_type,
        "content-encoding": content_encoding,
        "properties": {
            **properties,
            "body_encoding": encoding,
            "delivery_info": dict(info) if isinstance(info, Mapping) else {},
            "priority": _priority(properties.get("priority")),
        },
    }


def delivered_from(envelope: dict[str, Any], *, exchange: str, routing_key: str) -> dict[str, Any]:
    """The envelope with its real origin, and a unique delivery tag."""
    properties = envelope["properties"]
    properties["delivery_info"] = {**properties["delivery_info"], "exchange": exchange, "routing_key": routing_key}
    properties["delivery_tag"] = str(uuid.uuid4())
    return envelope


def _part(found: Mapping[str, Any], name: str, expected: type) -> Any:
    value = found.get(name)
    if not isinstance(value, expected):
        raise UnreadableEnvelope(f"its {name} is {'absent' if value is None else type(value).__name__}")
    return value


def _priority(value: object) -> int:
    """kombu also accepts digits as a number; anything else is the default, as there."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 3:
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 9 else 0
