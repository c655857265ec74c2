"""Whether a value survived its encoding unchanged.

Owns the comparison of a value with what was read back. Models, dataclasses and containers are compared field by field:
the types' own equality may leave fields out (``field(compare=False)``, private attributes), so it decides only for
single values. The set of explicitly given fields is not data, nor are private attributes without data (a lock, a
client).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from enum import Enum
from typing import Any

from pydantic import BaseModel

from paidonce.values.rendering import data_of_dataclass, data_of_model, private_of, render
from paidonce_models.payloads.json_values import type_name


def first_difference(value: object, decoded: object, path: str) -> str | None:
    """A description of the first difference, or ``None`` if nothing was lost."""
    if value is decoded:
        return None
    same_type = type(value) is type(decoded)
    if same_type and isinstance(value, BaseModel) and isinstance(decoded, BaseModel):
        return _first_of(data_of_model(value), data_of_model(decoded), path) or _private(value, decoded, path)
    if same_type and dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _first_of(data_of_dataclass(value), data_of_dataclass(decoded), path) or _private(value, decoded, path)
    if isinstance(value, dict) and isinstance(decoded, dict):
        return _first_of(value, decoded, path)
    if isinstance(value, (list, tuple)) and isinstance(decoded, (list, tuple)):
        if hasattr(value, "_fields") and not same_type:
            return _changed(value, decoded, path)
        return _first_of(dict(enumerate(value)), dict(enumerate(decoded)), path)
    if _has_other_meaning(value, decoded):
        return _changed(value, decoded, path)
    if _equal(value, decoded):
        # A subclass of a JSON type is read back as that type.
        return None
    if same_type and (type(value).__eq__ is object.__eq__ or (value != value and decoded != decoded)):
        return None
    if same_type:
        return f"{path}, a {type_name(value)}, is not equal to itself after the round trip"
    return _changed(value, decoded, path)


def _changed(value: object, decoded: object, path: str) -> str:
    return f"{path} is a {type_name(value)} and comes back as a {type_name(decoded)}"


def _has_other_meaning(value: object, decoded: object) -> bool:
    """Equal to Python but not to an author: ``True`` and 1, a member of an enumeration and its value."""
    return any(isinstance(value, kind) is not isinstance(decoded, kind) for kind in (bool, Enum, set, frozenset))


def _equal(value: object, decoded: object) -> bool:
    try:
        return bool(value == decoded)
    except Exception:  # noqa: BLE001 - `__eq__` is user code; an array, say, whose comparison is no yes or no
        return False


def _private(value: object, decoded: object, path: str) -> str | None:
    other = private_of(decoded)
    for name, each in private_of(value).items():
        if name in other and _equal(each, other[name]):
            continue
        if not render(each).text_only:
            return f"{path}.{name}, a private attribute, is lost"
    return None


def _first_of(value: Mapping[Any, object], decoded: Mapping[Any, object], path: str) -> str | None:
    for key, member in value.items():
        if key not in decoded:
            return f"{path}[{key!r}] is lost"
        difference = first_difference(member, decoded[key], f"{path}[{key!r}]")
        if difference is not None:
            return difference
    added = [key for key in decoded if key not in value]
    return f"{path}[{added[0]!r}] is added" if added else None
