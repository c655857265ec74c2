"""A value as JSON, beside what JSON cannot express of it: classes, tuples, dates, which fields were set.

Owns the *rendering* of any Python value: its natural JSON, as its own dump would write it; a sparse tree of *types*,
from which ``revival`` recreates the same value without validation; and the places that could be kept only as text,
which make it a record for people. Objects are read by their fields, never through their validators or serializers: a
provider's client creates its responses without validation, so they may hold what those would refuse.

Bounded; terminates for any value, and never raises. Fields that an author excludes from dumps and pydantic's secrets
are not written.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import math
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import PurePath
from types import ModuleType
from typing import Any, Final
from uuid import UUID
from zoneinfo import ZoneInfo

from pydantic import AnyUrl, BaseModel, RootModel, SecretBytes, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import MultiHostUrl, Url, to_jsonable_python

from paidonce.values.class_names import class_name
from paidonce_models.payloads.json_values import MAX_INTEGER_BITS, JsonValue
from paidonce_models.privacy.masking import current_masker, mask

SCALARS: Final = (
    *(datetime, date, time, timedelta, Decimal, UUID, PurePath, AnyUrl, Url, MultiHostUrl),
    *(IPv4Address, IPv6Address, IPv4Network, IPv6Network),
)
"""Single values that pydantic writes as text and reads back."""
DEEPEST: Final = 200
MOST_NODES: Final = 1_000_000
LONGEST_TEXT: Final = 20_000
"""Characters kept of an object without a JSON form."""
DEEPEST_OPAQUE: Final = 6
MOST_OPAQUE_NODES: Final = 20_000

Types = JsonValue
"""``None``: JSON expresses it all. Else an object: ``t`` the kind, ``c`` a class, ``m`` members' types, and so on."""


@dataclass(kw_only=True)
class Rendering:
    """A rendered value. ``text_only`` names the places that are human-readable text."""

    value: JsonValue
    types: Types
    text_only: list[str] = field(default_factory=list)


def render(value: object) -> Rendering:
    """The rendering of any value."""
    renderer = _Renderer()
    try:
        natural, types = renderer.node(value, "", 0)
    except RecursionError:  # the call stack is nearly exhausted
        natural, types = renderer.as_text(value, "")
    return Rendering(value=natural, types=types, text_only=renderer.text_only)


def data_of_model(model: BaseModel) -> dict[str, object]:
    """Fields and extras of a model, set or not; without cached properties and what a client attaches."""
    fields = fields_of(type(model))
    own = {name: each for name, each in model.__dict__.items() if name in fields}
    return own | (model.__pydantic_extra__ or {})


def data_of_dataclass(value: Any) -> dict[str, object]:
    """Fields of a dataclass and other attributes of the object, except for those of ``private_of``."""
    names = [each.name for each in dataclasses.fields(value)]
    data = {name: getattr(value, name) for name in names if hasattr(value, name)}
    for name, each in getattr(value, "__dict__", {}).items():
        cached = isinstance(getattr(type(value), name, None), functools.cached_property)
        if name not in data and not cached and not name.startswith("_"):
            data[name] = each
    return data


def private_of(value: object) -> dict[str, object]:
    """Private attributes of a model, or underscored ones beside a dataclass's fields: data, or handles and caches."""
    if isinstance(value, BaseModel):
        private = (value.__pydantic_private__ or {}).items()
        return {name: each for name, each in private if not _is_default(type(value), name, each)}
    if not dataclasses.is_dataclass(value):
        return {}
    fields = {each.name for each in dataclasses.fields(value)}
    return {
        name: each
        for name, each in getattr(value, "__dict__", {}).items()
        if name not in fields and name.startswith("_") and not name.startswith("__")
    }


