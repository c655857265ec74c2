"""A result that was paid for and does not fit: the bytes that are kept of it, and how they are read.

Owns the form of kept bytes: a value's natural JSON, the types that JSON does not express, and the places that could be
kept only as human-readable text. Later code accepts a kept value if nothing of it is lost: the same code must give the
very same value; changed code gives whatever its annotation makes of the JSON.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from paidonce.values.codecs import Codec
from paidonce.values.constructed import classes_of
from paidonce.values.rendering import LONGEST_TEXT, render
from paidonce.values.revival import revive
from paidonce.values.stored_form import PREFIX, TYPES, VALUE
from paidonce.values.survival import first_difference
from paidonce_models.errors import InvalidInput
from paidonce_models.payloads.encoding import decode_json, encode_json
from paidonce_models.payloads.json_values import JsonValue

LARGEST_KEPT: Final = 256 * 2**20
"""Bytes. More than a result may have by default, and within what both stores accept in one row."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What is kept of a value."""

    data: bytes
    text_only: tuple[str, ...] = ()


def keep(value: object) -> Kept:
    """The bytes to keep of any value; never raises, and always terminates."""
    try:
        rendering = render(value)
        data = encode_json({VALUE: rendering.value, TYPES: rendering.types})
        text_only = tuple(rendering.text_only)
    except Exception:  # noqa: BLE001 - memory, the stack, or what nobody foresaw: the money is spent all the same
        return _as_text(f"(a {type(value).__name__}, which cannot be stored)")
    return Kept(data=data, text_only=text_only) if len(data) <= LARGEST_KEPT else _as_text(_beginning(data))


def keep_encoded(data: bytes) -> Kept:
    """The same for a result in its stored form, for which there was no room."""
    if len(data) > LARGEST_KEPT:
        return _as_text(_beginning(data))
    return Kept(data=data if data.startswith(PREFIX) else PREFIX + data + b',"%b":null}' % TYPES.encode())


def accept_kept(data: bytes, codec: Codec, where: str, *, is_same_code: bool, by_hand: bool = False) -> bytes:
    """The stored form of a kept value under the current annotation. Raises ``InvalidInput`` if it would be incomplete.

    ``by_hand``: a person declares that the JSON is the result, whatever objects it was.
    """
    stored = decode_json(data)
    if not isinstance(stored, dict) or VALUE not in stored:
        raise InvalidInput(f"{where}: what was kept of it cannot be read")
    natural, types = stored[VALUE], stored.get(TYPES)
    try:
        value = revive(natural, types, classes_of(codec.annotation))
        return codec.encode_result(value, where)
    except InvalidInput:
        if is_same_code and not by_hand:
            raise
    encoded = codec.accept(natural, where)
    if not by_hand:
        _refuse_loss(natural, codec.decode(encoded, where), where)
    return encoded


def _refuse_loss(natural: JsonValue, accepted: object, where: str) -> None:
    """Refuse to lose fields that the current type leaves out: they were paid for."""
    again = render(accepted).value
    difference = _lost(natural, again, where)
    if difference is not None:
        raise InvalidInput(f"{where}: the current type would lose a part of what was kept: {difference}")


def _lost(kept: JsonValue, now: JsonValue, path: str) -> str | None:
    if isinstance(kept, dict) and isinstance(now, dict):
        for key, each in kept.items():
            if key not in now:
                return f"{path}[{key!r}] is lost"
            if (found := _lost(each, now[key], f"{path}[{key!r}]")) is not None:
                return found
        return None
    if isinstance(kept, list) and isinstance(now, list) and len(kept) == len(now):
        for index, (each, other) in enumerate(zip(kept, now, strict=True)):
            if (found := _lost(each, other, f"{path}[{index}]")) is not None:
                return found
        return None
    return first_difference(kept, now, path)


def _as_text(text: str) -> Kept:
    data = encode_json({VALUE: text, TYPES: {"t": "text"}})
    return Kept(data=data, text_only=("the value itself",))


def _beginning(data: bytes) -> str:
    return f"{data[:LONGEST_TEXT].decode(errors='replace')}… ({len(data):,} bytes, of which this is the beginning)"
