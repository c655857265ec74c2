"""Codecs and parameters: what goes in comes back whole, fresh and byte for byte the same, or is refused."""

from __future__ import annotations

import dataclasses
import enum
import os
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal, NewType, Optional, TypedDict
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator

from paidonce.values.codecs import PlainCodec, codec_for
from paidonce.values.parameters import Parameters
from paidonce.values.signatures import signature_hash
from paidonce_models.errors import DeclarationError, InvalidInput, NotSerialisable


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Plan(BaseModel):
    title: str
    done: bool = False
    scores: list[float] = []


class DetailedPlan(Plan):
    detail: str = "x"


class Aliased(BaseModel):
    user_id: int = Field(alias="userId")


class Tagged(BaseModel):
    tags: set[str] = set()
    inner: dict[str, frozenset[int]] = {}


class Excluding(BaseModel):
    secret: str = Field(default="", exclude=True)


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    anything: Any = None


@dataclasses.dataclass
class Pair:
    left: int
    right: Plan | None = None


class Note(TypedDict, total=False):
    text: str
    at: int


UserId = NewType("UserId", str)


def typed(value: object) -> str:
    return f"{type(value)} {value!r}"


def round_trip(annotation: object, value: object) -> object:
    codec = codec_for(annotation)
    data = codec.encode(value, "value")
    decoded = codec.decode(data)
    assert codec.encode(decoded, "value") == data
    return decoded


@pytest.mark.parametrize(
    "annotation",
    [
        Any,
        object,
        None,
        str,
        int,
        float | None,
        list,
        list[str],
        Sequence[dict[str, Any]],
        dict[str, list[int | None]],
        Literal["a", 1],
        Optional[Note],  # noqa: UP045
        list[ChatCompletionMessageParam],
        JsonValue,
        UserId,
        Annotated[str, "documented"],
        dict[Literal["a", "b"], int],
    ],
)
def test_annotations_that_promise_only_json_are_plain(annotation: object) -> None:
    assert isinstance(codec_for(annotation), PlainCodec)


@pytest.mark.parametrize(
    "annotation",
    [datetime, tuple[int, str], set[str], bytes, Plan, Pair, dict[int, str], list[Plan], Colour, Literal[Colour.RED]],
)
def test_other_annotations_are_typed(annotation: object) -> None:
    assert not isinstance(codec_for(annotation), PlainCodec)


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (Plan, Plan(title="a", scores=[1.0, 2.5])),
        (list[Plan], [Plan(title="a"), Plan(title="b", done=True)]),
        (Pair, Pair(1, Plan(title="ü"))),
        (dict[str, Pair], {"k": Pair(1)}),
        (Aliased, Aliased(userId=7)),
        (datetime, datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)),
        (date, date(2026, 1, 2)),
        (timedelta, timedelta(days=2, microseconds=7)),
        (Decimal, Decimal("1.10")),
        (UUID, UUID(int=5)),
        (Colour, Colour.BLUE),
        (bytes, b"\xff\x00"),
        (tuple[int, str], (1, "a")),
        (tuple[Plan, ...], (Plan(title="a"),)),
        (set[int], {3, 1, 2}),
        (dict[int, str], {1: "a"}),
        (Plan | Pair, Pair(2)),
        (Plan | None, None),
        (Open, Open.model_validate({"anything": [1, {"a": None}], "more": 2**70})),
    ],
)
def test_typed_values_come_back_equal_and_fresh(annotation: object, value: object) -> None:
    decoded = round_trip(annotation, value)
    assert decoded == value
    assert type(decoded) is type(value)
    if isinstance(value, BaseModel | list | dict):
        assert decoded is not value


def test_a_message_list_of_an_sdk_is_kept_as_it_is() -> None:
    messages = [
        {"role": "user", "content": "hi"},
        {
            "role": "assistant",
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
            "provider_extra": {"x": 1},
        },
    ]
    assert round_trip(list[ChatCompletionMessageParam], messages) == messages


def test_an_integer_assigned_to_a_float_field_is_encoded_as_it_will_come_back() -> None:
    plan = Plan(title="a")
    plan.scores = [1]
    codec = codec_for(Plan)
    data = codec.encode(plan, "value")
    assert codec.encode(codec.decode(data), "value") == data


def test_a_subclass_under_its_base_annotation_comes_back_as_it_was() -> None:
    for annotation, value in (
        (Plan, DetailedPlan(title="a")),
        (list[Plan], [Plan(title="a"), DetailedPlan(title="b")]),
    ):
        assert typed(round_trip(annotation, value)) == typed(value)


