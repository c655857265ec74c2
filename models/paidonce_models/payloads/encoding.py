"""Python values to JSON bytes and back, the same on every machine and every replay.

Owns the one stored form of plain values: compact UTF-8 JSON, keys in insertion order.
orjson does the work; what it cannot do exactly (integers beyond 64 bits, which it reads
as floats, and lone surrogates) goes through the standard library. For every accepted
value, ``decode_json(encode_json(value))`` equals the value (tuples as lists), and
encoding that again gives the same bytes.

Must never silently turn a value into another: orjson alone would write NaN as null, a
UUID as text and an enum as its value. Typed values (models, datetimes) belong to
``paidonce.values``, content addressing to ``payloads``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import NoReturn, cast

import orjson

from paidonce_models.errors import InvalidInput
from paidonce_models.payloads.json_values import (
    MAX_DEPTH,
    JsonValue,
    is_plain,
    nests_deeper,
    plain_copy,
    too_deep_for_the_stack,
)

_OPTIONS = orjson.OPT_PASSTHROUGH_SUBCLASS | orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME
_SORTED = _OPTIONS | orjson.OPT_SORT_KEYS
_SIXTY_FOUR_BITS = 2.0**63
"""Integers of smaller magnitude are read exactly by orjson."""


def encode_json(value: object, where: str = "value") -> bytes:
    """Compact UTF-8 JSON with the keys in their order; ``where`` names the value in errors.

    Raises ``NotSerialisable`` with the path, the type and a remedy.
    """
    return _encode(value, where, _OPTIONS)


def canonical_sha256(value: object, where: str = "value") -> str:
    """SHA-256 (hex) of the form with sorted keys: equal for inputs that differ only in key order."""
    return hashlib.sha256(_encode(value, where, _SORTED)).hexdigest()


def decode_json(data: bytes) -> JsonValue:
    """The value written in ``data``; integers of any size come back as integers.

    Raises ``InvalidInput`` if ``data`` is not JSON (NaN and Infinity are not).
    """
    try:
        value = cast(JsonValue, orjson.loads(data))
    except orjson.JSONDecodeError as error:
        return _decode_slowly(data, error)
    return _decode_slowly(data, None) if _has_large_float(value) else value


def _encode(value: object, where: str, options: int) -> bytes:
    # Checked first: of a value that contains itself, or is too large, orjson would produce gigabytes or crash.
    if is_plain(value, where):
        try:
            return orjson.dumps(value, option=options)
        except TypeError:
            pass
    try:
        return _write(plain_copy(value, where), options)
    except RecursionError:
        raise too_deep_for_the_stack(where) from None


def _write(value: JsonValue, options: int) -> bytes:
    """The bytes of any plain value, with every part written as it would be on its own.

    The caches of list elements depend on that: a large integer beside an element must not
    change how the element is written.
    """
    try:
        return orjson.dumps(value, option=options)
    except TypeError:
        pass
    if isinstance(value, dict):
        items = sorted(value.items()) if options == _SORTED else value.items()
        members = [_write(key, options) + b":" + _write(member, options) for key, member in items]
        return b"{" + b",".join(members) + b"}"
    if isinstance(value, list):
        return b"[" + b",".join(_write(member, options) for member in value) + b"]"
    # A large integer, or a text with lone surrogates: its \u escapes keep the bytes valid UTF-8.
    return json.dumps(value).encode("ascii")


def _decode_slowly(data: bytes, error: orjson.JSONDecodeError | None) -> JsonValue:
    try:
        value = json.loads(data, parse_constant=_refuse_constant)
        if nests_deeper(value, MAX_DEPTH):
            raise RecursionError
        return cast(JsonValue, value)
    except (ValueError, RecursionError) as slow_error:
        reason = str(error if error is not None else slow_error)
        if isinstance(slow_error, RecursionError):
            reason = f"nested deeper than {MAX_DEPTH} levels; flatten it"
        raise InvalidInput(f"not valid JSON: {reason}") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _has_large_float(value: JsonValue) -> bool:
    """Whether a float is so large that it may be an integer orjson rounded."""
    pending: list[Iterable[JsonValue]] = [(value,)]
    while pending:
        members = pending.pop()
        kinds = set(map(type, members))
        if float in kinds and any(type(m) is float and abs(m) >= _SIXTY_FOUR_BITS for m in members):
            return True
        if dict in kinds or list in kinds:
            for member in members:
                if type(member) is dict:
                    pending.append(member.values())
                elif type(member) is list:
                    pending.append(member)
    return False
