"""What plain JSON can hold: the type, the check, the slow walk that explains a refusal, fresh copies.

Owns the decision which Python values are accepted where an annotation promises only
JSON. ``encoding`` calls ``is_plain`` first (fast, returns only yes or no) and
``plain_copy`` if the result is no: the walk either finds a value that is acceptable
after all (a ``str`` subclass, a very large integer) or raises ``NotSerialisable`` with
the path, the type and a remedy.

Must never convert a value into one that its reader would notice: a tuple may be read
back as a list, and a subclass of a JSON type as that type; everything else is refused.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from enum import Enum
from typing import TypeAlias, cast

from paidonce_models.errors import NotSerialisable

JsonValue: TypeAlias = "bool | int | float | str | list[JsonValue] | dict[str, JsonValue] | None"

MAX_DEPTH = 254
"""Accepted levels of nesting; orjson 3.13 refuses the 255th."""

MAX_INTEGER_BITS = 14_000
"""CPython refuses to turn integers of more than 4,300 decimal digits into text (sys.set_int_max_str_digits)."""

MOST_MEMBERS = 50_000_000
"""Values within a value. JSON of that size has 100 MB and more; but a few lists that contain each other many times have
as many in a kilobyte of memory, and orjson would expand them until memory runs out."""

_LEAVES = frozenset({str, int, bool, type(None)})
_TAKEN = frozenset({str, int, bool, type(None), float, list, tuple, dict})
_KEYS = frozenset({str})
_ANNOTATE = "annotate the parameter or result with that type"


def is_plain(value: object, where: str = "value") -> bool:
    """Whether ``value`` consists of exact JSON types (and tuples) with finite floats, and nests no deeper than allowed.

    Terminates for any value, also with cycles, which nest without end. Runs at C speed over flat members: about 20 ns
    each. Raises ``NotSerialisable`` if the value is too large to be written.
    """
    kind = type(value)
    if kind in _LEAVES:
        return True
    pending: list[Collection[object]] = [(value,)]
    depths = [0]
    left = MOST_MEMBERS
    while pending:
        members = pending.pop()
        depth = depths.pop()
        left -= len(members)
        kinds = set(map(type, members))
        if kinds <= _LEAVES:
            continue
        if left < 0:
            raise NotSerialisable(
                f"{where} holds more than {MOST_MEMBERS:,} values, counting each as often as it "
                "occurs; pass less, or store it elsewhere and pass its address"
            )
        if not kinds <= _TAKEN:
            return False
        for member in members:
            kind = type(member)
            if kind is dict:
                mapping = cast("dict[object, object]", member)
                if not _KEYS.issuperset(map(type, mapping)):
                    return False
                if depth == MAX_DEPTH:
                    return False
                pending.append(mapping.values())
                depths.append(depth + 1)
            elif kind is list or kind is tuple:
                if depth == MAX_DEPTH:
                    return False
                pending.append(cast("list[object]", member))
                depths.append(depth + 1)
            elif kind is float and not math.isfinite(cast(float, member)):
                return False
    return True


def copy_json(value: JsonValue) -> JsonValue:
    """A copy with new containers; texts and numbers, which are immutable, are shared."""
    if type(value) is dict:
        fresh = value.copy()
        for key, member in value.items():
            if type(member) is dict or type(member) is list:
                fresh[key] = copy_json(member)
        return fresh
    if type(value) is list:
        return [copy_json(member) if type(member) is dict or type(member) is list else member for member in value]
    return value


def plain_copy(value: object, where: str) -> JsonValue:
    """``value`` rebuilt from exact JSON types; ``where`` names the value in messages.

    Raises ``NotSerialisable`` naming the path below ``where``.
    """
    try:
        return _plain_copy(value, where, {})
    except RecursionError:
        raise too_deep_for_the_stack(where) from None


def too_deep_for_the_stack(where: str) -> NotSerialisable:
    """The error for a value whose nesting, on top of the current call stack, is too deep for Python."""
    return NotSerialisable(
        f"{where} is nested too deep for the program's call stack (the limit is {MAX_DEPTH} levels); flatten it"
    )


def _plain_copy(value: object, path: str, open_containers: dict[int, str]) -> JsonValue:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Enum):
        raise _refusal(value, path, f"{_ANNOTATE}, or use its .value")
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        if value.bit_length() > MAX_INTEGER_BITS:
            raise _refusal(value, path, f"it has more than {MAX_INTEGER_BITS} bits; pass it as text")
        return int.__int__(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise NotSerialisable(f"{path} is {float.__repr__(value)}, which JSON does not have; use None or a text")
        return float.__float__(value)
    if not isinstance(value, (dict, list, tuple)):
        raise _refusal(value, path, _way_out(value))
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        raise _refusal(value, path, f"{_ANNOTATE}, or pass value._asdict()")
    if id(value) in open_containers:
        raise NotSerialisable(f"{path} contains itself (it is also {open_containers[id(value)]}); break the cycle")
    if len(open_containers) >= MAX_DEPTH:
        raise NotSerialisable(f"{_shorten(path)} is nested deeper than {MAX_DEPTH} levels; flatten it")
    open_containers[id(value)] = _shorten(path)
    try:
        if isinstance(value, dict):
            return _copy_mapping(value, path, open_containers)
        return [_plain_copy(member, f"{path}[{index}]", open_containers) for index, member in enumerate(value)]
    finally:
        del open_containers[id(value)]


def _copy_mapping(value: dict[object, object], path: str, open_containers: dict[int, str]) -> JsonValue:
    fresh: dict[str, JsonValue] = {}
    for key, member in dict.items(value):
        if not isinstance(key, str) or isinstance(key, Enum):
            raise NotSerialisable(
                f"{path} has the key {_shorten(repr(key))} of type {type_name(key)}; JSON keys are text: "
                f"annotate it, as dict[{type(key).__name__}, ...], or use str(key)"
            )
        name = str.__str__(key)
        fresh[name] = _plain_copy(member, f"{path}[{name!r}]", open_containers)
    return fresh


def type_name(value: object) -> str:
    """The type's name as an author would write it, for example ``datetime.datetime``."""
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def nests_deeper(value: object, most: int) -> bool:
    """Whether lists and objects of a decoded JSON value are nested more than ``most`` levels deep.

    Python's own parser has no limit from 3.12 on, and its result may be too deep for everything else.
    """
    level: list[object] = [value]
    for _ in range(most):
        level = [
            member
            for each in level
            if isinstance(each, list | dict)
            for member in (each.values() if isinstance(each, dict) else each)
            if isinstance(member, list | dict)
        ]
        if not level:
            return False
    return any(level)