def test_an_excluded_field_that_would_be_lost_is_refused() -> None:
    codec_for(Excluding).encode(Excluding(), "result")
    with pytest.raises(NotSerialisable, match=r"result\['secret'\]"):
        codec_for(Excluding).encode(Excluding(secret="s"), "result")


def test_a_value_hidden_behind_any_comes_back_as_it_was() -> None:
    value = Open(anything=datetime(2026, 1, 1))
    assert typed(round_trip(Open, value)) == typed(value)


@pytest.mark.parametrize(
    ("annotation", "value", "expected", "found"),
    [
        (str, None, "str", "NoneType"),
        (list[str], ["a", 1], "str", "int"),
        (dict[str, list[int]], {"a": [1, "b"]}, "int", "str"),
        (Literal["a"], "b", "Literal['a']", "str"),
        (Literal[1], True, "Literal[1]", "bool"),
        (Note, [1], "Note", "list"),
        (Plan, {"title": "a"}, "Plan", "dict"),
        (datetime, "2026-01-01", "datetime", "str"),
        (tuple[int, str], [1, "a"], "tuple[int, str]", "list"),
        (None, 1, "None", "int"),
    ],
)
def test_a_value_that_does_not_match_is_an_error_naming_both(
    annotation: object, value: object, expected: str, found: str
) -> None:
    with pytest.raises(NotSerialisable) as caught:
        codec_for(annotation).encode(value, "result")
    assert "result" in caught.value.message
    assert expected in caught.value.message
    assert found in caught.value.message


def test_a_mismatch_deep_inside_is_named_by_its_path() -> None:
    with pytest.raises(NotSerialisable, match=r"result\['a'\]\[1\] must be int, found str"):
        codec_for(dict[str, list[int]]).encode({"a": [1, "b"]}, "result")


def test_numbers_that_json_does_not_have_come_back_in_typed_slots() -> None:
    assert repr(round_trip(tuple[float, ...], (float("nan"),))) == "(nan,)"
    plan = Plan(title="a", scores=[float("inf")])
    assert round_trip(Plan, plan) == plan
    with pytest.raises(NotSerialisable):
        codec_for(list[float]).encode([float("nan")], "argument")


def test_types_without_a_form_are_refused_at_the_declaration() -> None:
    class Handle:
        pass

    with pytest.raises(DeclarationError, match="Handle"):
        codec_for(Handle)


def test_bytes_that_no_longer_fit_are_an_error_naming_the_type() -> None:
    with pytest.raises(InvalidInput, match=r"result no longer fits its annotation Plan.*title"):
        codec_for(Plan).decode(b'{"name":"a"}', "result")


class Moody(BaseModel):
    """Its validator raises what pydantic makes no error of."""

    mood: str

    @field_validator("mood")
    @classmethod
    def _refuse(cls, mood: str) -> str:
        if mood == "bad":
            raise LookupError("a validator's own error")
        return mood


def test_whatever_a_validator_of_the_users_raises_the_value_does_not_fit() -> None:
    codec = codec_for(Moody)
    raised = "a validator of the type raised LookupError"
    with pytest.raises(InvalidInput, match=f"result no longer fits its annotation Moody: {raised}"):
        codec.decode(b'{"mood":"bad"}', "result")
    with pytest.raises(InvalidInput, match=f"mood must be Moody: {raised}"):
        codec.accept({"mood": "bad"}, "mood")
    built = Moody.model_construct(mood="bad")
    assert codec.decode(codec.encode(built, "result")) == built, "what is there is kept, whatever its type thinks of it"


@given(
    st.builds(
        Plan, title=st.text(alphabet=st.characters(exclude_categories=["Cs"])), scores=st.lists(st.floats(-1e9, 1e9))
    )
)
def test_any_model_round_trips(plan: Plan) -> None:
    assert round_trip(Plan, plan) == plan


def test_sets_have_one_order_in_every_process() -> None:
    program = (
        "from pydantic import BaseModel\n"
        "from paidonce.values.codecs import codec_for\n"
        "class Tagged(BaseModel):\n"
        "    tags: set[str]\n"
        "    inner: dict[str, frozenset[int]]\n"
        "value = Tagged(tags={'a', 'b', 'c', 'd'}, inner={'k': frozenset({3, 1})})\n"
        "print(codec_for(Tagged).encode(value, 'v').decode())\n"
    )
    outputs = {in_another_process(program, seed) for seed in ("1", "2", "3")}
    assert outputs == {'{"tags":["a","b","c","d"],"inner":{"k":[1,3]}}'}
    assert round_trip(Tagged, Tagged(tags={"b", "a"})) == Tagged(tags={"a", "b"})


