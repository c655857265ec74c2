"""Merging: key by key, by precedence, and what the merged keys make of a policy."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paidonce.policies.keys import FIELDS, KEYS, PARTS, default_value, value_in
from paidonce.policies.precedence import (
    DEFAULT_SOURCE,
    Entry,
    Layer,
    built,
    complete,
    contradictions,
    merged,
    written_keys,
)
from paidonce.policies.schema import PolicySection

OFF = Entry(value=False, source=DEFAULT_SOURCE)
ON = Entry(value=True, source=DEFAULT_SOURCE)

VALUES: dict[str, st.SearchStrategy[Any]] = {
    "timeout.attempt": st.floats(1, 9),
    "timeout.total": st.floats(10, 99),
    "retry.max_attempts": st.integers(1, 9),
    "retry.backoff": st.sampled_from(["exponential", "constant"]),
    "retry.base": st.floats(0, 9),
    "retry.cap": st.floats(10, 99),
    "retry.jitter": st.sampled_from(["full", "none"]),
    "retry.retry_on": st.sampled_from([(), ("timeout",)]),
    "retry.honor_retry_after": st.booleans(),
    "retry_budget.ratio": st.floats(0, 1),
    "retry_budget.floor_per_second": st.floats(0, 9),
    "breaker.consecutive_failures": st.integers(1, 9),
    "breaker.window": st.floats(1, 9),
    "breaker.min_calls": st.integers(1, 9),
    "breaker.failure_rate": st.floats(0.1, 1),
    "breaker.open_for.base": st.floats(1, 9),
    "breaker.open_for.cap": st.floats(10, 99),
    "breaker.open_for.jitter": st.floats(0, 0.9),
    "breaker.probes": st.integers(1, 9),
    "breaker.ignore": st.sampled_from([(), ("http:404",)]),
    "breaker.when_open": st.sampled_from(["park", "raise", "fail"]),
    "breaker.when_store_down": st.sampled_from(["allow", "refuse"]),
    "park.max": st.floats(1, 9),
}


def keys_of(source: str) -> st.SearchStrategy[Layer]:
    """A layer with some keys."""
    switched = {**VALUES, "breaker": st.booleans(), "retry_budget": st.booleans()}
    return st.fixed_dictionaries({}, optional=switched).map(
        lambda values: {path: Entry(value=value, source=source) for path, value in values.items()}
    )


def test_every_key_has_a_field_and_every_field_a_key() -> None:
    paths = {key.path for key in KEYS.values() if not key.is_section}
    assert set(FIELDS) == set(VALUES) == paths - {"policy", "circuit"}
    fields = {(part, name) for part, kind in PARTS.items() for name in kind.__dataclass_fields__}
    assert fields == {(path.partition(".")[0], name) for path, name in FIELDS.items()}


@given(layers=st.tuples(*(keys_of(f"place {number}") for number in range(4))), tool=st.booleans())
def test_each_key_is_that_of_the_first_place_that_has_it(layers: tuple[Layer, ...], tool: bool) -> None:
    entries = complete(merged(layers), breaker=ON if tool else OFF, circuit="m.a")
    policy = built(entries)

    def first(path: str, default: object) -> Entry:
        """The reference: ask one place after the other."""
        for each in layers:
            if path in each:
                return each[path]
        return Entry(value=default, source=DEFAULT_SOURCE)

    asked = any(path.startswith("retry.") for each in layers for path in each)
    attempts = first("retry.max_attempts", 3 if asked else 1)
    assert policy.retry.max_attempts == attempts.value
    on = {
        "breaker": first("breaker", tool).value,
        "retry_budget": attempts.value != 1 and first("retry_budget", True).value,
    }
    assert (policy.breaker is not None, policy.retry_budget is not None) == (on["breaker"], on["retry_budget"])
    for path in VALUES:
        part = path.partition(".")[0]
        if not on.get(part, True):
            assert path not in entries
            continue
        expected = attempts if path == "retry.max_attempts" else first(path, default_value(path))
        assert (value_in(policy, path), entries[path].source) == (expected.value, expected.source)


@pytest.mark.parametrize(
    ("written", "path", "value"),
    [
        ({"retry.base": 60.0}, "retry.cap", 60.0),
        ({"retry.base": 1.0}, "retry.cap", 30.0),
        ({"breaker.open_for.base": 900.0}, "breaker.open_for.cap", 900.0),
        ({"timeout.attempt": 900.0}, "timeout.total", None),
    ],
)
def test_what_is_not_written_gives_way_to_what_is(written: dict[str, object], path: str, value: object) -> None:
    entries = complete(
        {key: Entry(value=each, source="here") for key, each in written.items()}, breaker=ON, circuit="c"
    )
    assert entries[path] == Entry(value=value, source=DEFAULT_SOURCE)


def test_writing_of_retries_asks_for_some() -> None:
    def attempts(*paths: str) -> object:
        written = {path: Entry(value=default_value(path), source="here") for path in paths}
        return complete(written, breaker=ON, circuit="c")["retry.max_attempts"].value

    assert (attempts(), attempts("retry_budget.ratio"), attempts("retry.base")) == (1, 1, 3)


def test_what_contradicts_itself_is_told_with_both_sources() -> None:
    entries = {"retry.cap": Entry(value=1.0, source="here"), "retry.base": Entry(value=60.0, source="there")}
    assert contradictions(entries) == [
        "retry.cap is 1s (here) and retry.base is 1m (there); expected retry.cap to be at least retry.base, change one"
    ]
    assert contradictions({"retry.cap": Entry(value=1.0, source="here")}) == []


def test_a_key_inside_a_part_switches_it_on() -> None:
    def written(**keys: object) -> dict[str, object]:
        return written_keys(PolicySection.model_validate(keys))

    assert written(breaker={"probes": 2}) == {"breaker": True, "breaker.probes": 2}
    assert written(breaker={}) == written(breaker=True) == {"breaker": True}
    assert written(breaker=False, retry_budget=False) == {"breaker": False, "retry_budget": False}
    assert written(retry={}) == {}
