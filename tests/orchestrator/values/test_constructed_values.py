"""Values that their own types would refuse or change come back exactly as they were, or are refused."""

from __future__ import annotations

import dataclasses
import enum
import itertools
from dataclasses import InitVar, dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import PurePosixPath
from typing import Annotated, Any, Generic, Literal, NamedTuple, Required, TypedDict, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, RootModel, SecretStr, computed_field, field_validator

from paidonce.values.codecs import codec_for
from paidonce.values.kept import LARGEST_KEPT, keep, keep_encoded
from paidonce.values.parameters import Parameters
from paidonce.values.rendering import LONGEST_TEXT, data_of_dataclass
from paidonce.values.stored_form import TYPES, VALUE, natural_json
from paidonce_models.errors import InvalidInput, NotSerialisable
from paidonce_models.payloads.encoding import decode_json

counter = itertools.count()
T = TypeVar("T")


@dataclass
class Scaled:
    value: int
    scale: InitVar[int] = 2

    def __post_init__(self, scale: int) -> None:
        self.value *= scale


@dataclass
class Needy:
    value: int
    needed: InitVar[int]

    def __post_init__(self, needed: int) -> None:
        self.value += needed


@dataclass
class Counted:
    name: str
    number: int = field(init=False)
    seen: int = field(default_factory=lambda: next(counter), compare=False)

    def __post_init__(self) -> None:
        self.number = next(counter)
        self.beside = f"{self.name}-{self.number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    total: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "total", self.total + 1)


class Colour(enum.Enum):
    RED = "red"
    SCARLET = "red"
    DEEP = (1, 2)


class Level(enum.IntEnum):
    LOW = 1


class Rights(enum.Flag):
    READ = 1
    WRITE = 2


class Point(NamedTuple):
    x: int
    label: Any = None


class Loose(TypedDict, total=False):
    text: Required[str]
    at: int


class Louder(BaseModel):
    title: str

    @field_validator("title")
    @classmethod
    def _louder(cls, title: str) -> str:
        return title + "!"


class Hiding(BaseModel):
    shown: int = Field(alias="shownAs")
    _hidden: int = PrivateAttr(default=0)
    _handle: Any = PrivateAttr(default=None)

    @computed_field  # type: ignore[prop-decorator]  # pydantic's way
    @property
    def double(self) -> int:
        return self.shown * 2


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"


class Holder(BaseModel):
    model_config = ConfigDict(extra="allow")
    any_: Any = None
    pet: Annotated[Cat | Dog, Field(discriminator="kind")] = Cat()
    when: datetime | str = ""
    flag: int | bool = 0
    raw: bytes = b""
    number: int = 0


class Box(BaseModel, Generic[T]):
    inner: T


class Names(RootModel[list[str]]):
    pass


def hiding(hidden: int, handle: object = None) -> Hiding:
    made = Hiding(shownAs=1)
    made._hidden, made._handle = hidden, handle
    return made


