"""Converts the arguments of a function to one JSON object, and back.

Owns the stored form of a call: an object from parameter names to values, in the order of
the declaration, with defaults applied; ``*args`` is a list and ``**kwargs`` an object
under their own names. Every call of a step, tool or agent is encoded by
``encode_arguments``; the code that executes it calls ``decode_arguments``; a submission
by keyword goes through ``validate_input``.

``normalise`` converts recorded arguments to the current types, so that a parameter or a
field that was added with a default makes no difference between history and code.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from inspect import Parameter
from typing import Optional, cast, overload

from paidonce.values.annotations import describe
from paidonce.values.codecs import Codec, PlainCodec, codec_for
from paidonce.values.hints import local_names, resolve_hints
from paidonce_models.errors import DeclarationError, InvalidInput, PaidonceError
from paidonce_models.payloads.argument_objects import encoded_object, object_bytes
from paidonce_models.payloads.documents import Encoded, LongList, decode_encoded
from paidonce_models.payloads.encoding import encode_json
from paidonce_models.payloads.json_values import JsonValue
from paidonce_models.payloads.payload_memory import PayloadMemory

_KEYWORDS = Parameter.VAR_KEYWORD
_POSITIONALS = Parameter.VAR_POSITIONAL


@dataclass(frozen=True, kw_only=True, slots=True)
class Slot:
    """One parameter: its codec and how it is passed."""

    name: str
    kind: inspect._ParameterKind
    codec: Codec
    default: object

    @property
    def required(self) -> bool:
        return self.default is Parameter.empty and self.kind not in (_POSITIONALS, _KEYWORDS)


class Parameters:
    """How one function is called; created once, at its declaration."""

    def __init__(self, function: Callable[..., object], name: str, names: dict[str, object]) -> None:
        self.function = function
        self.name = name
        self.signature = inspect.signature(function)
        self._names = names

    @classmethod
    def for_function(cls, function: Callable[..., object], *, name: str | None = None) -> Parameters:
        """Call it where the function is declared; ``name`` is its name in messages, for example "agent research".

        Raises ``DeclarationError`` for methods and for anything but a plain function. Annotations that cannot be
        resolved yet raise at first use.
        """
        if not inspect.isfunction(function):
            raise DeclarationError(f"{function!r} is not a function; declare a plain def or async def at module level")
        called = name or f"{function.__module__}.{function.__qualname__}"
        first = next(iter(inspect.signature(function).parameters), None)
        if first in ("self", "cls"):
            raise DeclarationError(f"{called} is a method (its first parameter is {first!r}); use a plain function")
        return cls(function, called, local_names(function))

    @cached_property
    def hints(self) -> dict[str, object]:
        """The resolved annotations; raises ``DeclarationError`` if a name is not found."""
        return resolve_hints(self.function, self._names)

    @cached_property
    def result(self) -> Codec:
        """The codec of what the function returns."""
        return codec_for(self.hints.get("return", object))

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        """The parameters in the order of their declaration."""
        return tuple(self._slot(parameter) for parameter in self.signature.parameters.values())

    def misfits(self) -> list[str]:
        """What is wrong with the parameters, one sentence each: types or defaults without a stored form."""
        problems: list[str] = []
        for parameter in self.signature.parameters.values():
            where = f"its parameter {parameter.name!r}"
            try:
                slot = self._slot(parameter)
                if not slot.required:
                    slot.codec.decode(slot.codec.encode(self._default(slot), f"the default of {where}"), where)
            except PaidonceError as error:
                problems.append(f"{where}: {error.message}")
            except Exception as error:  # noqa: BLE001 - a type of the user's makes its own schema
                problems.append(f"{where} cannot be used: {type(error).__name__}")
        return problems

    @overload
    def encode_arguments(
        self, args: Sequence[object], kwargs: Mapping[str, object], where: str | None = None, memory: None = None
    ) -> bytes: ...
    @overload
    def encode_arguments(
        self, args: Sequence[object], kwargs: Mapping[str, object], where: str | None, memory: PayloadMemory | None
    ) -> Encoded: ...
    def encode_arguments(
        self,
        args: Sequence[object],
        kwargs: Mapping[str, object],
        where: str | None = None,
        memory: PayloadMemory | None = None,
    ) -> Encoded:
        """One JSON object; raises ``InvalidInput`` if the call does not fit, ``NotSerialisable`` for values.

        With a cache, lists that grow from call to call cost only their new elements; the bytes (and so the address) are
        the same without.
        """
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise InvalidInput(f"{where or self.name}: {error}; it takes {self._expected()}") from None
        bound.apply_defaults()
        given = bound.arguments
        within = where or self.name
        members: list[tuple[str, bytes | LongList]] = []
        for slot in self.slots:
            value, codec = given[slot.name], slot.codec
            if slot.kind is _POSITIONALS:
                value = list(cast("tuple[object, ...]", value))
            if memory is not None and type(value) is list and isinstance(codec, PlainCodec):
                text = codec.encode_list(value, f"{within}: {slot.name}", memory.elements)
            else:
                text = codec.encode(value, f"{within}: {slot.name}")
            members.append((slot.name, text))
        return encoded_object(members)

    def decode_arguments(
        self, data: Encoded, *, checked: bool = False, from_outside: bool = False
    ) -> tuple[list[object], dict[str, object]]:
        """Fresh ``args, kwargs`` to call the function with; raises ``InvalidInput`` if they no longer fit.

        ``checked`` also compares JSON types with their annotations, for input of a producer without the code.
        ``from_outside``: they are validated, whatever they claim to be.
        """
        stored = decode_encoded(data)
        if not isinstance(stored, dict):
            raise InvalidInput(f"{self.name}: arguments must be an object, found {type(stored).__name__}")
        if self._keywords is not None and self._keywords not in stored:
            stored = self._with_keywords_gathered(stored, self._keywords)
        self._refuse_unknown(stored)
        args: list[object] = []
        kwargs: dict[str, object] = {}
        for slot in self.slots:
            value = self._decoded(slot, stored, checked=checked, from_outside=from_outside)
            if slot.kind is _POSITIONALS:
                args.extend(cast("list[object]", value))
            elif slot.kind is _KEYWORDS:
                kwargs.update(cast("dict[str, object]", value))
            elif slot.kind is Parameter.KEYWORD_ONLY:
                kwargs[slot.name] = value
            else:
                args.append(value)
        return args, kwargs

    def normalise(self, data: Encoded) -> bytes:
        """``data`` as the current types write it; raises ``InvalidInput`` if they cannot read it."""
        args, kwargs = self.decode_arguments(data)
        return self.encode_arguments(args, kwargs)

    def validate_input(self, given: Mapping[str, object]) -> bytes:
        """The stored form of arguments by keyword, from JSON data or typed objects.

        Raises ``InvalidInput`` naming the parameter, expected and found.
        """
        if not isinstance(given, Mapping):
            raise InvalidInput(f"{self.name}: input must be an object, found {type(given).__name__}")
        rest = dict(given)
        members: list[tuple[str, bytes]] = []
        for slot in self.slots:
            if slot.kind is _KEYWORDS:
                value: object = {key: rest.pop(key) for key in list(rest) if key not in self.signature.parameters}
            elif slot.name in rest:
                value = rest.pop(slot.name)
            elif slot.required:
                raise InvalidInput(
                    f"{self.name}: the argument {slot.name!r} ({describe(slot.codec.annotation)}) is missing; "
                    f"found {_listed(given)}"
                )
            else:
                value = self._default(slot)
            if value is slot.default:
                members.append((slot.name, slot.codec.encode(value, f"{self.name}: {slot.name}")))
            else:
                members.append((slot.name, slot.codec.accept(value, f"{self.name}: {slot.name}")))
        if rest:
            raise InvalidInput(f"{self.name} takes {self._expected()}; found {_listed(rest)} as well")
        return object_bytes(members)

    @cached_property
    def _keywords(self) -> str | None:
        """The name of the ``**`` parameter, if there is one."""
        return next((slot.name for slot in self.slots if slot.kind is _KEYWORDS), None)

    def _with_keywords_gathered(self, stored: Mapping[str, JsonValue], keywords: str) -> dict[str, JsonValue]:
        """A producer's input has keywords beside the named arguments, a recorded call under the ``**`` name."""
        named = {name: value for name, value in stored.items() if name in self.signature.parameters}
        loose: dict[str, JsonValue] = {name: value for name, value in stored.items() if name not in named}
        return {**named, keywords: loose}

    def _slot(self, parameter: Parameter) -> Slot:
        annotation = self.hints.get(parameter.name, object)
        if parameter.kind is _POSITIONALS:
            annotation = list[annotation]  # type: ignore[valid-type]  # built at run time
        elif parameter.kind is _KEYWORDS:
            annotation = dict[str, annotation]  # type: ignore[valid-type]  # built at run time
        elif parameter.default is None and annotation is not object:
            # `x: int = None` has always meant Optional to its authors.
            annotation = Optional[annotation]  # noqa: UP045  # built at run time
        return Slot(
            name=parameter.name,
            kind=parameter.kind,
            codec=codec_for(annotation),
            default=parameter.default,
        )

    def _decoded(self, slot: Slot, stored: Mapping[str, JsonValue], *, checked: bool, from_outside: bool) -> object:
        where = f"{self.name}: {slot.name}"
        if slot.name in stored:
            value = stored[slot.name]
            if not isinstance(slot.codec, PlainCodec):
                return slot.codec.decode(encode_json(value), where, from_outside=from_outside)
            # Already fresh from decode_json; only pydantic changes it further.
            fresh = slot.codec.fresh(value, where, from_outside=from_outside)
            if checked:
                slot.codec.check(fresh, where)
            return fresh
        if slot.required:
            raise InvalidInput(f"{where} is required, but the stored call holds {_listed(stored)}")
        return slot.codec.decode(slot.codec.encode(self._default(slot), where), where)

    def _default(self, slot: Slot) -> object:
        if slot.kind is _POSITIONALS:
            return []
        return {} if slot.kind is _KEYWORDS else slot.default

    def _refuse_unknown(self, stored: Mapping[str, object]) -> None:
        unknown = [name for name in stored if name not in self.signature.parameters]
        if unknown:
            raise InvalidInput(f"{self.name} takes {self._expected()}; the stored call also holds {_listed(unknown)}")

    def _expected(self) -> str:
        return _listed(self.signature.parameters)


def _listed(names: Mapping[str, object] | Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names) or "no arguments"
