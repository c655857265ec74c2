"""Whether a value came back whole from its encoding.

Owns the comparison of a value with what was read back. The types' own equality
decides first; only where it says no (or cannot say, as for dataclasses without
``eq``) the two are walked side by side to find what differs. Private attributes and
the set of fields that were given explicitly are not data and are not compared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from paidonce_models.json_values import type_name


def first_difference(value: object, decoded: object, path: str) -> str | None:
    """What differs first, in words, or ``None`` when nothing was lost."""
    if type(value) is type(decoded) and _equal(value, decoded):
        return None
    if isinstance(value, BaseModel) and type(value) is type(decoded) and isinstance(decoded, BaseModel):
        return _first_of(_model_data(value), _model_data(decoded), path)
    if dataclasses.is_dataclass(value) and not isinstance(value, type) and type(value) is type(decoded):
        return _first_of(_dataclass_data(value), _dataclass_data(decoded), path)
    if isinstance(value, dict) and isinstance(decoded, dict):
        return _first_of(value, decoded, path)
    if isinstance(value, (list, tuple)) and isinstance(decoded, (list, tuple)):
        return _first_of(dict(enumerate(value)), dict(enumerate(decoded)), path)
    if _equal(value, decoded):
        # A subclass of a JSON type comes back as that type.
        return None
    if type(value) is type(decoded) and type(value).__eq__ is object.__eq__:
        return None
    if type(value) is type(decoded):
        return f"{path}, a {type_name(value)}, is not equal to itself after the round trip"
    return f"{path} is a {type_name(value)} and comes back as a {type_name(decoded)}"


def _equal(value: object, decoded: object) -> bool:
    try:
        return bool(value == decoded)
    except Exception:  # noqa: BLE001 - `__eq__` is user code; an array, say, whose comparison is no yes or no
        return False


def _model_data(model: BaseModel) -> dict[str, object]:
    return dict(model.__dict__ | (model.__pydantic_extra__ or {}))


def _dataclass_data(value: object) -> dict[str, object]:
    fields = dataclasses.fields(value)  # type: ignore[arg-type]  # the caller has checked is_dataclass
    return {field.name: getattr(value, field.name, None) for field in fields}


def _first_of(value: Mapping[Any, object], decoded: Mapping[Any, object], path: str) -> str | None:
    for key, member in value.items():
        if key not in decoded:
            return f"{path}[{key!r}] is lost"
        difference = first_difference(member, decoded[key], f"{path}[{key!r}]")
        if difference is not None:
            return difference
    added = [key for key in decoded if key not in value]
    return f"{path}[{added[0]!r}] is added" if added else None
