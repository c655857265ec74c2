"""``BoundedBytes``: a body or a line of a stream, kept whole while it is small, else only its two ends.

Of a large response (a thousand embeddings, an image) only what surrounds the content
matters: the id at its start, the usage at its end. Nothing is kept once it was read.
"""

from __future__ import annotations

import json
import re
from typing import Final

import orjson

from paidonce_models.payloads.json_values import MAX_DEPTH, nests_deeper

WHOLE_BYTES: Final = 256 * 1024
"""A document of up to this size is parsed, which takes some 0.3 ms."""
HEAD_BYTES: Final = 16 * 1024
TAIL_BYTES: Final = 64 * 1024

_USAGE: Final = re.compile(rb'"(usage|usageMetadata)"\s*:\s*(?=\{)')
_NAMED: Final = re.compile(rb'"(id|responseId|model|modelVersion|service_tier|status)"\s*:\s*"([^"\\]{1,200})"')
_DECODER: Final = json.JSONDecoder()


def parsed_json(data: bytes) -> object:
    """The JSON value. orjson refuses half an emoji (a lone surrogate), which Python's parser accepts.

    Raises ``ValueError``.
    """
    try:
        value: object = orjson.loads(data)
    except orjson.JSONDecodeError:
        if b"\\ud" not in data and b"\\uD" not in data:
            raise
        try:
            value = json.loads(data)
            if nests_deeper(value, MAX_DEPTH):
                raise RecursionError
        except RecursionError:  # nested deeper than any response; orjson raises a ValueError for that
            raise ValueError("nested too deep") from None
    return value


class BoundedBytes:
    """Bytes that arrive in chunks; holds at most ``WHOLE_BYTES`` and one chunk."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0
        self._head: bytes | None = None

    def __len__(self) -> int:
        return self._size

    def add(self, piece: bytes) -> None:
        """Add the next chunk."""
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size > WHOLE_BYTES:
            held = b"".join(self._pieces)
            if self._head is None:
                self._head = held[:HEAD_BYTES]
            self._pieces = [held[-TAIL_BYTES:]]
            self._size = len(self._pieces[0])

    def ends(self) -> tuple[bytes, bytes]:
        """Head and tail; the head is empty if everything is in the tail."""
        return self._head or b"", b"".join(self._pieces)

    def document(self) -> tuple[object, bool]:
        """The JSON value and True; or, if it is too large or cut off, the fields at its ends and if it is complete.

        Strings in a response cannot pass for its fields: in JSON a quote inside a string is escaped.
        """
        head, tail = self.ends()
        if self._head is None:
            try:
                return parsed_json(tail), True
            except ValueError:
                return fields_of(tail, tail), False
        return fields_of(head, tail) or fields_of(head, head), tail.rstrip()[-1:] in (b"}", b"]")


def fields_of(head: bytes, tail: bytes) -> dict[str, object]:
    """The fields that matter: the first of each in the head, and the last usage in the tail."""
    fields: dict[str, object] = {}
    for text in (head, tail):
        for name, value in _NAMED.findall(text):
            fields.setdefault(name.decode(), value.decode("utf-8", "replace"))
    for found in reversed(list(_USAGE.finditer(tail))):
        try:
            block, _ = _DECODER.raw_decode(tail[found.end() :].decode("utf-8", "replace"))
        except (ValueError, RecursionError):
            continue  # cut off inside it, or nested too deep: an earlier one may be complete
        if nests_deeper(block, MAX_DEPTH):
            continue
        fields[found[1].decode()] = block
        break
    return fields
