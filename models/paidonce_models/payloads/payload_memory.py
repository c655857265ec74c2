"""A process's cache of the payloads of one namespace in one store.

Owns the bounded caches beside the store: which ids are in it (``known``), the content
of rows that were recently read or written, and encoded list elements. One per process,
store and namespace, created where the store is opened; thread-safe. Everything works
without it, only slower.

An id becomes known only after the commit that stored its row, when the caller calls
``stored``. Whoever erases payloads calls ``forget``; another process that knows an
erased id would not send it again, so rows younger than a process must not be erased
while a run can still refer to their content.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import cast

from paidonce_models.payloads.addressing import PayloadRow, unpack
from paidonce_models.payloads.element_memory import ElementMemory
from paidonce_models.payloads.encoding import decode_json
from paidonce_models.payloads.json_values import JsonValue, copy_json


class RowContent:
    """The content of a row, and what was derived from it on demand.

    Shared by all readers: read it, copy it, never change it or return it to users.
    """

    __slots__ = ("_decoded", "_is_flat", "codec", "content", "leaves")

    def __init__(self, codec: str, content: bytes) -> None:
        self.codec = codec
        self.content = content
        self.leaves: tuple[RowContent, ...] | None = None
        """For a node: the leaves below it, once all were read."""
        self._decoded: JsonValue = None
        self._is_flat = False

    def decoded(self) -> JsonValue:
        """The content as a value."""
        if self._decoded is None:
            decoded = decode_json(self.content)
            self._is_flat = isinstance(decoded, list) and all(_is_flat(element) for element in decoded)
            self._decoded = decoded
        return self._decoded

    def fresh_elements(self) -> list[JsonValue]:
        """For a leaf: the elements, in new containers."""
        elements = cast("list[JsonValue]", self.decoded())
        if self._is_flat:
            return [cast("dict[str, JsonValue]", element).copy() for element in elements]
        return [copy_json(element) for element in elements]


def _is_flat(element: JsonValue) -> bool:
    return type(element) is dict and not any(type(member) in (dict, list) for member in element.values())


class PayloadMemory:
    """The caches of one namespace; limits are in bytes and number of ids."""

    def __init__(
        self,
        *,
        known_limit: int = 200_000,
        contents_limit_bytes: int = 128 * 2**20,
        elements_limit_bytes: int = 32 * 2**20,
    ) -> None:
        self.known = KnownPayloads(known_limit)
        self.contents = ContentMemory(contents_limit_bytes)
        self.elements = ElementMemory(elements_limit_bytes)

    def made(self, rows: Iterable[PayloadRow]) -> None:
        """Cache the content of new rows: their reader may well be in this process."""
        for row in rows:
            if self.contents.get(row.id) is None:
                self.contents.put(row.id, RowContent(*unpack(row.codec, row.inline)))

    def stored(self, rows: Iterable[PayloadRow]) -> None:
        """The rows are committed and need not be sent again. Never call it before the commit."""
        self.known.add([row.id for row in rows])

    def forget(self, ids: Iterable[str]) -> None:
        """The rows were erased."""
        gone = list(ids)
        self.known.discard(gone)
        self.contents.discard(gone)


class KnownPayloads:
    """Ids whose rows are in the store; the oldest are evicted first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._ids: dict[str, None] = {}
        self._lock = threading.Lock()

    def __contains__(self, id_: str) -> bool:
        return id_ in self._ids

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, ids: Iterable[str]) -> None:
        """Call it after the commit, never before."""
        with self._lock:
            self._ids.update(dict.fromkeys(ids))
            while len(self._ids) > self._limit:
                del self._ids[next(iter(self._ids))]

    def discard(self, ids: Iterable[str]) -> None:
        """Forget ids, known or not."""
        with self._lock:
            for id_ in ids:
                self._ids.pop(id_, None)


class ContentMemory:
    """The content of rows by id; the oldest is evicted first. Each counts twice, because it may be decoded."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._size = 0
        self._rows: dict[str, RowContent] = {}
        self._lock = threading.Lock()

    def get(self, id_: str) -> RowContent | None:
        """The cached content, or ``None`` if it must be fetched."""
        return self._rows.get(id_)

    def put(self, id_: str, row: RowContent) -> None:
        """Cache a row, unless it is larger than an eighth of the limit."""
        size = 2 * len(row.content)
        if size > self._limit_bytes // 8:
            return
        with self._lock:
            if id_ not in self._rows:
                self._rows[id_] = row
                self._size += size
            while self._size > self._limit_bytes:
                self._size -= 2 * len(self._rows.pop(next(iter(self._rows))).content)

    def discard(self, ids: Iterable[str]) -> None:
        """Forget ids, kept or not."""
        with self._lock:
            for id_ in ids:
                removed = self._rows.pop(id_, None)
                self._size -= 0 if removed is None else 2 * len(removed.content)
