"""Recreates the value of a rendering, without validation, as a provider's client creates its responses.

Pure data is filled into the classes that the rendering names (``class_names`` decides which are allowed); no
constructor, validator or ``__post_init__`` is run. What does not fit is ``InvalidInput``, never another error.
"""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import Enum
from pathlib import PurePath
from typing import Any, cast
from zoneinfo import ZoneInfo

from pydantic import BaseModel, RootModel, TypeAdapter
from pydantic_core import PydanticUndefined

from paidonce.values.class_names import find_class
from paidonce.values.rendering import SCALARS, Types, fields_of
from paidonce_models.errors import InvalidInput, PaidonceError
from paidonce_models.payloads.json_values import JsonValue

_SEQUENCES: dict[object, type] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}


def revive(value: JsonValue, types: Types, known: Sequence[type] = ()) -> object:
    """The value that was rendered; ``known`` are the classes in the annotation. Raises ``InvalidInput``."""
    try:
        return _Reviver(known).node(value, types)
    except PaidonceError:
        raise
    except Exception as error:
        raise InvalidInput(
            f"a stored value cannot be recreated by its class: {type(error).__name__}; keep its fields as they were"
        ) from error


class _Reviver:
    def __init__(self, known: Sequence[type]) -> None:
        self._known = known

    def node(self, value: Any, types: Any) -> Any:
        if types is None:
            return value
        kind, inner = types["t"], types.get("m", {})
        if kind == "dict":
            return self._dict(value, types, inner)
        if kind in _SEQUENCES:
            return _SEQUENCES[kind](self._items(value, inner))
        if kind == "model":
            return self._model(value, types, inner)
        if kind == "dataclass":
            return self._dataclass(value, types, inner)
        if kind == "namedtuple":
            cls = self._class(types, tuple)
            return tuple.__new__(cls, self._items(value, inner))
        if kind == "enum":
            return self._enum(value, types)
        return self._single(kind, value, types)

    def _single(self, kind: object, value: Any, types: Any) -> Any:
        if kind == "scalar":
            cls = self._class(types, *SCALARS)
            if cls is datetime:  # pydantic has its own time zones
                moment = datetime.fromisoformat(value)
                return moment.astimezone(ZoneInfo(types["z"])) if "z" in types else moment
            if issubclass(cls, PurePath):
                return cls(value)
            return TypeAdapter(cls).validate_python(value)
        if kind == "bytes":
            return base64.b64decode(value)
        if kind == "bytearray":
            return bytearray(base64.b64decode(value))
        if kind == "int":
            return int(value, 16)
        if kind == "float":
            return float(value)
        raise InvalidInput("a part of a stored value is only human-readable text")

    def _class(self, types: Any, *kinds: type) -> Any:
        cls = find_class(types["c"], self._known)
        if not issubclass(cls, kinds):
            raise InvalidInput(f"the class {cls.__qualname__} of a stored value is now of another kind")
        return cls

    def _items(self, value: list[Any], inner: Mapping[str, Any]) -> list[Any]:
        return [self.node(each, inner.get(str(index))) for index, each in enumerate(value)]

    def _members(self, value: Mapping[str, Any], inner: Mapping[str, Any]) -> dict[str, Any]:
        return {name: self.node(each, inner.get(name)) for name, each in value.items()}

    def _dict(self, value: Mapping[str, Any], types: Any, inner: Mapping[str, Any]) -> dict[Any, Any]:
        members = self._members(value, inner)
        if "keys" not in types:
            return members
        keys = [self.node(natural, kind) for natural, kind in types["keys"]]
        return dict(zip(keys, members.values(), strict=True))

    def _model(self, value: Any, types: Any, inner: Mapping[str, Any]) -> BaseModel:
        cls = self._class(types, BaseModel)
        members = self._members({"root": value} if issubclass(cls, RootModel) else value, inner)
        fields = fields_of(cls)
        unset = set(types.get("unset", ()))
        extra = {name: each for name, each in members.items() if name not in fields}
        defaults = {name: each.get_default() for name, each in cls.__private_attributes__.items()}
        private = {name: each for name, each in defaults.items() if each is not PydanticUndefined}
        if "private" in types:
            private |= self._members(types["private"]["v"], types["private"]["m"])
        for name, each in fields.items():
            if each.exclude and name not in members:
                members[name] = each.get_default(call_default_factory=True)
                unset.add(name)
        if extra and cls.model_config.get("extra") != "allow":
            raise InvalidInput(f"the class {cls.__qualname__} of a stored value takes no further fields")
        model = cls.__new__(cls)
        BaseModel.__setstate__(
            model,
            {
                "__dict__": {name: each for name, each in members.items() if name in fields},
                "__pydantic_extra__": extra if cls.model_config.get("extra") == "allow" else None,
                "__pydantic_fields_set__": {name for name in members if name not in unset},
                "__pydantic_private__": private if cls.__private_attributes__ else None,
            },
        )
        return cast(BaseModel, model)

    def _dataclass(self, value: Mapping[str, Any], types: Any, inner: Mapping[str, Any]) -> Any:
        cls = find_class(types["c"], self._known)
        if not dataclasses.is_dataclass(cls):
            raise InvalidInput(f"the class {cls.__qualname__} of a stored value is no longer a dataclass")
        made = object.__new__(cls)
        private = types.get("private", {"v": {}, "m": {}})
        for name, each in (self._members(value, inner) | self._members(private["v"], private["m"])).items():
            object.__setattr__(made, name, each)  # bypasses `frozen` and `__setattr__`
        return made

    def _enum(self, value: Any, types: Any) -> Enum:
        cls = self._class(types, Enum)
        if "n" in types:
            return cast(Enum, cls[types["n"]])
        return cast(Enum, cls(self.node(value, types.get("v"))))
