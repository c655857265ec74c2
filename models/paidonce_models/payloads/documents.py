"""Encoded values as documents: a little text around large values and long lists.

Owns the form of large values inside a process. Joining a long message list to one
string for every step would cost more than the rest of the step; a document keeps its
lists as elements that were encoded, or read, separately. It can be used wherever
encoded bytes can (``Encoded``), and ``bytes(document)`` returns them.

A document never changes, and ``fresh`` never returns the same container twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, cast

from paidonce_models.payloads.encoding import decode_json
from paidonce_models.payloads.json_values import JsonValue
from paidonce_models.payloads.list_tree import ListTree

DOCUMENT_BYTES = 16 * 1024
"""Shorter values are one piece, and so are shorter lists."""

VALUE_BYTES = 4096
"""Values beside a long list are stored separately from this size on."""

_SAMPLE = 256
_SMALL_ELEMENT_BYTES = 64


class Elements(Protocol):
    """The elements of a long list, encoded or read from the store."""

    def content(self) -> Iterator[bytes]:
        """Texts that, joined by commas, form the list without its brackets."""

    def fresh(self) -> list[JsonValue]:
        """The elements in new containers."""


@dataclass(slots=True, eq=False)
class LongList:
    """The elements of a list, each encoded separately; ``size`` is that of their joined texts."""

    texts: list[bytes]
    """Never changed."""
    size: int
    _tree: ListTree = field(default_factory=ListTree)

    def content(self) -> Iterator[bytes]:
        return iter(self.texts)

    def fresh(self) -> list[JsonValue]:
        return [decode_json(text) for text in self.texts]

    def tree(self) -> ListTree:
        """The chunk tree of the whole list. Two threads may both build it, with the same result."""
        self._tree = self._tree.grown(self.texts)
        return self._tree

    def grown_to(self, texts: list[bytes], size: int) -> LongList:
        """A longer list that starts with this one."""
        return LongList(texts, size, self._tree)


@dataclass(frozen=True, slots=True)
class ListPart:
    """A long list with its brackets, at ``path`` of the value."""

    elements: Elements
    path: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ValuePart:
    """A large value that is stored separately."""

    text: bytes


Part: TypeAlias = "bytes | ValuePart | ListPart"


@dataclass(frozen=True, slots=True, eq=False)
class Document:
    """A value in parts; ``size`` is that of its bytes."""

    parts: tuple[Part, ...]
    size: int

    def __len__(self) -> int:
        return self.size

    def __bytes__(self) -> bytes:
        texts: list[bytes] = []
        for part in self.parts:
            if isinstance(part, bytes):
                texts.append(part)
            elif isinstance(part, ValuePart):
                texts.append(part.text)
            else:
                texts += [b"[", b",".join(part.elements.content()), b"]"]
        return b"".join(texts)

    def fresh(self) -> JsonValue:
        """Equal to ``decode_json`` of the bytes; texts and numbers may be shared, containers never."""
        rest = b"".join(
            part if isinstance(part, bytes) else part.text if isinstance(part, ValuePart) else b"null"
            for part in self.parts
        )
        value = decode_json(rest)
        for part in self.parts:
            if isinstance(part, ListPart):
                if not part.path:
                    return cast(JsonValue, part.elements.fresh())
                container = cast("dict[str, JsonValue]", value)
                for key in part.path[:-1]:
                    container = cast("dict[str, JsonValue]", container[key])
                container[part.path[-1]] = cast(JsonValue, part.elements.fresh())
        return value


Encoded: TypeAlias = bytes | Document


def decode_encoded(data: Encoded) -> JsonValue:
    """A fresh value."""
    return decode_json(data) if isinstance(data, bytes) else data.fresh()


def is_long(texts: Sequence[bytes], size: int) -> bool:
    """Whether a list is worth a tree: large, and not of numbers or the like."""
    if size < DOCUMENT_BYTES:
        return False
    return len(texts) < _SAMPLE or sum(map(len, texts[:_SAMPLE])) >= _SAMPLE * _SMALL_ELEMENT_BYTES
