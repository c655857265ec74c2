"""Codecs: convert one value of one annotation to JSON bytes and back.

Owns the promise on which every replay depends: what an agent receives is always a fresh
``decode(encode(value))``, nothing of the value is lost in between, and encoding it again
gives the same bytes. ``encoding`` writes plain slots. For typed slots pydantic writes and
reads, and each encoding is read back and compared, because pydantic by itself silently
drops the fields of a subclass and keeps an integer assigned to a float field as an
integer. A value of the annotated type that pydantic would refuse or change, as
providers' clients create them, is handled by ``constructed``.

Validators and serializers are user code and may raise anything: pydantic converts only ``ValueError`` and
``AssertionError`` to its own errors, and passes the rest through. Here each of them means that a value does not fit.

Must never return a decoded object twice, and never store a value that differs from the
one it was given: what does not survive the round trip is refused.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol, cast

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from pydantic.errors import PydanticUndefinedAnnotation

from paidonce.values.annotations import Checker, Mismatch, describe, plain_checker
from paidonce.values.constructed import decode_constructed, encode_constructed
from paidonce.values.set_order import holds_sets, in_stable_order
from paidonce.values.stored_form import PREFIX, TYPES, VALUE, is_constructed
from paidonce.values.survival import first_difference
from paidonce_models.errors import DeclarationError, InvalidInput, NotSerialisable, PaidonceError
from paidonce_models.payloads.documents import Encoded, LongList, decode_encoded
from paidonce_models.payloads.element_memory import ElementMemory
from paidonce_models.payloads.encoding import decode_json, encode_json
from paidonce_models.payloads.json_values import JsonValue, is_plain, too_deep_for_the_stack, type_name

_BARE_TYPES = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")


class Codec(Protocol):
    """Values of one annotation to bytes and back."""

    annotation: object

    def encode(self, value: object, where: str) -> bytes:
        """JSON bytes; raises ``NotSerialisable`` naming ``where``, the annotation and the value's type."""

    def encode_result(self, value: object, where: str) -> bytes:
        """Like ``encode``, for a body's result, which was paid for: accepts everything that survives the round trip."""

    def decode(self, data: Encoded, where: str = "value", *, from_outside: bool = False) -> object:
        """A fresh value; raises ``InvalidInput`` if the bytes no longer fit the annotation.

        ``from_outside``: what a producer has written is validated, whatever it claims to be.
        """

    def accept(self, value: object, where: str) -> bytes:
        """Bytes of a value from outside: JSON data that fits, or an object of the annotated type."""


@lru_cache(maxsize=4096)
def _cached_codec(annotation: object) -> Codec:
    return _new_codec(annotation)


def codec_for(annotation: object) -> Codec:
    """The codec of an annotation; raises ``DeclarationError`` if there can be none."""
    try:
        hash(annotation)
    except TypeError:
        return _new_codec(annotation)
    return _cached_codec(annotation)


def _new_codec(annotation: object) -> Codec:
    checker = plain_checker(annotation)
    return TypedCodec(annotation) if checker is None else PlainCodec(annotation, checker)


class PlainCodec:
    """A slot that promises only JSON."""

    def __init__(self, annotation: object, checker: Checker) -> None:
        self.annotation = annotation
        self._check = checker

    def encode(self, value: object, where: str) -> bytes:
        data = encode_json(value, where)
        mismatch = self._check(value)
        if mismatch is not None:
            raise NotSerialisable(self._in_words(mismatch, where))
        return data if not data.startswith(PREFIX) else encode_json({VALUE: value, TYPES: None}, where)

    def encode_result(self, value: object, where: str) -> bytes:
        try:
            return self.encode(value, where)
        except NotSerialisable:
            # If the annotation promises nothing or anything, an object is as good as JSON.
            constructed = encode_constructed(value, self.annotation, where)
            if constructed is None:
                raise
            return constructed

    def decode(self, data: Encoded, where: str = "value", *, from_outside: bool = False) -> object:
        return self.fresh(decode_encoded(data), where, from_outside=from_outside)

    def fresh(self, stored: JsonValue, where: str, *, from_outside: bool = False) -> object:
        """The value of freshly decoded JSON that is not shared."""
        if isinstance(stored, dict) and not from_outside and is_constructed(stored):
            return decode_constructed(stored, self.annotation, where)
        return stored

    def encode_list(self, value: list[object], where: str, memory: ElementMemory) -> bytes | LongList:
        """Equal to ``encode``, element by element if the list is long."""
        data = memory.encode_list(value, where)
        mismatch = self._check(value)
        if mismatch is not None:
            raise NotSerialisable(self._in_words(mismatch, where))
        return data

    def accept(self, value: object, where: str) -> bytes:
        data = encode_json(value, where)
        self.check(value, where)
        return data

    def check(self, value: object, where: str) -> None:
        """Raise ``InvalidInput`` if a value from outside does not have the annotated JSON type."""
        mismatch = self._check(value)
        if mismatch is not None:
            raise InvalidInput(self._in_words(mismatch, where))

    def _in_words(self, mismatch: Mismatch, where: str) -> str:
        whole = "" if not mismatch.path else f" ({where} is annotated {describe(self.annotation)})"
        return f"{where}{mismatch.path} must be {mismatch.expected}, found {type_name(mismatch.found)}{whole}"


