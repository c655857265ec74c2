"""Answers of providers as JSON, made from the SDKs' own classes, with what those do not know planted everywhere."""

from __future__ import annotations

import inspect
import random
import types
import typing
from collections.abc import Iterator
from datetime import date, datetime
from enum import Enum
from types import ModuleType
from typing import Any, Literal, Union, get_args, get_origin

import typing_extensions
from pydantic import BaseModel

UNKNOWN = "added_by_the_provider_since"
DEEPEST = 6


def models_in(module: ModuleType) -> Iterator[type[BaseModel]]:
    """The response classes that a package of types exports."""
    for _, each in sorted(vars(module).items()):
        if inspect.isclass(each) and issubclass(each, BaseModel) and each is not BaseModel:
            yield each


class AnswerMaker:
    """Makes the JSON of answers. ``oddities`` is how many of ten values are none that the class knows."""

    def __init__(self, seed: int, oddities: int) -> None:
        self._random = random.Random(seed)
        self._oddities = oddities

    def answer(self, cls: type[BaseModel], depth: int = 0) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for name, field in cls.model_fields.items():
            if self._is_odd() and self._random.random() < 0.3:
                continue  # a field that is missing
            made[field.alias or name] = self.value(field.annotation, depth + 1)
        if self._is_odd():
            made["added_since"] = {"deep": [1, None, UNKNOWN]}
        return made

    def _is_odd(self) -> bool:
        return self._random.randrange(10) < self._oddities

    def value(self, annotation: Any, depth: int) -> Any:
        origin, arguments = get_origin(annotation), get_args(annotation)
        if type(annotation).__name__ == "TypeAliasType":
            return self.value(annotation.__value__, depth)
        if origin is typing.Annotated:
            return self.value(arguments[0], depth)
        if origin in (Union, types.UnionType):
            fitting = [each for each in arguments if each is not type(None)] if depth < DEEPEST else [type(None)]
            if type(None) not in arguments:
                fitting = list(arguments)
            return self.value(self._random.choice(fitting), depth)
        if annotation is type(None) or annotation is None:
            return None
        if origin is Literal:
            return UNKNOWN if self._is_odd() else self._random.choice(arguments)
        if isinstance(annotation, typing.TypeVar):
            return None
        return self._container(annotation, origin, arguments, depth)

    def _container(self, annotation: Any, origin: Any, arguments: tuple[Any, ...], depth: int) -> Any:
        if origin in (list, typing.Iterable) or annotation is list:
            inner = arguments[0] if arguments else str
            return [self.value(inner, depth + 1)] if depth < DEEPEST else []
        if origin is dict or annotation is dict:
            return {"key": self.value(arguments[1], depth + 1) if arguments else 1}
        cls = origin or annotation
        if not inspect.isclass(cls) or typing_extensions.is_typeddict(cls):
            return {"anything": 1}
        if issubclass(cls, BaseModel):
            return self.answer(cls, depth) if depth < DEEPEST + 2 else {}
        if issubclass(cls, Enum):
            return UNKNOWN.upper() if self._is_odd() or not list(cls) else self._random.choice(list(cls)).value
        if self._is_odd():
            return {"of": ["another", "kind"]}
        simple: dict[Any, Any] = {
            str: "text",
            int: 7,
            float: 0.5,
            bool: True,
            bytes: "AAEC",
            object: {"any": [1]},
            datetime: "2026-01-02T03:04:05Z",
            date: "2026-01-02",
        }
        return simple.get(cls, "text")
