"""The stored form of a value that its own type would refuse: ``{"$paidonce.value": JSON, "$paidonce.types": types}``.

Written by ``constructed``; readers without the code show the JSON in it.
"""

from __future__ import annotations

from typing import Final

from paidonce_models.payloads.json_values import JsonValue

VALUE: Final = "$paidonce.value"
TYPES: Final = "$paidonce.types"
PREFIX: Final = b'{"' + VALUE.encode() + b'":'
_NAMES: Final = {VALUE, TYPES}


def is_constructed(stored: object) -> bool:
    """Whether decoded JSON is of this form."""
    return isinstance(stored, dict) and stored.keys() == _NAMES


def natural_json(stored: JsonValue) -> JsonValue:
    """What a reader without the code shows of a stored value: its JSON, without the types beside it."""
    return stored[VALUE] if isinstance(stored, dict) and is_constructed(stored) else stored
