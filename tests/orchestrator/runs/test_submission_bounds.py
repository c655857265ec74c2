"""Whatever stands where a producer's values stand, a submission is taken or refused with an error that can be read."""

from __future__ import annotations

from typing import Any

import pytest

from paidonce.runs.new_run import new_run
from paidonce.settings import Settings
from paidonce_models.errors import PaidonceError

SETTINGS = Settings.model_construct()


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


def cycle() -> list[Any]:
    value: list[Any] = [1]
    value += [value, value]
    return value


STRANGE: dict[str, Any] = {
    "none": None,
    "large": 10**30,
    "digits": 10**5_000,
    "infinite": float("inf"),
    "nan": float("nan"),
    "long": "x" * 1_000_000,
    "half a pair": "\ud800",
    "nul": "a\x00",
    "deep": nested(300),
    "deeper": nested(5_000),
    "cycle": cycle(),
    "bytes": b"x" * 1_000_000,
    "number as key": {1: 2},
    "long key": {"k" * 1_000_000: 1},
    "object": object(),
    "many": {str(number): number for number in range(30_000)},
}


@pytest.mark.parametrize("value", STRANGE.values(), ids=STRANGE.keys())
@pytest.mark.parametrize("place", ["agent", "given", "key", "tags", "priority", "queue"])
def test_a_strange_value_is_taken_or_refused_and_never_breaks_the_producer(place: str, value: Any) -> None:
    for each in (value, {"a": value}):
        arguments = {"agent": "shop", "given": {}, "key": None, "tags": None, "priority": 5, "queue": None, place: each}
        try:
            new_run(SETTINGS, arguments.pop("agent"), arguments.pop("given"), **arguments)
        except PaidonceError as refused:
            assert len(refused.message) < 2_000
