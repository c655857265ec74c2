"""Content addresses and the rows they name.

Owns what a row of ``payloads`` is: its id is SHA-256 over the content before
compression and the codec, so that every process, with any version of zlib, gives
the same content the same id. Rows are shared and never change.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from paidonce_models.errors import StoreError

COMPRESS_BYTES = 4096
"""Larger content is compressed if that saves a tenth."""

_COMPRESSION_LEVEL = 1
_ZLIB = "+zlib"

Fetch = Callable[[list[str]], dict[str, tuple[str, bytes]]]
"""From ids to the codec and the stored bytes of each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PayloadRow:
    """A row of ``payloads``: ``size`` and ``sha256`` are of the content before compression."""

    id: str
    codec: str
    size: int
    sha256: str
    inline: bytes


def address(content: bytes, codec: str) -> str:
    """The id of ``content``; content holds no NUL, so codec and content cannot be confused."""
    return _digests(content, codec)[1]


def make_row(content: bytes, codec: str) -> PayloadRow:
    """The row that stores ``content``."""
    sha256, id_ = _digests(content, codec)
    inline, stored_codec = content, codec
    if len(content) > COMPRESS_BYTES:
        packed = zlib.compress(content, _COMPRESSION_LEVEL)
        if len(packed) * 10 <= len(content) * 9:
            inline, stored_codec = packed, codec + _ZLIB
    return PayloadRow(id=id_, codec=stored_codec, size=len(content), sha256=sha256, inline=inline)


def read_row(id_: str, stored_codec: str, inline: bytes) -> tuple[str, bytes]:
    """Codec and content of a stored row; raises ``StoreError`` if its content does not match its id."""
    try:
        codec, content = unpack(stored_codec, inline)
    except zlib.error as error:
        raise StoreError(f"payload {id_} is damaged and cannot be unpacked: {error}; restore it") from error
    found = address(content, codec)
    if found != id_:
        raise StoreError(f"payload {id_} is damaged: its content has the address {found}; restore it from a backup")
    return codec, content


def unpack(stored_codec: str, inline: bytes) -> tuple[str, bytes]:
    """Codec and content, unchecked; raises ``zlib.error``."""
    codec = stored_codec.removesuffix(_ZLIB)
    return codec, (inline if codec == stored_codec else zlib.decompress(inline))


def _digests(content: bytes, codec: str) -> tuple[str, str]:
    digest = hashlib.sha256(content)
    sha256 = digest.hexdigest()
    digest.update(b"\0" + codec.encode())
    return sha256, digest.hexdigest()
