"""Items on Redis: an envelope that kombu cannot trip over, or one error."""

from __future__ import annotations

import base64
import json
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paidonce.broker.envelopes import UnreadableEnvelope, delivered_from, read_item
from tests.fuzz.shapes import broken_envelope, raw_item

LIMIT = 1_000_000
GOOD: dict[str, Any] = {
    "body": base64.b64encode(b"[[], {}, {}]").decode(),
    "headers": {"task": "x", "id": "1"},
    "content-type": "application/json",
    "content-encoding": "utf-8",
    "properties": {
        "body_encoding": "base64",
        "priority": 3,
        "delivery_tag": "t",
        "delivery_info": {"exchange": "celery.pidbox", "routing_key": "another.queue", "redelivered": True},
    },
}


def test_what_an_envelope_says_about_its_place_and_its_tag_is_not_believed() -> None:
    made = delivered_from(read_item(json.dumps(GOOD), limit_bytes=LIMIT), exchange="", routing_key="paidonce.default")
    info = made["properties"]["delivery_info"]
    assert (info["exchange"], info["routing_key"], info["redelivered"]) == ("", "paidonce.default", True)
    assert made["properties"]["delivery_tag"] != "t"
    assert {name: made[name] for name in ("body", "headers")} == {name: GOOD[name] for name in ("body", "headers")}


@pytest.mark.parametrize(
    ("item", "said"),
    [
        (b"", "no JSON"),
        (b"not even JSON", "no JSON: Expecting value at character 0"),
        (b"\xff\xfe", "no JSON"),
        (b"7", "JSON int"),
        (b"[]", "JSON list"),
        (b"null", "NoneType"),
        (b"[" * 100_000, "RecursionError"),
        (b'{"a":' * 100_000, "RecursionError"),
        (b"1" * 6_000, "ValueError"),
        (b"{}", "properties is absent"),
        (b'{"properties": 7}', "properties is int"),
        (b'{"properties": {}, "headers": []}', "headers is list"),
        (b'{"properties": {}, "body": 7}', "body is int"),
        (b'{"properties": {"body_encoding": "rot13"}}', "body_encoding"),
        (b'{"properties": {"body_encoding": []}}', "body_encoding"),
        (b'{"properties": {}, "content-type": 7}', "content-type is int"),
        (b'"' + b"x" * LIMIT + b'"', f"the limit is {LIMIT}"),
    ],
)
def test_what_is_no_envelope_is_refused_and_named(item: bytes, said: str) -> None:
    with pytest.raises(UnreadableEnvelope, match=said):
        read_item(item, limit_bytes=LIMIT)


@pytest.mark.parametrize("priority", [None, "high", "7 ", [], {}, float("inf"), -1, 10**30, True, 2.5])
def test_an_odd_priority_is_the_default_as_in_kombu(priority: object) -> None:
    made = {**GOOD, "properties": {**GOOD["properties"], "priority": priority}}
    assert read_item(json.dumps(made), limit_bytes=LIMIT)["properties"]["priority"] == 0


def test_a_priority_in_digits_is_read() -> None:
    made = {**GOOD, "properties": {**GOOD["properties"], "priority": "6"}}
    assert read_item(json.dumps(made), limit_bytes=LIMIT)["properties"]["priority"] == 6


@given(st.one_of(st.binary(max_size=200), st.integers(0, 2**32).map(lambda seed: raw_item(Random(seed)).raw)))
def test_bytes_are_an_envelope_or_one_error(item: bytes) -> None:
    try:
        made = read_item(item, limit_bytes=LIMIT)
    except UnreadableEnvelope as error:
        assert len(error.message) < 300
    else:
        assert set(GOOD) <= set(made)


@given(st.integers(0, 2**32))
def test_a_broken_envelope_is_mended_or_one_error(seed: int) -> None:
    try:
        made = read_item(broken_envelope(Random(seed)).raw, limit_bytes=LIMIT)
    except UnreadableEnvelope:
        return
    made = delivered_from(made, exchange="", routing_key="q")
    assert isinstance(made["body"], str) and isinstance(made["headers"], dict)
    assert type(made["properties"]["priority"]) is int
    assert made["properties"]["delivery_info"]["routing_key"] == "q"
