"""Encoded values to content-addressed rows and back; pure, no database.

Owns how a value is split into rows. A small value, and any value without a long list,
is one row of codec ``json``. A value with long lists becomes a manifest of codec
``json-tree``: a JSON list of parts that, joined together, give the value's bytes, where

- a text stands for itself,
- ``{"v": id}`` is a large value beside the lists,
- ``{"l": [id, ...], "p": path}`` is a long list, each id a leaf (a JSON list) or a
  node (a manifest with one such part); the elements in them are joined by commas.

Content above 4 KiB is compressed (``+zlib``). So a message list that grows by one message
stores that message and a manifest. ``list_tree`` splits lists, ``document_scan`` finds
them, ``PayloadMemory`` caches what need not be done twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from paidonce_models.errors import PayloadTooLarge
from paidonce_models.payloads.addressing import Fetch, PayloadRow, make_row
from paidonce_models.payloads.document_scan import document_of
from paidonce_models.payloads.documents import Document, Encoded, ListPart, LongList, ValuePart
from paidonce_models.payloads.encoding import encode_json
from paidonce_models.payloads.list_tree import TREE
from paidonce_models.payloads.payload_memory import PayloadMemory
from paidonce_models.payloads.payload_reading import read_encoded

MAX_PAYLOAD_BYTES = 50 * 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitPayload:
    """A value's address, and the rows that are not known to be in the store."""

    root_id: str
    size: int
    rows: tuple[PayloadRow, ...]


def split(
    data: Encoded, codec: str = "json", *, memory: PayloadMemory | None = None, limit_bytes: int = MAX_PAYLOAD_BYTES
) -> SplitPayload:
    """The rows of ``data``; the address depends on its bytes alone.

    With a cache, rows that it knows to be stored are left out. Raises ``PayloadTooLarge``.
    """
    if len(data) > limit_bytes:
        raise PayloadTooLarge(
            f"the value has {len(data):,} bytes, the limit is {limit_bytes:,}; raise PAIDONCE_MAX_PAYLOAD_BYTES, "
            "or store the value elsewhere and pass its address"
        )
    document = document_of(data) if isinstance(data, bytes) and codec == "json" else data
    if isinstance(document, Document):
        rows = tuple(_rows(document, memory))
        if memory is not None:
            memory.made(rows)
    else:
        rows = (make_row(bytes(data), codec),)
    root_id = rows[-1].id
    unknown = rows if memory is None or root_id not in memory.known else ()
    return SplitPayload(root_id=root_id, size=len(data), rows=unknown)


def assemble(root_id: str, fetch: Fetch, *, memory: PayloadMemory | None = None) -> bytes:
    """The bytes that were split; ``fetch`` is called once per level, and only for what is not cached.

    Raises ``StoreError`` for rows that are missing or do not match their ids.
    """
    return bytes(read_encoded(root_id, fetch, memory))


def _rows(document: Document, memory: PayloadMemory | None) -> Iterator[PayloadRow]:
    """The rows below the root that are not known, then the root."""

    def is_known(id_: str) -> bool:
        return memory is not None and id_ in memory.known

    manifest: list[object] = []
    for part in document.parts:
        if isinstance(part, bytes):
            manifest.append(part.decode("utf-8"))
        elif isinstance(part, ValuePart):
            row = make_row(part.text, "json")
            manifest.append({"v": row.id})
            if not is_known(row.id):
                yield row
        else:
            elements = _long_list(part)
            tree = elements.tree()
            manifest.append({"l": tree.addresses(elements.texts), "p": part.path})
            yield from tree.rows(elements.texts, is_known)
    yield make_row(encode_json(manifest), TREE)


def _long_list(part: ListPart) -> LongList:
    if isinstance(part.elements, LongList):
        return part.elements
    # Read from the store and stored again, as a fork does: split it anew.
    whole = document_of(b"[" + b",".join(part.elements.content()) + b"]")
    if whole is not None and isinstance(whole.parts[0], ListPart) and isinstance(whole.parts[0].elements, LongList):
        return whole.parts[0].elements
    raise ValueError("a stored long list is always long")