def in_another_process(program: str, hash_seed: str) -> str:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def research(question: str, /, plan: Plan, *notes: str, depth: int = 3, when: datetime = None, **more: int) -> Plan:  # type: ignore[assignment]  # noqa: RUF013
    return plan


def test_arguments_are_one_object_in_declaration_order_with_defaults() -> None:
    parameters = Parameters.for_function(research)
    data = parameters.encode_arguments(("q", Plan(title="a"), "n1", "n2"), {"z": 1, "depth": 4})
    assert data == (
        b'{"question":"q","plan":{"title":"a","done":false,"scores":[]},"notes":["n1","n2"],'
        b'"depth":4,"when":null,"more":{"z":1}}'
    )
    args, kwargs = parameters.decode_arguments(data)
    assert args == ["q", Plan(title="a"), "n1", "n2"]
    assert kwargs == {"depth": 4, "when": None, "z": 1}
    assert parameters.encode_arguments(args, kwargs) == data


def test_positional_and_keyword_calls_are_the_same_call() -> None:
    def search(query: str, limit: int = 10) -> list[str]:
        return []

    parameters = Parameters.for_function(search)
    assert parameters.encode_arguments(("a",), {}) == parameters.encode_arguments((), {"limit": 10, "query": "a"})


@pytest.mark.parametrize(
    ("args", "kwargs", "complaint"),
    [((), {}, "missing"), (("a", 1, 2), {}, "too many"), (("a",), {"query": "b"}, "multiple values")],
)
def test_a_call_that_does_not_fit_is_named(args: tuple[object, ...], kwargs: dict[str, object], complaint: str) -> None:
    def search(query: str, limit: int = 10) -> list[str]:
        return []

    with pytest.raises(InvalidInput, match=rf"step search: .*{complaint}.*'query', 'limit'"):
        Parameters.for_function(search, name="step search").encode_arguments(args, kwargs)


def test_a_refused_argument_is_named_with_its_step() -> None:
    def search(query: Any) -> None: ...

    with pytest.raises(NotSerialisable, match=r"step search: query\['a'\]\[0\] is of type datetime.datetime"):
        Parameters.for_function(search, name="step search").encode_arguments(({"a": [datetime(2026, 1, 1)]},), {})


def test_a_new_parameter_or_field_with_a_default_is_no_difference() -> None:
    class Before(BaseModel):
        title: str

    class After(BaseModel):
        title: str
        lang: str = "en"

    def before(plan: Before) -> None: ...

    def after(plan: After, depth: int = 1) -> None: ...

    recorded = Parameters.for_function(before).encode_arguments((Before(title="a"),), {})
    now = Parameters.for_function(after)
    assert now.normalise(recorded) == now.encode_arguments((After(title="a"),), {})


@pytest.mark.parametrize("recorded", [b'{"other":1}', b"{}", b'{"n":"x"}', b"[]"])
def test_recorded_arguments_that_cannot_be_read_any_more_are_refused(recorded: bytes) -> None:
    def step(n: datetime) -> None: ...

    with pytest.raises(InvalidInput):
        Parameters.for_function(step).normalise(recorded)


def test_decoded_arguments_are_fresh_each_time() -> None:
    def step(notes: list[str], more: list[int] = []) -> None: ...  # noqa: B006

    parameters = Parameters.for_function(step)
    data = parameters.encode_arguments((["a"],), {})
    first, second = parameters.decode_arguments(data)[0], parameters.decode_arguments(data)[0]
    assert first == second == [["a"], []]
    assert first[0] is not second[0]
    assert parameters.decode_arguments(b'{"notes":[]}')[0][1] is not parameters.decode_arguments(b'{"notes":[]}')[0][1]


def test_input_by_keyword_is_taken_as_json_or_as_objects() -> None:
    parameters = Parameters.for_function(research, name="agent research")
    from_json = parameters.validate_input({"plan": {"title": "a"}, "question": "q", "when": "2026-01-01T00:00:00Z"})
    from_objects = parameters.validate_input(
        {"question": "q", "plan": Plan(title="a"), "when": datetime(2026, 1, 1, tzinfo=UTC)}
    )
    assert from_json == from_objects
    assert parameters.decode_arguments(from_json)[0] == ["q", Plan(title="a")]


@pytest.mark.parametrize(
    ("given_input", "words"),
    [
        ({"question": "q", "deep": 1}, ["agent a", "'deep'", "'question', 'depth'"]),
        ({}, ["agent a", "'question'", "str", "missing", "no arguments"]),
        ({"question": 5}, ["agent a: question", "str", "int"]),
        ({"question": "q", "depth": "x"}, ["agent a: depth", "int", "str"]),
        ([1], ["agent a", "object", "list"]),
    ],
)
def test_input_that_does_not_fit_names_agent_parameter_expected_and_found(given_input: Any, words: list[str]) -> None:
    def agent(question: str, depth: int = 3) -> None: ...

    with pytest.raises(InvalidInput) as caught:
        Parameters.for_function(agent, name="agent a").validate_input(given_input)
    for word in words:
        assert word in caught.value.message


