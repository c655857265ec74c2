"""The object of a call's arguments, assembled from members that are already encoded.

Guarantees that a document assembled from members equals one found by scanning the
bytes: the same parts, so the same address.
"""

from __future__ import annotations

from collections.abc import Sequence

from paidonce_models.payloads.document_scan import parts_at
from paidonce_models.payloads.documents import VALUE_BYTES, Document, Encoded, ListPart, LongList, Part
from paidonce_models.payloads.encoding import encode_json


def object_bytes(members: Sequence[tuple[str, bytes]]) -> bytes:
    """The JSON object of these members."""
    texts: list[bytes] = []
    for name, text in members:
        texts += [b",", encode_json(name), b":", text]
    return b"".join([b"{", *texts[1:], b"}"])


def encoded_object(members: Sequence[tuple[str, bytes | LongList]]) -> Encoded:
    """The JSON object of these members; a document if one of them is a long list."""
    if not any(isinstance(text, LongList) for _, text in members):
        return object_bytes([(name, _joined(text)) for name, text in members])
    parts: list[Part] = []
    loose = [b"{"]
    size = 1
    for name, text in members:
        key = b",%s:" % encode_json(name) if size > 1 else encode_json(name) + b":"
        loose.append(key)
        size += len(key)
        found: list[Part]
        if isinstance(text, LongList):
            found = [ListPart(text, (name,))]
            size += text.size + 2
        else:
            taken = _parts_of(text, name)
            if taken is None:
                # A scan would not split the object either.
                return object_bytes([(name, _joined(text)) for name, text in members])
            found = taken
            size += len(text)
        for part in found:
            if isinstance(part, bytes):
                loose.append(part)
            else:
                parts += [b"".join(loose), part]
                loose = []
    loose.append(b"}")
    return Document((*parts, b"".join(loose)), size + 1)


def _parts_of(text: bytes, name: str) -> list[Part] | None:
    """The parts that a scan of the whole object finds in this member."""
    return [text] if len(text) < VALUE_BYTES else parts_at(text, (name,))


def _joined(text: bytes | LongList) -> bytes:
    return text if isinstance(text, bytes) else b"[" + b",".join(text.texts) + b"]"
