"""Describes what is wrong with a written policy, one line per problem: place, what was found, what is allowed.

Owns the conversion of pydantic's errors to messages, for the file and for a decorator's keys. The caller supplies the
place of a key: a file has lines, a decorator has none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from paidonce.policies.file.yaml_text import KeyPath
from paidonce.policies.keys import CIRCUIT, KEYS, POLICY
from paidonce.policies.misspellings import nearest
from paidonce.policies.schema import MAPPING_TAG, PLANNED, SWITCH_TAG

PlaceOf = Callable[[KeyPath], str]

_FILE: Final = ("policies", "targets")
_ALLOWED_OUTSIDE: Final[Mapping[KeyPath, str]] = {
    (): "a mapping of policies and targets",
    ("policies",): "a mapping of names to policies",
    ("targets",): "a mapping of tools, patterns and providers to policies",
    ("policies", "*"): "a mapping",
    ("targets", "*"): "the name of a policy, or a mapping",
}
_SHOWN_CHARACTERS: Final = 60
_SHOWN_BITS: Final = 4_000
MOST_PROBLEMS: Final = 50
"""Maximum number of problems of one file that an error lists."""


def problems_in_file(error: ValidationError, place_of: PlaceOf, line_of: Callable[[KeyPath], int]) -> list[str]:
    """The problems of a whole file, in its order. ``place_of`` names a key's file, line and path."""
    found = sorted(error.errors(include_url=False), key=lambda each: line_of(_path(each)))
    return _told(found, 2, place_of)


def problems_in_keys(error: ValidationError, place_of: PlaceOf) -> list[str]:
    """The problems of separate keys, as in a decorator."""
    return _told(error.errors(include_url=False), 0, place_of)


def first_of(problems: list[str], count: int | None = None) -> list[str]:
    """As many as are worth reading, and how many more of ``count`` there are."""
    more = (len(problems) if count is None else count) - MOST_PROBLEMS
    return problems if more <= 0 else [*problems[:MOST_PROBLEMS], f"and {more:,} more; correct these first"]


def _told(found: list[ErrorDetails], outside: int, place_of: PlaceOf) -> list[str]:
    return first_of([_problem(each, outside, place_of) for each in found[:MOST_PROBLEMS]], len(found))


def shown(value: object) -> str:
    """A value for an error: short, in the file's notation."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    if isinstance(value, int) and value.bit_length() > _SHOWN_BITS:
        return "a number of hundreds of digits"
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


def _path(error: ErrorDetails) -> KeyPath:
    """The keys that lead to a problem, without pydantic's additions that distinguish forms."""
    return tuple(part for part in error["loc"] if part not in (MAPPING_TAG, SWITCH_TAG))


def _problem(error: ErrorDetails, outside: int, place_of: PlaceOf) -> str:
    """``outside`` is the number of keys that lead to a policy's own."""
    path = _path(error)
    if error["type"] == "extra_forbidden":
        return _unknown_key(str(path[-1]), path[:-1], outside, place_of)
    expected = _allowed(path, outside)
    if error["type"] == "value_error":  # one of our own parsers, whose message says more
        expected = error["msg"].removeprefix("Value error, ")
    found = shown(error["input"])
    return f"{place_of(path)}: found {found}, expected {expected}; correct it there"


def _unknown_key(name: str, parent: KeyPath, outside: int, place_of: PlaceOf) -> str:
    where = place_of((*parent, name))
    if name in PLANNED:
        return f"{where}: not yet: {PLANNED[name]} are planned and not built; remove the key"
    siblings = _siblings(parent, outside)
    meant = nearest(name, siblings) or ";"
    return f"{where}: there is no key {name!r:.80} here{meant} allowed are {', '.join(siblings)}"


def _siblings(parent: KeyPath, outside: int) -> list[str]:
    if len(parent) < outside:
        return list(_FILE)
    prefix = "".join(f"{key}." for key in parent[outside:])
    names = [path.removeprefix(prefix) for path in KEYS if path.startswith(prefix)]
    in_target = outside > 0 and parent[0] == "targets"
    return [name for name in names if "." not in name and (in_target or name not in (POLICY, CIRCUIT))]


def _allowed(path: KeyPath, outside: int) -> str:
    if len(path) <= outside:
        return _ALLOWED_OUTSIDE[path if len(path) < outside else (path[0], "*")]
    # For an entry of a list, what the list allows for its entries.
    return KEYS[".".join(key for key in path[outside:] if isinstance(key, str))].allowed