def described(value: object) -> object:
    """All that is in a value, whatever its equality leaves out."""
    if isinstance(value, BaseModel):
        private = {name: each for name, each in (value.__pydantic_private__ or {}).items() if name != "_handle"}
        members = {name: described(each) for name, each in value.__dict__.items()}
        return type(value), members, described(value.model_extra or {}), private
    if dataclasses.is_dataclass(value):
        return type(value), {name: described(each) for name, each in data_of_dataclass(value).items()}
    if isinstance(value, dict):
        return {name: described(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value), [described(each) for each in value]
    return type(value), value if value == value else repr(value)


VALUES: list[tuple[object, Any]] = [
    (Scaled, Scaled(2, scale=3)),
    (Scaled, Scaled(2)),
    (Needy, Needy(1, needed=4)),
    (Counted, Counted("a")),
    (list[Counted], [Counted("a"), Counted("b")]),
    (Frozen, Frozen(total=1)),
    (Colour, Colour.SCARLET),
    (Colour, Colour.DEEP),
    (Rights, Rights.READ | Rights.WRITE),
    (Point, Point(1, datetime(2026, 1, 1))),
    (Louder, Louder(title="a")),
    (Hiding, hiding(5)),
    (Hiding, hiding(5, handle=object())),
    (Holder, Holder(any_=Cat())),
    (Holder, Holder(any_=[Counted("x"), {"at": datetime(2026, 1, 1, tzinfo=UTC)}])),
    (Holder, Holder(pet=Dog(), when=datetime(2026, 1, 1), flag=True)),
    (Holder, Holder(when="2026-01-01T00:00:00", flag=1, raw=b"\x00\xff")),
    (Holder, Holder.model_construct(pet={"kind": "fish"}, number="seven", more=datetime(2026, 1, 1))),
    (Holder, Holder.model_construct(number=True)),
    (Box[Cat], Box[Cat](inner=Cat.model_construct(kind="lion"))),
    (Names, Names.model_construct([1, None])),
    (Cat | None, Cat.model_construct(kind="lion")),
]
UNPROMISED: list[Any] = [
    *(each for _, each in VALUES),
    {"at": datetime(2026, 1, 1), "of": {1, 3, 2}, "in": (1, [date(2026, 1, 2)])},
    {1: "a", "b": {None: 1}},
    [Decimal("1.10"), UUID(int=5), timedelta(days=2, microseconds=7), b"\xff", bytearray(b"a"), frozenset({"a"})],
    [float("nan"), float("-inf"), 1.0, 1, True, None, "\x00", "\ud800", 2**20_000],
    [PurePosixPath("/a"), Level.LOW, Colour.RED],
    datetime(2026, 7, 1, 12, tzinfo=ZoneInfo("Europe/Rome")),
    {VALUE: 1, TYPES: None},
]


@pytest.mark.parametrize(
    ("annotation", "value"), VALUES, ids=lambda value: getattr(value, "__name__", type(value).__name__)
)
def test_a_value_of_its_annotated_type_comes_back_as_it_was(annotation: object, value: object) -> None:
    codec = codec_for(annotation)
    data = codec.encode(value, "value")
    back = codec.decode(data)
    assert described(back) == described(value)
    assert codec.encode(back, "value") == data
    assert described(codec.decode(data)) == described(value), "each time"


@pytest.mark.parametrize("value", UNPROMISED, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("annotation", [object, Any])
def test_a_result_of_which_nothing_is_promised_may_be_anything_that_comes_back(annotation: object, value: Any) -> None:
    codec = codec_for(annotation)
    data = codec.encode_result(value, "value")
    back = codec.decode(data)
    assert described(back) == described(value)
    assert codec.encode_result(back, "value") == data


def test_a_typed_dict_keeps_what_it_does_not_name() -> None:
    value = {"text": "a", "more": [1]}
    assert codec_for(Loose).decode(codec_for(Loose).encode(value, "value")) == value


def test_a_reader_without_the_code_sees_plain_json() -> None:
    data = codec_for(object).encode_result({"at": datetime(2026, 1, 1, tzinfo=UTC), "cat": Cat()}, "value")
    assert natural_json(decode_json(data)) == {"at": "2026-01-01T00:00:00Z", "cat": {"kind": "cat"}}


@dataclass
class Keyed:
    name: str
    token: SecretStr


class Excluding(BaseModel):
    secret: str = Field(default="", exclude=True)


@pytest.mark.parametrize("value", [Keyed("a", SecretStr("hush")), Excluding(secret="hush"), {"a": SecretStr("hush")}])
def test_secrets_are_not_written(value: object) -> None:
    annotation = type(value) if not isinstance(value, dict) else object
    with pytest.raises(NotSerialisable):
        codec_for(annotation).encode_result(value, "value")
    assert b"hush" not in keep(value).data


class Order(BaseModel):
    amount: int

    @field_validator("amount")
    @classmethod
    def _positive(cls, amount: int) -> int:
        if amount < 0:
            raise ValueError("below 0")
        return amount


def test_a_producer_cannot_pass_by_the_validators_of_an_input() -> None:
    def takes(order: Order, rest: Any = None) -> None: ...

    parameters = Parameters.for_function(takes)
    forged = parameters.encode_arguments((Order.model_construct(amount=-5),), {})
    with pytest.raises(InvalidInput, match="order"):
        parameters.decode_arguments(forged, from_outside=True)
    with pytest.raises(InvalidInput, match="order"):
        parameters.validate_input(decode_json(forged))  # type: ignore[arg-type]  # an object
    with pytest.raises(NotSerialisable, match="below 0"):
        parameters.validate_input({"order": Order.model_construct(amount=-5)})
    loose = {VALUE: {"amount": -5}, TYPES: {"t": "model", "c": "os:system"}}
    args, _ = parameters.decode_arguments(
        parameters.validate_input({"order": {"amount": 1}, "rest": loose}), from_outside=True
    )
    assert args[1] == loose


@pytest.mark.parametrize("name", ["os:system", "os:environ", "subprocess:Popen", "builtins:eval", "nowhere:Gone"])
@pytest.mark.parametrize("kind", ["model", "dataclass", "enum", "scalar", "namedtuple"])
def test_only_classes_of_data_are_made_again(name: str, kind: str) -> None:
    stored = f'{{"{VALUE}":{{}},"{TYPES}":{{"t":"{kind}","c":"{name}","n":"x"}}}}'.encode()
    with pytest.raises(InvalidInput):
        codec_for(object).decode(stored)


def test_whatever_is_kept_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paidonce.values.rendering.MOST_NODES", 20_000)
    itself: list[Any] = []
    itself.append(itself)
    wide: Any = "x"
    for _ in range(60):
        wide = [wide, wide] if len(wide) < 3 else [wide]
    for _ in range(40):
        wide = [wide, wide]
    deep: Any = "x"
    for _ in range(3_000):
        deep = [deep]

    class Raising:
        def __getattribute__(self, name: str) -> Any:
            raise RuntimeError(name)

    for value in (itself, deep, object(), Raising(), open, (each for each in "a"), "x" * 10, wide):
        kept = keep(value)
        assert len(kept.data) < 100_000_000
        decode_json(kept.data)
    assert keep_encoded(b'"a"').data == b'{"%b":"a","%b":null}' % (VALUE.encode(), TYPES.encode())
    assert len(keep_encoded(b'"' + b"x" * LARGEST_KEPT + b'"').data) < 2 * LONGEST_TEXT