def shown(value: object, most: int = 80) -> str:
    """A value from outside as an error shows it: its beginning, or its type if Python cannot represent it.

    ``repr`` raises for integers of thousands of digits and for endless nesting, and a foreign type's own may raise
    anything.
    """
    if isinstance(value, str):
        return repr(value) if len(value) <= most else f"{value[:most]!r}…"
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - see above
        return f"a {type_name(value)}"
    return text if len(text) <= most else f"{text[:most]}…"


def _refusal(value: object, path: str, way_out: str) -> NotSerialisable:
    return NotSerialisable(f"{_shorten(path)} is of type {type_name(value)}, which plain JSON cannot hold; {way_out}")


def _way_out(value: object) -> str:
    module = type(value).__module__.partition(".")[0]
    if hasattr(value, "model_dump"):
        if module in {"openai", "anthropic", "litellm", "google", "mistralai", "groq", "cohere"}:
            return "pass value.model_dump(exclude_none=True)"
        return f'{_ANNOTATE}, or pass value.model_dump(mode="json")'
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return f"{_ANNOTATE}, or pass dataclasses.asdict(value)"
    if isinstance(value, (set, frozenset)):
        return f"{_ANNOTATE}, as set[str], or pass sorted(value)"
    if isinstance(value, (bytes, bytearray, memoryview)):
        return "annotate it as bytes, or pass base64 text"
    if module in {"datetime", "decimal", "uuid", "pathlib", "fractions", "ipaddress"}:
        return f"{_ANNOTATE}, or pass str(value)"
    return "use JSON types, or annotate a dataclass, a pydantic model or a TypedDict"


def _shorten(path: str, limit: int = 200) -> str:
    return path if len(path) <= limit else f"{path[: limit // 2]} ... {path[-limit // 2 :]}"
