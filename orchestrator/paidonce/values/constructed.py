"""Stores values that their own types would refuse: JSON, and beside it the types that JSON does not express.

Owns the decision which values have such a form (``stored_form``): those that are what their annotation says (a model of
that class, whatever its fields hold) and are read back unchanged. Providers' clients create responses without
validation, so they may contain a tier, a stop reason or a field that was added later; refusing such a response after it
was paid for helps no one.

Data from outside is never read in this form: that would bypass the validators of an agent's input.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import types
import typing
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Union, get_args, get_origin

import typing_extensions
from pydantic import BaseModel

from paidonce.values.annotations import plain_checker
from paidonce.values.rendering import fields_of, render
from paidonce.values.revival import revive
from paidonce.values.stored_form import TYPES, VALUE
from paidonce.values.survival import first_difference
from paidonce_models.errors import InvalidInput
from paidonce_models.payloads.encoding import encode_json


def encode_constructed(value: object, annotation: object, where: str) -> bytes | None:
    """The bytes of a value in this form; ``None`` if it has none because it would not be read back unchanged."""
    if not conforms(value, annotation):
        return None
    rendering = render(value)
    if rendering.text_only:
        return None
    try:
        difference = first_difference(value, revive(rendering.value, rendering.types, classes_of(annotation)), where)
        if difference is not None:
            return None
        return encode_json({VALUE: rendering.value, TYPES: rendering.types}, where)
    except (InvalidInput, RecursionError):
        return None


def decode_constructed(stored: Mapping[str, Any], annotation: object, where: str) -> object:
    """A fresh value. Raises ``InvalidInput`` if it can no longer be created, or no longer fits the annotation."""
    try:
        value = revive(stored[VALUE], stored[TYPES], classes_of(annotation))
    except InvalidInput as error:
        raise InvalidInput(f"{where} no longer fits the code: {error.message}") from error
    if not conforms(value, annotation):
        raise InvalidInput(f"{where}, a {type(value).__qualname__}, no longer fits its annotation {annotation!r:.200}")
    return value


def conforms(value: object, annotation: object) -> bool:
    """Whether a value is what its annotation says, down to the classes of objects; their contents are not checked."""
    checker = plain_checker(annotation)
    if checker is not None:
        return checker(value) is None
    if isinstance(annotation, typing.NewType):
        return conforms(value, annotation.__supertype__)
    if type(annotation).__name__ == "TypeAliasType":
        return conforms(value, getattr(annotation, "__value__", object))
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is typing.Annotated:
        # For a model, metadata distinguish it from others; for a number they are a promise about its value.
        return _holds_objects(arguments[0]) and conforms(value, arguments[0])
    if origin is Union or origin is types.UnionType:
        return any(conforms(value, each) for each in arguments)
    if isinstance(annotation, type) and origin is None:
        metadata = getattr(annotation, "__pydantic_generic_metadata__", None) or {}
        return isinstance(value, metadata.get("origin") or annotation)
    return _conforms_to_generic(value, origin, arguments)


def _conforms_to_generic(value: object, origin: object, arguments: tuple[object, ...]) -> bool:
    if not isinstance(origin, type) or typing_extensions.is_typeddict(origin) or not isinstance(value, origin):
        return False
    if isinstance(value, Mapping) and len(arguments) == 2:
        return all(conforms(key, arguments[0]) and conforms(each, arguments[1]) for key, each in value.items())
    if isinstance(value, tuple) and arguments[1:2] != (Ellipsis,):
        return len(value) == len(arguments) and all(map(conforms, value, arguments))
    if isinstance(value, collections.abc.Collection) and not isinstance(value, (str, bytes, BaseModel)) and arguments:
        return all(conforms(each, arguments[0]) for each in value)
    return True  # a generic class of the user's


def _holds_objects(annotation: object) -> bool:
    if get_origin(annotation) in (Union, types.UnionType, typing.Annotated):
        return all(_holds_objects(each) for each in get_args(annotation)[:1])
    cls = get_origin(annotation) or annotation
    return isinstance(cls, type) and (issubclass(cls, BaseModel) or dataclasses.is_dataclass(cls))


def classes_of(annotation: object) -> tuple[type, ...]:
    """The classes in an annotation, including those defined inside functions, which cannot be found by name."""
    try:
        return _classes_of(annotation)
    except TypeError:  # unhashable metadata
        return _walk(annotation)


@lru_cache(maxsize=1024)
def _classes_of(annotation: object) -> tuple[type, ...]:
    return _walk(annotation)


def _walk(annotation: object) -> tuple[type, ...]:
    found: dict[type, None] = {}
    seen: set[int] = set()
    pending: list[object] = [annotation]
    while pending and len(seen) < 20_000:
        each = pending.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, type) and get_origin(each) is None:
            found[each] = None
            if issubclass(each, BaseModel):
                pending += [field.annotation for field in fields_of(each).values()]
            elif dataclasses.is_dataclass(each):
                pending += _field_annotations(each)
        if type(each).__name__ == "TypeAliasType":
            pending.append(getattr(each, "__value__", None))
        pending += [get_origin(each), *get_args(each)]
    return tuple(found)


def _field_annotations(cls: type) -> list[object]:
    try:
        return list(typing.get_type_hints(cls, include_extras=True).values())
    except Exception:  # noqa: BLE001 - names that only a type checker sees; those classes are found by name
        return []
