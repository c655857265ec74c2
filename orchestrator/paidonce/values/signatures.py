"""Identifies the signature of a function across processes and machines.

Owns the hash by which workers compare the shape of a step or an agent that they hold. It
covers names, kinds, annotations with the fields of their types, and whether there is a
default; not the body, and nothing that differs between two processes of the same code
(addresses, hash seeds, order of sets).
"""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Callable
from types import CellType, CodeType
from typing import Final, cast

from pydantic import TypeAdapter
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticUserError

from paidonce.values.annotations import describe, plain_checker
from paidonce.values.parameters import Parameters
from paidonce_models.payloads.encoding import canonical_sha256

MOST_WRAPPED: Final = 100
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def signature_hash(function: Callable[..., object] | Parameters) -> str:
    """SHA-256 (hex) of the signature; equal in every process that holds the same declaration."""
    parameters = function if isinstance(function, Parameters) else Parameters.for_function(function)
    hints = parameters.hints
    shape = [
        [
            parameter.name,
            parameter.kind.name,
            parameter.default is not inspect.Parameter.empty,
            *_annotation_shape(hints.get(parameter.name, object)),
        ]
        for parameter in parameters.signature.parameters.values()
    ]
    return canonical_sha256([shape, _annotation_shape(hints.get("return", object))])


def _annotation_shape(annotation: object) -> list[object]:
    text = _ADDRESS.sub("", describe(annotation))
    if plain_checker(annotation) is not None:
        return [text]
    try:
        schema = TypeAdapter(cast("type[object]", annotation)).json_schema(mode="serialization")
        return [text, canonical_sha256(_without_defaults(schema))]
    except (PydanticUserError, PydanticInvalidForJsonSchema, TypeError, ValueError):
        # No JSON schema (a custom type): use its name instead.
        return [text, hashlib.sha256(text.encode()).hexdigest()]


def _without_defaults(schema: object) -> object:
    """Defaults may be sets, which each process writes in another order; that a default exists is enough."""
    if isinstance(schema, dict):
        return {key: True if key == "default" else _without_defaults(member) for key, member in schema.items()}
    if isinstance(schema, list):
        return [_without_defaults(member) for member in schema]
    return schema


def result_shape(parameters: Parameters) -> str:
    """SHA-256 (hex) of the annotated result with the fields of its types: changes if the result type changes."""
    return canonical_sha256(_annotation_shape(parameters.hints.get("return", object)))


def code_hash(function: Callable[..., object]) -> str:
    """SHA-256 (hex) of what a function does, including the functions that decorators have put around it."""
    digest = hashlib.sha256()
    pending: list[object] = [function]
    seen: set[int] = set()
    while pending and len(seen) < MOST_WRAPPED:
        each = pending.pop()
        code = getattr(each, "__code__", None)
        if not isinstance(code, CodeType) or id(each) in seen:
            continue
        seen.add(id(each))
        _add_code(digest.update, code)
        cells = getattr(each, "__closure__", None) or ()
        pending += [getattr(each, "__wrapped__", None), *(_content(cell) for cell in cells)]
    return digest.hexdigest()


def _content(cell: CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None


def _add_code(add: Callable[[bytes], object], code: CodeType) -> None:
    add(code.co_code)
    add(repr(code.co_names).encode())
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            _add_code(add, constant)
        elif not isinstance(constant, (frozenset, tuple)):  # a set has another order in each process
            add(repr(constant).encode())
        else:
            add(repr(sorted(map(repr, constant))).encode())
