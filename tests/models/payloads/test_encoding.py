"""The JSON form of plain values: exact, stable, and clear about what it refuses."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from datetime import datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from paidonce_models.errors import InvalidInput, NotSerialisable
from paidonce_models.payloads.encoding import canonical_sha256, decode_json, encode_json
from paidonce_models.payloads.json_values import MAX_DEPTH, copy_json, is_plain

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=2**63 - 2, max_value=2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(alphabet=st.characters(exclude_categories=()))
)
json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=5),
    max_leaves=20,
)


class Colour(enum.StrEnum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


class Point(BaseModel):
    x: int = 1


@dataclasses.dataclass
class Pair:
    left: int = 1


Row = namedtuple("Row", "a b")


def same(left: object, right: object) -> bool:
    """Equality that tells 1, 1.0 and True apart, and keeps the order of keys."""
    return repr(left) == repr(right)


@given(json_values)
def test_decoding_gives_back_what_was_encoded(value: object) -> None:
    assert same(decode_json(encode_json(value)), value)


@given(json_values)
def test_encoding_the_decoded_value_gives_the_same_bytes(value: object) -> None:
    data = encode_json(value)
    assert encode_json(decode_json(data)) == data


@given(json_values)
def test_a_copy_is_equal_and_shares_no_container(value: Any) -> None:
    copy = copy_json(value)
    assert same(copy, value)
    if isinstance(value, dict | list) and value:
        assert copy is not value


@given(st.dictionaries(st.text(max_size=4), json_values, max_size=5))
def test_inputs_that_differ_in_key_order_have_one_canonical_hash(value: dict[str, object]) -> None:
    backwards = dict(reversed(list(value.items())))
    assert canonical_sha256(value) == canonical_sha256(backwards)


def test_different_inputs_have_different_canonical_hashes() -> None:
    assert canonical_sha256({"a": 1, "b": 2}) == canonical_sha256({"b": 2, "a": 1})
    assert canonical_sha256({"a": 1}) != canonical_sha256({"a": 2})
    assert canonical_sha256([1, 2]) != canonical_sha256([2, 1])


def test_keys_keep_their_order_and_no_space_is_spent() -> None:
    assert encode_json({"b": [1, 2.5, None], "a": "ü"}) == '{"b":[1,2.5,null],"a":"ü"}'.encode()


@pytest.mark.parametrize("number", [2**63, 2**64, -(2**63) - 1, 10**40, 2**64 - 1])
def test_integers_beyond_64_bits_stay_integers(number: int) -> None:
    decoded = decode_json(encode_json({"n": [number]}))
    assert decoded == {"n": [number]}
    assert same(decoded, {"n": [number]})


def test_a_large_float_stays_a_float() -> None:
    assert same(decode_json(encode_json([1e300, 1e20, -1e20])), [1e300, 1e20, -1e20])


def test_a_lone_surrogate_survives_as_valid_utf8() -> None:
    data = encode_json({"text": "a\ud800é"})
    data.decode("utf-8")
    assert decode_json(data) == {"text": "a\ud800é"}


@given(st.lists(json_values, max_size=4))
def test_every_part_is_written_as_it_would_be_by_itself(values: list[object]) -> None:
    assert encode_json(values) == b"[" + b",".join(map(encode_json, values)) + b"]"
    keys = [f"é{index}" for index in range(len(values))]
    members = b",".join(encode_json(key) + b":" + encode_json(value) for key, value in zip(keys, values, strict=True))
    assert encode_json(dict(zip(keys, values, strict=True))) == b"{" + members + b"}"


def test_tuples_become_lists() -> None:
    assert encode_json({"pair": (1, (2, 3))}) == b'{"pair":[1,[2,3]]}'


def test_subclasses_of_json_types_become_those_types() -> None:
    class Text(str):
        pass

    decoded = decode_json(encode_json({Text("k"): Text("v"), "o": OrderedDict(a=1)}))
    assert same(decoded, {"k": "v", "o": {"a": 1}})


@pytest.mark.parametrize(
    ("value", "path", "kind", "way_out"),
    [
        ({"rows": [0, {"when": datetime(2026, 1, 1)}]}, "result['rows'][1]['when']", "datetime.datetime", "annotate"),
        ([UUID(int=1)], "result[0]", "uuid.UUID", "annotate"),
        ({"c": Colour.RED}, "result['c']", "Colour", ".value"),
        ([Level.LOW], "result[0]", "Level", ".value"),
        ({1, 2}, "result", "set", "sorted(value)"),
        ([b"x"], "result[0]", "bytes", "base64"),
        ({"m": Point()}, "result['m']", "Point", 'model_dump(mode="json")'),
        ([Pair()], "result[0]", "Pair", "asdict"),
        ([Row(1, 2)], "result[0]", "Row", "_asdict"),
        ([object()], "result[0]", "object", "dataclass"),
    ],
)
def test_what_json_cannot_hold_is_refused_with_path_type_and_way_out(
    value: object, path: str, kind: str, way_out: str
) -> None:
    with pytest.raises(NotSerialisable) as caught:
        encode_json(value, "result")
    assert caught.value.message.startswith(f"{path} ")
    assert kind in caught.value.message
    assert way_out in caught.value.message


def test_an_sdk_message_is_refused_with_its_own_way_out() -> None:
    from openai.types.chat import ChatCompletionMessage

    message = ChatCompletionMessage(role="assistant", content="hello")
    with pytest.raises(NotSerialisable, match=r"result\[0\].*model_dump\(exclude_none=True\)"):
        encode_json([message], "result")


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_does_not_have_are_refused(number: float) -> None:
    with pytest.raises(NotSerialisable, match=r"result\[1\] is -?(nan|inf)"):
        encode_json([1.5, number], "result")


@pytest.mark.parametrize("key", [1, None, 2.5, Colour.RED, (1, 2)])
def test_keys_that_are_not_text_are_refused(key: object) -> None:
    with pytest.raises(NotSerialisable, match=r"result\['a'\] has the key"):
        encode_json({"a": {key: 1}}, "result")


def test_a_cycle_is_refused_by_name() -> None:
    value: dict[str, Any] = {"a": []}
    value["a"].append(value)
    with pytest.raises(NotSerialisable, match="contains itself"):
        encode_json(value)


def test_nesting_is_taken_to_the_limit_and_refused_beyond() -> None:
    deep: object = 1
    for _ in range(MAX_DEPTH):
        deep = [deep]
    assert decode_json(encode_json(deep)) == deep
    with pytest.raises(NotSerialisable, match=f"deeper than {MAX_DEPTH} levels"):
        encode_json([deep])


def test_an_integer_too_long_for_text_is_refused() -> None:
    with pytest.raises(NotSerialisable, match="bits"):
        encode_json(10**5000)


@pytest.mark.parametrize("data", [b"", b"{", b"NaN", b"[Infinity]", b"\xff", b"[1,]", b"[" * 100_000])
def test_what_is_not_json_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInput, match="not valid JSON"):
        decode_json(data)


def test_the_quick_check_sees_through_types_that_orjson_would_write() -> None:
    assert is_plain({"a": [1, (2.5, None)], "b": {"c": "d"}})
    assert not is_plain([Colour.RED])
    assert not is_plain({"a": {Colour.RED: 1}})
    assert not is_plain([math.nan])


def _nested(levels: int, leaf: object = 1) -> object:
    value = leaf
    for level in range(levels):
        value = [value] if level % 2 else {"a": value}
    return value


def _beneath(frames: int, act: Callable[[], object]) -> object:
    """``act`` called from as deep in a program."""
    return act() if frames == 0 else _beneath(frames - 1, act)


@pytest.mark.parametrize("levels", [300, 5_000, 100_000])
def test_text_that_nests_without_an_end_is_refused_with_the_limit(levels: int) -> None:
    for text in (b"[" * levels + b"]" * levels, b"[" * levels, b'{"a":' * levels + b"1" + b"}" * levels):
        with pytest.raises(InvalidInput, match=f"deeper than {MAX_DEPTH} levels|not valid JSON|nested") as refused:
            encode_json(decode_json(text))
        assert len(refused.value.message) < 1_000


def test_levels_that_the_stack_has_no_room_for_are_refused_and_not_a_recursion_error() -> None:
    slow = _nested(200, 2**100)  # a large integer is written level by level in Python
    assert len(encode_json(slow)) > 200
    for frames in (850, 900):
        with pytest.raises(NotSerialisable, match="the program's call stack"):
            _beneath(frames, lambda: encode_json(slow, "value"))


def test_lists_that_stand_in_each_other_many_times_are_refused_before_they_are_written_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("paidonce_models.payloads.json_values.MOST_MEMBERS", 100_000)
    bomb: list[object] = [1] * 10
    for _ in range(30):
        bomb = [bomb] * 10
    with pytest.raises(NotSerialisable, match="the bomb holds more than 100,000 values"):
        encode_json(bomb, "the bomb")
    with pytest.raises(NotSerialisable, match="the bomb holds more than 100,000 values"):
        is_plain(bomb, "the bomb")


def test_the_quick_check_comes_to_an_end_on_a_cycle() -> None:
    wide: list[object] = [1]
    wide += [wide, {"again": wide}, wide]
    assert not is_plain(wide)
    with pytest.raises(NotSerialisable, match="contains itself"):
        encode_json(wide)
