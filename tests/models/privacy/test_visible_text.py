"""What cannot be seen is shown as an escape, and a spreadsheet's cell is no formula."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paidonce_models.privacy.visible_text import csv_cell, visible, visible_lines

CATEGORIES = ("Cc", "Cf", "Cs", "Zl", "Zp")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("one\ntwo\r\tthree", "one\\ntwo\\r\\tthree"),
        ("\x9b2J\x7f\x00", "\\x9b2J\\x7f\\x00"),
        ("safe\u202etxt.exe\u2066", "safe\\u202etxt.exe\\u2066"),
        ("a\u2028b\u2029c\u200bd\ufeff", "a\\u2028b\\u2029c\\u200bd\\ufeff"),
        ("half \ud800 tag \U000e0041", "half \\ud800 tag \\U000e0041"),
        ("naïve 日本 🙂 → ≥", "naïve 日本 🙂 → ≥"),
    ],
)
def test_what_a_terminal_obeys_or_hides_is_written_out(text: str, expected: str) -> None:
    assert visible(text) == expected


def test_lines_keep_their_line_feeds_and_nothing_else() -> None:
    assert visible_lines("a\r\n  b\tc\n\x1b]0;t\x07\u2028") == "a\n  b\\tc\n\\x1b]0;t\\x07\\u2028"


@given(st.text(st.characters(exclude_categories=[])))
def test_nothing_unsafe_is_left_and_once_is_enough(text: str) -> None:
    shown = visible(text)
    assert not any(unicodedata.category(character) in CATEGORIES for character in shown)
    assert visible(shown) == shown
    assert not any(unicodedata.category(each) in CATEGORIES for each in visible_lines(text) if each != "\n")


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1+cmd", "@SUM(A1)", "\t=1", "\r=1", "  =1", "\uff1d1"])
def test_a_cell_that_could_be_a_formula_is_a_text(text: str) -> None:
    assert csv_cell(text) == f"'{text}"


@pytest.mark.parametrize("value", [-5, 0, 1.5, None, "plain", "a=b", ""])
def test_other_cells_stay(value: object) -> None:
    assert csv_cell(value) == value