class TypedCodec:
    """A slot that pydantic writes and reads: models, dataclasses, datetimes, enums, tuples, sets."""

    def __init__(self, annotation: object) -> None:
        self.annotation = annotation
        self._adapter = _adapter_for(annotation)
        self._holds_sets = holds_sets(self._adapter.core_schema)

    def encode(self, value: object, where: str) -> bytes:
        try:
            data = self._encode_validated(value, where)
            if not data.startswith(PREFIX):
                return data
        except NotSerialisable:
            constructed = encode_constructed(value, self.annotation, where)
            if constructed is None:
                raise
            return constructed
        constructed = encode_constructed(value, self.annotation, where)
        if constructed is None:
            raise NotSerialisable(f"{where} has a field {VALUE!r}, a name that Paidonce uses; give it another one")
        return constructed

    def encode_result(self, value: object, where: str) -> bytes:
        return self.encode(value, where)

    def _encode_validated(self, value: object, where: str) -> bytes:
        try:
            decoded = self._adapter.validate_json(self._dump(value, where), by_name=True, by_alias=False)
        except PaidonceError:
            raise
        except Exception as error:
            raise NotSerialisable(
                f"{where} is annotated {describe(self.annotation)}, but this {type_name(value)} cannot be read back: "
                f"{_reasons(error)}; make the type's JSON form readable by the type itself"
            ) from error
        try:
            difference = first_difference(value, decoded, where)
        except RecursionError:
            raise too_deep_for_the_stack(where) from None
        if difference is not None:
            raise NotSerialisable(
                f"{where} is annotated {describe(self.annotation)} and would be changed by storing it: {difference}; "
                "annotate the type that holds all of it (a union of the subclasses, for example)"
            )
        # The value that was read back is the fixed point: an int in a float field has become a float.
        return self._dump(decoded, where)

    def decode(self, data: Encoded, where: str = "value", *, from_outside: bool = False) -> object:
        text = bytes(data)
        if text.startswith(PREFIX) and not from_outside:
            stored = decode_json(text)
            if isinstance(stored, dict) and is_constructed(stored):
                return decode_constructed(stored, self.annotation, where)
        try:
            return self._adapter.validate_json(text, by_name=True, by_alias=False)
        except Exception as error:
            raise InvalidInput(
                f"{where} no longer fits its annotation {describe(self.annotation)}: {_reasons(error)}"
            ) from error

    def accept(self, value: object, where: str) -> bytes:
        if not is_plain(value, where):
            return self._encode_validated(value, where)
        data = encode_json(value, where)
        try:
            decoded = self._adapter.validate_json(data, by_name=True, by_alias=True)
        except Exception as error:
            raise InvalidInput(f"{where} must be {describe(self.annotation)}: {_reasons(error)}") from error
        return self._encode_validated(decoded, where)

    def _dump(self, value: object, where: str) -> bytes:
        try:
            data = self._adapter.dump_json(value, round_trip=True, by_alias=False, warnings="error")
            if self._holds_sets:
                parallel = self._adapter.dump_python(value, round_trip=True, by_alias=False, warnings="error")
                data = in_stable_order(data, parallel)
            if b"NaN" in data or b"Infinity" in data:
                # A model may be configured to write them; JSON has no such numbers.
                decode_json(data)
        except InvalidInput as error:
            raise NotSerialisable(f"{where} holds a number that JSON does not have: {error}; use None") from error
        except Exception as error:
            reason = str(error).splitlines()
            detail = next((line.strip() for line in reason if "Expected" in line), reason[0] if reason else "")
            raise NotSerialisable(
                f"{where} is annotated {describe(self.annotation)}, but the value is of type {type_name(value)} "
                f"or holds what that type cannot: {_without_input(detail)}"
            ) from error
        return data


def _adapter_for(annotation: object) -> TypeAdapter[object]:
    form = cast("type[object]", annotation)
    try:
        try:
            return _complete(TypeAdapter(form, config=_BARE_TYPES))
        except PydanticUserError as error:
            # Models and dataclasses have their own configuration and refuse ours.
            if error.code != "type-adapter-config-unused":
                raise
            return _complete(TypeAdapter(form))
    except PydanticUndefinedAnnotation as error:
        raise DeclarationError(
            f"the annotation {describe(annotation)} names {error.name!r}, which cannot be found; "
            "define it at module level, before it is used"
        ) from error
    except Exception as error:  # pydantic's own, and anything raised by a type that creates its own schema
        first = (str(error).splitlines() or [""])[0]
        raise DeclarationError(
            f"values annotated {describe(annotation)} cannot be stored: {first}; use JSON types, a dataclass, "
            "a pydantic model or a TypedDict"
        ) from error


def _complete(adapter: TypeAdapter[object]) -> TypeAdapter[object]:
    """The adapter of a type with all names resolved: pydantic postpones reporting those that it cannot find."""
    if not adapter.pydantic_complete:
        adapter.rebuild(force=True, raise_errors=True)
    _ = adapter.core_schema
    return adapter


def _reasons(error: Exception) -> str:
    """The first errors, without the values, which may be prompts; an error of the user's validator only by its type."""
    if not isinstance(error, ValidationError):
        return f"a validator of the type raised {type(error).__name__}; let it raise ValueError for what does not fit"
    found = error.errors(include_url=False, include_context=False, include_input=False)
    shown = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" if item["loc"] else item["msg"] for item in found[:3]]
    more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
    return "; ".join(shown) + more


def _without_input(detail: str) -> str:
    return detail.partition(" [input_value")[0].removeprefix("PydanticSerializationUnexpectedValue(")