def fields_of(cls: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields of a model's class; ``BaseModel`` itself has none."""
    return getattr(cls, "__pydantic_fields__", {})


class _Renderer:
    def __init__(self) -> None:
        self.text_only: list[str] = []
        self._open: set[int] = set()
        self._left = MOST_NODES
        self._opaque_left = MOST_OPAQUE_NODES

    def node(self, value: object, path: str, depth: int) -> tuple[JsonValue, Types]:
        self._left -= 1
        if value is None or value is True or value is False:
            return value, None
        kind = type(value)
        if kind is str:
            return value, None  # type: ignore[return-value]  # known by its type
        if self._left < 0 or depth > DEEPEST:  # not its `repr`, which has no end either
            return self._told(path, f"(a {type(value).__name__}, too deep or too much to be kept)")
        if isinstance(value, Enum):
            return self._enum(value, path, depth)
        if isinstance(value, (int, float)):
            return self._number(value)
        if isinstance(value, (SecretStr, SecretBytes)):
            return self._told(path, "**********")
        if isinstance(value, str):
            return str.__str__(value), None
        if isinstance(value, (bytes, bytearray)):
            name = "bytes" if isinstance(value, bytes) else "bytearray"
            return base64.b64encode(value).decode(), {"t": name}
        if isinstance(value, SCALARS):
            return self._scalar(value, path)
        if id(value) in self._open:
            return self._told(path, "(itself once more)")
        self._open.add(id(value))
        try:
            return self._container(value, path, depth)
        except RecursionError:
            raise
        except Exception:  # noqa: BLE001 - properties, `__getattr__` and the like are user code
            return self.as_text(value, path)
        finally:
            self._open.discard(id(value))

    def as_text(self, value: object, path: str) -> tuple[JsonValue, Types]:
        """For people: the value's ``repr``, masked and truncated."""
        try:
            text = repr(value)
        except Exception as error:  # noqa: BLE001 - `__repr__` is user code
            text = f"({type(value).__name__}, whose text cannot be shown: {type(error).__name__})"
        if len(text) > LONGEST_TEXT:
            text = f"{text[:LONGEST_TEXT]}… ({len(text):,} characters)"
        return self._told(path, mask(text))

    def _told(self, path: str, text: JsonValue) -> tuple[JsonValue, Types]:
        if len(self.text_only) < 100:
            self.text_only.append(path or "the value itself")
        return text, {"t": "text"}

    def _number(self, value: float) -> tuple[JsonValue, Types]:
        if isinstance(value, int):
            plain = int.__int__(value)
            return (plain, None) if plain.bit_length() <= MAX_INTEGER_BITS else (hex(plain), {"t": "int"})
        plain_float = float.__float__(value)
        return (plain_float, None) if math.isfinite(plain_float) else (repr(plain_float), {"t": "float"})

    def _enum(self, value: Enum, path: str, depth: int) -> tuple[JsonValue, Types]:
        natural, inner = self.node(value.value, path, depth + 1)
        types: dict[str, JsonValue] = {"t": "enum", "c": class_name(type(value)), "v": inner}
        if value.name in type(value).__members__:
            types["n"] = value.name
        return natural, types

    def _scalar(self, value: object, path: str) -> tuple[JsonValue, Types]:
        try:
            natural: JsonValue = str(value) if isinstance(value, PurePath) else to_jsonable_python(value)
        except Exception:  # noqa: BLE001 - a subclass of the user's
            return self.as_text(value, path)
        types: dict[str, JsonValue] = {"t": "scalar", "c": class_name(type(value))}
        if isinstance(value, datetime) and isinstance(value.tzinfo, ZoneInfo) and value.tzinfo.key:
            types["z"] = value.tzinfo.key
        return natural, types

    def _container(self, value: object, path: str, depth: int) -> tuple[JsonValue, Types]:
        if isinstance(value, BaseModel):
            return self._model(value, path, depth)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            members, inner = self._members(data_of_dataclass(value), path, depth)
            types: dict[str, JsonValue] = {"t": "dataclass", "c": class_name(type(value)), **_m(inner)}
            return members, types | self._private(private_of(value), depth)
        if isinstance(value, dict):
            return self._dict(value, path, depth)
        if isinstance(value, (list, tuple, set, frozenset)):
            return self._sequence(value, path, depth)
        return self._opaque(value, path, depth)

    def _model(self, value: BaseModel, path: str, depth: int) -> tuple[JsonValue, Types]:
        cls = type(value)
        data = data_of_model(value)
        for name, each in fields_of(cls).items():
            if each.exclude and name in data:
                if data[name] != each.get_default(call_default_factory=True):
                    self._told(f"{path}[{name!r}]", None)
                del data[name]
        members, inner = self._members(data, path, depth)
        types: dict[str, JsonValue] = {"t": "model", "c": class_name(cls), **_m(inner)}
        unset: list[JsonValue] = [name for name in data if name not in value.__pydantic_fields_set__]
        if unset:
            types["unset"] = unset
        types |= self._private(private_of(value), depth)
        return (members.get("root") if isinstance(value, RootModel) else members), types

    def _private(self, private: dict[str, object], depth: int) -> dict[str, JsonValue]:
        """Private attributes that are data. The class recreates handles and caches."""
        kept: dict[str, JsonValue] = {}
        types: dict[str, JsonValue] = {}
        for name, each in private.items():
            told = len(self.text_only)
            natural, inner = self.node(each, name, depth + 1)
            if len(self.text_only) > told:
                del self.text_only[told:]
                continue
            kept[name] = natural
            types[name] = inner
        return {"private": {"v": kept, "m": types}} if kept else {}

    def _members(
        self, data: dict[str, object], path: str, depth: int
    ) -> tuple[dict[str, JsonValue], dict[str, JsonValue]]:
        members: dict[str, JsonValue] = {}
        types: dict[str, JsonValue] = {}
        for name, each in data.items():
            members[name], inner = self.node(each, f"{path}[{name!r}]", depth + 1)
            if inner is not None:
                types[name] = inner
        return members, types

    def _dict(self, value: dict[Any, object], path: str, depth: int) -> tuple[JsonValue, Types]:
        if all(type(key) is str for key in value):
            members, inner = self._members(value, path, depth)
            return members, ({"t": "dict", **_m(inner)} if inner else None)
        keys = [self.node(key, f"{path}[{key!r:.40}]", depth + 1) for key in value]
        texts = [key if isinstance(key, str) else str(key) for key, _ in keys]
        if len(set(texts)) < len(texts):  # 1 and "1", say
            return self.as_text(value, path)
        members, inner = self._members(dict(zip(texts, value.values(), strict=True)), path, depth)
        types: dict[str, JsonValue] = {"t": "dict", **_m(inner)}
        types["keys"] = [[natural, kind] for natural, kind in keys]
        return members, types

    def _sequence(self, value: Any, path: str, depth: int) -> tuple[JsonValue, Types]:
        if type(value) is list and len(value) > 16 and set(map(type, value)) <= {float, str} and _all_finite(value):
            self._left -= len(value) // 100  # an embedding
            return list(value), None
        nodes = [self.node(each, f"{path}[{index}]", depth + 1) for index, each in enumerate(value)]
        if isinstance(value, (set, frozenset)):
            nodes.sort(key=repr)  # the order of hashes is another one in each process
        members: list[JsonValue] = [natural for natural, _ in nodes]
        inner: dict[str, JsonValue] = {str(index): kind for index, (_, kind) in enumerate(nodes) if kind is not None}
        if isinstance(value, list):
            return members, ({"t": "list", **_m(inner)} if inner else None)
        if isinstance(value, tuple) and hasattr(type(value), "_fields"):
            return members, {"t": "namedtuple", "c": class_name(type(value)), **_m(inner)}
        name = next(
            name for name, cls in (("tuple", tuple), ("set", set), ("frozenset", frozenset)) if isinstance(value, cls)
        )
        return members, {"t": name, **_m(inner)}

    def _opaque(self, value: object, path: str, depth: int) -> tuple[JsonValue, Types]:
        """An object that cannot be recreated: its data for people, if it has any."""
        data = getattr(value, "__dict__", None)
        if not isinstance(data, dict) or not data or callable(value) or isinstance(value, (type, ModuleType)):
            return self.as_text(value, path)
        self._opaque_left -= len(data)
        if self._opaque_left < 0 or depth > DEEPEST_OPAQUE:
            return self.as_text(value, path)
        self._told(path, None)
        masker = current_masker()
        told = {
            str(name): "**********" if isinstance(each, str) and masker.is_secret_name(str(name)) else each
            for name, each in data.items()
        }
        members, _ = self._members(told, path, depth)
        return {"(object)": type(value).__qualname__, **members}, {"t": "text"}


def _all_finite(values: list[Any]) -> bool:
    return all(type(each) is str or math.isfinite(each) for each in values)


def _m(inner: dict[str, JsonValue]) -> dict[str, JsonValue]:
    return {"m": inner} if inner else {}


def _is_default(cls: type[BaseModel], name: str, value: object) -> bool:
    attribute = cls.__private_attributes__.get(name)
    if attribute is None or attribute.default_factory is not None:
        return False
    try:
        return bool(attribute.default == value)
    except Exception:  # noqa: BLE001 - `__eq__` is user code
        return False