def test_typed_input_that_does_not_fit_hides_its_values() -> None:
    def agent(plan: Plan) -> None: ...

    with pytest.raises(InvalidInput, match=r"agent a: plan must be Plan: done: ") as caught:
        Parameters.for_function(agent, name="agent a").validate_input({"plan": {"title": "t", "done": "private"}})
    assert "private" not in caught.value.message


def test_aliases_are_taken_from_outside_and_names_are_stored() -> None:
    def agent(who: Aliased) -> None: ...

    parameters = Parameters.for_function(agent)
    assert parameters.validate_input({"who": {"userId": 1}}) == b'{"who":{"user_id":1}}'
    assert parameters.validate_input({"who": {"user_id": 1}}) == b'{"who":{"user_id":1}}'


def test_types_of_an_enclosing_function_are_found() -> None:
    class Local(BaseModel):
        x: int

    def step(value: Local, others: list[Local]) -> Local:
        return value

    parameters = Parameters.for_function(step)
    args, _ = parameters.decode_arguments(parameters.encode_arguments((Local(x=1), [Local(x=2)]), {}))
    assert args == [Local(x=1), [Local(x=2)]]
    assert parameters.result.decode(b'{"x":3}') == Local(x=3)


def test_a_type_defined_after_the_function_is_found_at_first_use() -> None:
    namespace: dict[str, Any] = {"__name__": "later"}
    exec("from __future__ import annotations\ndef step(x: Later): ...", namespace)
    parameters = Parameters.for_function(namespace["step"])
    namespace["Later"] = int
    assert parameters.encode_arguments((1,), {}) == b'{"x":1}'


def test_a_name_that_is_never_found_is_an_error_with_the_way_out() -> None:
    def step(x: Missing) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(DeclarationError, match=r"'Missing'.*TYPE_CHECKING"):
        Parameters.for_function(step).encode_arguments((1,), {})


def test_methods_and_objects_are_refused() -> None:
    class Service:
        def search(self, query: str) -> None: ...

        @classmethod
        def make(cls) -> None: ...

    for thing in (Service.search, Service().search, Service.make, Service, len):
        with pytest.raises(DeclarationError):
            Parameters.for_function(thing)


def test_the_signature_hash_sees_types_and_names_but_not_bodies() -> None:
    def one(a: int, plan: Plan) -> str:
        return "1"

    def two(a: int, plan: Plan) -> str:
        return "2"

    def three(a: int, plan: DetailedPlan) -> str:
        return "1"

    def four(b: int, plan: Plan) -> str:
        return "1"

    assert signature_hash(one) == signature_hash(two)
    assert len({signature_hash(f) for f in (one, three, four)}) == 3


def test_the_signature_hash_is_the_same_in_every_process() -> None:
    program = (
        "from typing import Any, Literal\n"
        "from pydantic import BaseModel\n"
        "from paidonce.values.signatures import signature_hash\n"
        "class Tagged(BaseModel):\n"
        "    tags: set[str] = {'a', 'b', 'c'}\n"
        "def step(a: Tagged, b: Literal['x', 'y'] = 'x', *c: int, **d: Any) -> list[Tagged]: ...\n"
        "print(signature_hash(step))\n"
    )
    assert len({in_another_process(program, seed) for seed in ("1", "2", "3")}) == 1


class Holder(BaseModel):
    held: Any


def test_a_value_from_outside_that_holds_itself_is_refused_and_not_walked_for_ever() -> None:
    cycle: list[object] = [1]
    cycle += [cycle, cycle]
    with pytest.raises(InvalidInput):
        codec_for(Holder).accept({"held": cycle}, "the input")


def test_a_typed_value_that_nests_without_an_end_is_refused_by_its_place() -> None:
    deep: object = 1
    for _ in range(5_000):
        deep = [deep]
    with pytest.raises(NotSerialisable, match="the result"):
        codec_for(Holder).encode(Holder(held=deep), "the result")
    with pytest.raises(InvalidInput, match="the input"):
        codec_for(Holder).accept({"held": deep}, "the input")
    with pytest.raises(InvalidInput, match="the stored one"):
        codec_for(Holder).decode(b'{"held":' + b"[" * 5_000 + b"]" * 5_000 + b"}", "the stored one")
