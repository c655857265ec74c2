"""Finds the long lists in JSON bytes.

Owns the conversion of bytes to a ``Document``: a long list is the value itself or a
member of an object up to three levels down (the ``messages`` of a call's arguments, the
same inside a state). Offsets are byte offsets: the text is scanned as Latin-1, in which
every byte is one character, and JSON's own syntax is ASCII.

Bytes with spaces between tokens, repeated keys, very many keys or no long list are no
document; they are stored as one piece.
"""

from __future__ import annotations

import json
from collections.abc import Generator

from paidonce_models.payloads.documents import (
    DOCUMENT_BYTES,
    VALUE_BYTES,
    Document,
    ListPart,
    LongList,
    Part,
    ValuePart,
    is_long,
)
from paidonce_models.payloads.encoding import decode_json

MOST_MEMBERS = 255
"""Limit for the value itself: a function has no more parameters."""
MOST_NAMES = 2_000
"""Limit for all objects within one member. Each costs some microseconds, and an object of a million members is no
conversation. Counted per member, because ``argument_objects`` assembles documents from members."""
_OBJECT_DEPTH = 3
_WINDOW_BYTES = 64 * 1024
_DECODER = json.JSONDecoder(strict=False)
_QUOTE, _COMMA, _COLON, _LIST, _LIST_END, _OBJECT, _OBJECT_END, _BACKSLASH = b'",:[]{}\\'


class _NoDocument(Exception):
    """The bytes are not compact JSON."""


def document_of(data: bytes) -> Document | None:
    """The document in ``data``, or ``None`` if it is stored as one piece."""
    if len(data) < DOCUMENT_BYTES:
        return None
    parts = parts_at(data, ())
    if parts is None or not any(isinstance(part, ListPart) for part in parts):
        return None
    return Document(tuple(parts), len(data))


def parts_at(data: bytes, path: tuple[str, ...]) -> list[Part] | None:
    """The parts of a value at ``path`` of a larger one; ``None`` if it cannot be split."""
    try:
        return list(_Scan(data).parts(path))
    except (_NoDocument, ValueError, IndexError, RecursionError):
        return None


class _Scan:
    """One walk over the bytes, a window of text at a time."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._written = 0
        self._names = 0
        self._window_start = 0
        self._window = ""

    def parts(self, path: tuple[str, ...]) -> Generator[Part, None, None]:
        end = yield from self._value(0, path)
        if end != len(self._data):
            raise _NoDocument
        if self._written < end:
            yield self._data[self._written :]

    def _value(self, start: int, path: tuple[str, ...]) -> Generator[Part, None, int]:
        """Yields the parts of the value that begins at ``start``; returns its end."""
        sign = self._data[start]
        if sign == _OBJECT and len(path) < _OBJECT_DEPTH:
            return (yield from self._object(start, path))
        if sign == _LIST:
            elements, end = self._list(start)
        else:
            elements, end = None, self._end(start)
        part: Part | None = None
        if elements is not None:
            part = ListPart(elements, path)
        elif path and end - start >= VALUE_BYTES:
            part = ValuePart(self._data[start:end])
        if part is not None:
            if self._written < start:
                yield self._data[self._written : start]
            yield part
            self._written = end
        return end

    def _object(self, start: int, path: tuple[str, ...]) -> Generator[Part, None, int]:
        data, position = self._data, start + 1
        if data[position] == _OBJECT_END:
            return position + 1
        names: set[str] = set()
        while True:
            key_end = self._end(position)
            name = decode_json(data[position:key_end])
            if not isinstance(name, str) or name in names or data[key_end] != _COLON:
                raise _NoDocument
            names.add(name)
            self._count(names, path)
            position = yield from self._value(key_end + 1, (*path, name))
            if data[position] == _OBJECT_END:
                return position + 1
            if data[position] != _COMMA:
                raise _NoDocument
            position += 1

    def _count(self, names: set[str], path: tuple[str, ...]) -> None:
        """Count one more name; raises ``_NoDocument`` if there are too many to be worth splitting."""
        if not path:
            self._names = 0
            if len(names) > MOST_MEMBERS:
                raise _NoDocument
            return
        self._names += 1
        if self._names > MOST_NAMES:
            raise _NoDocument

    def _list(self, start: int) -> tuple[LongList | None, int]:
        """The list if it is long, and its end."""
        data, position = self._data, start + 1
        if data[position] == _LIST_END:
            return None, position + 1
        texts: list[bytes] = []
        while True:
            end = self._end(position)
            texts.append(data[position:end])
            if len(texts) == 256 and not is_long(texts, DOCUMENT_BYTES):
                return None, self._end(start)
            if data[end] == _LIST_END:
                size = end - start - 1
                return (LongList(texts, size) if is_long(texts, size) else None), end + 1
            if data[end] != _COMMA:
                raise _NoDocument
            position = end + 1

    def _end(self, start: int) -> int:
        """The end of the value that begins at ``start``; raises ``ValueError`` if there is none."""
        data = self._data
        if data[start] == _QUOTE:
            return _end_of_text(data, start)
        size = _WINDOW_BYTES
        while True:
            offset = start - self._window_start
            whole = self._window_start + len(self._window) >= len(data)
            if 0 <= offset < len(self._window):
                try:
                    _, end = _DECODER.raw_decode(self._window, offset)
                except ValueError:
                    if offset == 0 and whole:
                        raise
                else:
                    # A number may continue beyond the window.
                    if end < len(self._window) or whole:
                        return self._window_start + end
            self._window_start = start
            self._window = data[start : start + size].decode("latin-1")
            size *= 4


def _end_of_text(data: bytes, start: int) -> int:
    position = start + 1
    while True:
        position = data.index(b'"', position)
        escapes = position
        while data[escapes - 1] == _BACKSLASH:
            escapes -= 1
        position += 1
        if (position - 1 - escapes) % 2 == 0:
            return position
