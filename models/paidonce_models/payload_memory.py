"""What a process remembers of the payloads of one namespace in one store.

Owns the bounded memories beside the store: which ids are in it (``known``), what rows
that were read or written lately hold, and list elements that were encoded. One per
process, store and namespace, made where the store is opened; safe to use from many
threads. Everything works without it, only slower.

An id becomes known only after the commit that stored its row: the caller says so
with ``stored``. Whoever erases payloads calls ``forget``; another process that knows
an erased id would not send it again, so rows younger than a process must not be erased
while a run can still refer to their content.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import cast

from paidonce_models.addressing import PayloadRow, unpack
from paidonce_models.element_memory import ElementMemory
from paidonce_models.encoding import decode_json
from paidonce_models.json_values import JsonValue, copy_json


class RowContent:
    """What a row holds, and what was made of it once somebody asked.

    Shared by all who ask: read it, copy it, never change it or hand it out.
    """

    __slots__ = ("_decoded", "_is_flat", "codec", "content", "leaves")

    def __init__(self, codec: str, content: bytes) -> None:
        self.codec = codec
        self.content = content
        self.leaves: tuple[RowContent, ...] | None = None
        """Of a node: the leaves below it, once they were all read."""
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
        """Of a leaf: the elements, in containers of the caller's own."""
        elements = cast("list[JsonValue]", self.decoded())
        if self._is_flat:
            return [cast("dict[str, JsonValue]", element).copy() for element in elements]
        return [copy_json(element) for element in elements]


def _is_flat(element: JsonValue) -> bool:
    return type(element) is dict and not any(type(member) in (dict, list) for member in element.values())


class PayloadMemory:
    """The memories of one namespace; limits are in bytes and number of ids."""

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
        """Keep what rows hold that were just made: who reads them may well be in this process."""
        for row in rows:
            if self.contents.get(row.id) is None:
                self.contents.put(row.id, RowContent(*unpack(row.codec, row.inline)))

    def stored(self, rows: Iterable[PayloadRow]) -> None:
        """The rows are committed: they need not be sent again. Never call it before the commit."""
        self.known.add([row.id for row in rows])

    def forget(self, ids: Iterable[str]) -> None:
        """The rows were erased."""
        gone = list(ids)
        self.known.discard(gone)
        self.contents.discard(gone)


class KnownPayloads:
    """Ids whose rows are in the store; the oldest are forgotten first."""

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
    """What rows hold, by id; the oldest are forgotten first. Each counts twice, for it may be decoded."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._size = 0
        self._rows: dict[str, RowContent] = {}
        self._lock = threading.Lock()

    def get(self, id_: str) -> RowContent | None:
        """What is kept, or ``None`` when it must be fetched."""
        return self._rows.get(id_)

    def put(self, id_: str, row: RowContent) -> None:
        """Keep a row; what is larger than an eighth of the limit is not kept."""
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
