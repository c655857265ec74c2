"""Durations: what may be written, and that writing and reading are each other's inverse."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paidonce.policies.durations import LONGEST_SECONDS, duration_text, parse_duration


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("500ms", 0.5),
        ("10s", 10.0),
        ("2m", 120.0),
        ("1h30m", 5400.0),
        ("7d", 604_800.0),
        ("1d2h3m4s5ms", 93_784.005),
        ("1.5h", 5400.0),
        ("0s", 0.0),
        (" 10s ", 10.0),
        ("30", 30.0),
        (30, 30.0),
        (0.25, 0.25),
        (timedelta(minutes=2), 120.0),
    ],
)
def test_durations_are_read_as_seconds(written: object, seconds: float) -> None:
    assert parse_duration(written) == seconds


@pytest.mark.parametrize(
    "written",
    ["", "s", "1:30", "10 s", "-1s", "1m1h", "1s1s", "ten", "1e3", "5w", "१s", True, None, [], -1, float("nan")],
)
def test_what_is_no_duration_is_refused(written: object) -> None:
    with pytest.raises(ValueError, match="a duration"):
        parse_duration(written)


@pytest.mark.parametrize("written", ["3651d", 10**400, float("inf"), "9" * 400 + "s", timedelta(days=99_999)])
def test_what_nobody_waits_for_is_refused(written: object) -> None:
    with pytest.raises(ValueError, match="at most ten years"):
        parse_duration(written)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.5, "500ms"), (90, "1m30s"), (604_800, "7d"), (0, "0s"), (0.0001, "0.0001s"), (1.2345, "1.2345s")],
)
def test_durations_are_written_the_short_way(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


@given(st.one_of(st.floats(0, LONGEST_SECONDS), st.integers(0, 10**11).map(lambda milliseconds: milliseconds / 1000)))
def test_a_duration_that_is_written_and_read_again_is_the_same(seconds: float) -> None:
    assert parse_duration(duration_text(seconds)) == seconds
