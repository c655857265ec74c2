"""Reads rows back to encoded values, level by level.

Owns reading: one fetch for the root and one for each level below, only for what is not
cached. A fetched row is checked against its address once. Rows are read eagerly: the
result needs no connection.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeAlias, TypedDict, cast

from paidonce_models.errors import StoreError
from paidonce_models.payloads.addressing import Fetch, read_row
from paidonce_models.payloads.documents import Document, Encoded, ListPart, Part, ValuePart
from paidonce_models.payloads.json_values import JsonValue
from paidonce_models.payloads.list_tree import TREE
from paidonce_models.payloads.payload_memory import PayloadMemory, RowContent


class Reference(TypedDict, total=False):
    """A part of a manifest that is not text: ``v``, or ``l`` with ``p`` at the root; see ``payloads``."""

    v: str
    l: list[str]  # noqa: E741  # short, because every turn of a long list stores one
    p: list[str]


Manifest: TypeAlias = "list[str | Reference]"


class StoredList:
    """The elements of a list, in the leaves in which they were stored."""

    def __init__(self, leaves: list[RowContent]) -> None:
        self._leaves = leaves
        self.size = sum(len(leaf.content) - 1 for leaf in leaves) - 1
        """The size of the elements joined by commas, without brackets."""

    def content(self) -> Iterator[bytes]:
        return (leaf.content[1:-1] for leaf in self._leaves)

    def fresh(self) -> list[JsonValue]:
        elements: list[JsonValue] = []
        for leaf in self._leaves:
            elements += leaf.fresh_elements()
        return elements


def read_encoded(root_id: str, fetch: Fetch, memory: PayloadMemory | None = None) -> Encoded:
    """The value of ``root_id``; raises ``StoreError`` for rows that are missing or damaged."""
    rows = _Rows(fetch, memory)
    rows.load([root_id])
    root = rows.of(root_id)
    if root.codec != TREE:
        return root.content
    rows.load_below(root)
    parts: list[Part] = []
    size = 0
    for part in _manifest(root):
        if isinstance(part, str):
            text = part.encode("utf-8")
            parts.append(text)
            size += len(text)
        elif "v" in part:
            value = ValuePart(rows.of(part["v"]).content)
            parts.append(value)
            size += len(value.text)
        else:
            elements = StoredList(rows.leaves(part["l"]))
            parts.append(ListPart(elements, tuple(part["p"])))
            size += elements.size + 2
    return Document(tuple(parts), size)


class _Rows:
    """The rows of one value, as they are read."""

    def __init__(self, fetch: Fetch, memory: PayloadMemory | None) -> None:
        self._fetch = fetch
        self._memory = memory
        self._found: dict[str, RowContent] = {}

    def of(self, id_: str) -> RowContent:
        return self._found[id_]

    def load(self, ids: Iterable[str]) -> None:
        """Read the rows of ``ids`` that were not read yet, in one fetch."""
        missing = []
        for id_ in dict.fromkeys(ids):
            remembered = None if self._memory is None else self._memory.contents.get(id_)
            if remembered is not None:
                self._found[id_] = remembered
            elif id_ not in self._found:
                missing.append(id_)
        if not missing:
            return
        fetched = self._fetch(missing)
        for id_ in missing:
            if id_ not in fetched:
                raise StoreError(f"payload {id_} is not in the store; was it erased?")
            content = RowContent(*read_row(id_, *fetched[id_]))
            self._found[id_] = content
            if self._memory is not None:
                self._memory.contents.put(id_, content)

    def load_below(self, root: RowContent) -> None:
        """Read everything that ``root`` refers to."""
        level = [root]
        while level:
            ids = [id_ for row in level for part in _manifest(row) for id_ in _named(part)]
            self.load(ids)
            level = [row for row in map(self.of, ids) if row.codec == TREE and row.leaves is None]

    def leaves(self, ids: list[str]) -> list[RowContent]:
        """The leaves of a list, through its nodes."""
        found: list[RowContent] = []
        for id_ in ids:
            row = self.of(id_)
            if row.codec != TREE:
                found.append(row)
                continue
            if row.leaves is None:
                below = [child for part in _manifest(row) for child in cast(Reference, part)["l"]]
                row.leaves = tuple(self.leaves(below))
            found += row.leaves
        return found


def _manifest(row: RowContent) -> Manifest:
    return cast(Manifest, row.decoded())


def _named(part: str | Reference) -> list[str]:
    if isinstance(part, str):
        return []
    return [part["v"]] if "v" in part else part["l"]
