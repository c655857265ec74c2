"""Which annotations promise only JSON, and whether a value keeps that promise.

Owns the distinction of two kinds of slots. A *plain* slot is one whose annotation is
missing, ``Any``, or consists of JSON primitives, lists, ``dict[str, ...]``, literals,
unions and TypedDicts: its values are written and read as JSON and nothing else. Every
other annotation is a *typed* slot, handled by pydantic.

A TypedDict is opaque here: a dict. Validating one with pydantic turns the ``Iterable``
fields of openai's message types into one-shot iterators that no longer serialise, and
refuses the extra keys that providers add.
"""

from __future__ import annotations

import collections.abc
import types
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

import typing_extensions
from pydantic import JsonValue as PydanticJsonValue


@dataclass(frozen=True, kw_only=True, slots=True)
class Mismatch:
    """The first place where a value does not match its annotation."""

    path: str
    expected: str
    found: object


Checker = Callable[[object], Mismatch | None]
"""Returns ``None`` if the value fits."""

_LISTS = (
    list,
    collections.abc.Sequence,
    collections.abc.MutableSequence,
    collections.abc.Iterable,
    collections.abc.Collection,
)
_DICTS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)
_PRIMITIVES: dict[object, tuple[type, ...]] = {
    str: (str,),
    bool: (bool,),
    int: (int,),
    float: (float, int),
    type(None): (type(None),),
    None: (type(None),),
}


def plain_checker(annotation: object) -> Checker | None:
    """A check for values of a plain slot, or ``None`` if the annotation is typed."""
    return _compile(annotation, ())


def describe(annotation: object) -> str:
    """The annotation as an author would write it."""
    if annotation is None or annotation is type(None):
        return "None"
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return annotation.__qualname__
    return str(annotation).replace("typing.", "").replace("typing_extensions.", "")


def _compile(annotation: object, open_aliases: tuple[object, ...]) -> Checker | None:
    if annotation is Any or annotation is object or annotation is PydanticJsonValue:
        return _accept
    if annotation in (typing.NoReturn, typing.Never) or annotation in open_aliases:
        return _accept
    if annotation is None or (isinstance(annotation, type) and annotation in _PRIMITIVES):
        return _primitive(annotation)
    if typing_extensions.is_typeddict(annotation):
        return _instance_of((dict,), describe(annotation))
    if isinstance(annotation, typing.NewType):
        return _compile(annotation.__supertype__, open_aliases)
    if isinstance(annotation, typing.TypeVar):
        bound = annotation.__bound__
        return _accept if bound is None else _compile(bound, open_aliases)
    if type(annotation).__name__ == "TypeAliasType":
        # From typing (3.12) or typing_extensions, which are two classes.
        return _compile(getattr(annotation, "__value__", object), (*open_aliases, annotation))
    return _compile_generic(annotation, open_aliases)


def _compile_generic(annotation: object, open_aliases: tuple[object, ...]) -> Checker | None:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is typing.Annotated:
        # Constraints are pydantic's; documentation strings have no effect.
        documented = all(isinstance(metadata, str) for metadata in arguments[1:])
        return _compile(arguments[0], open_aliases) if documented else None
    if origin is Literal:
        return _literal(arguments, describe(annotation))
    if origin is Union or origin is types.UnionType:
        members = [_compile(argument, open_aliases) for argument in arguments]
        complete = [member for member in members if member is not None]
        return _union(complete, describe(annotation)) if len(complete) == len(members) else None
    if typing_extensions.is_typeddict(origin):
        return _instance_of((dict,), describe(annotation))
    if annotation in _LISTS or origin in _LISTS:
        member = _compile(arguments[0], open_aliases) if arguments else _accept
        return None if member is None else _list_of(member, describe(annotation))
    if annotation in _DICTS or origin in _DICTS:
        if arguments and not _is_text_key(arguments[0]):
            return None
        member = _compile(arguments[1], open_aliases) if arguments else _accept
        return None if member is None else _dict_of(member, describe(annotation))
    return None


def _is_text_key(annotation: object) -> bool:
    if get_origin(annotation) is Literal:
        return all(type(option) is str for option in get_args(annotation))
    if isinstance(annotation, typing.NewType):
        return _is_text_key(annotation.__supertype__)
    return annotation is str or annotation is Any


def _accept(value: object) -> Mismatch | None:
    return None


def _primitive(annotation: object) -> Checker:
    return _instance_of(_PRIMITIVES[annotation], describe(annotation))


def _instance_of(kinds: tuple[type, ...], expected: str) -> Checker:
    def check(value: object) -> Mismatch | None:
        return None if isinstance(value, kinds) else Mismatch(path="", expected=expected, found=value)

    return check


def _literal(options: tuple[object, ...], expected: str) -> Checker | None:
    if not all(type(option) in (str, int, bool, type(None)) for option in options):
        return None
    known = {(type(option), option) for option in options}

    def check(value: object) -> Mismatch | None:
        fits = isinstance(value, (str, int, bool, type(None))) and (type(value), value) in known
        return None if fits else Mismatch(path="", expected=expected, found=value)

    return check


def _union(members: list[Checker], expected: str) -> Checker:
    if _accept in members:
        return _accept

    def check(value: object) -> Mismatch | None:
        for member in members:
            if member(value) is None:
                return None
        return Mismatch(path="", expected=expected, found=value)

    return check


def _list_of(member: Checker, expected: str) -> Checker:
    def check(value: object) -> Mismatch | None:
        if not isinstance(value, (list, tuple)):
            return Mismatch(path="", expected=expected, found=value)
        return None if member is _accept else _first_mismatch(member, enumerate(value))

    return check


def _dict_of(member: Checker, expected: str) -> Checker:
    def check(value: object) -> Mismatch | None:
        if not isinstance(value, dict):
            return Mismatch(path="", expected=expected, found=value)
        return None if member is _accept else _first_mismatch(member, value.items())

    return check


def _first_mismatch(member: Checker, items: Iterable[tuple[object, object]]) -> Mismatch | None:
    for key, value in items:
        mismatch = member(value)
        if mismatch is not None:
            return Mismatch(path=f"[{key!r}]{mismatch.path}", expected=mismatch.expected, found=mismatch.found)
    return None
