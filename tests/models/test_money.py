"""Nano-dollars: exact in, exact out, unknown is never zero."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paidonce_models.errors import InvalidInput
from paidonce_models.money import (
    decimal_usd_string,
    nanousd_from_usd,
    split_to_integers,
    usd_from_nanousd,
    usd_string,
)


@pytest.mark.parametrize(
    ("usd", "nanousd"),
    [
        ("0.001234", 1_234_000),
        (Decimal("0.000000001"), 1),
        ("20", 20_000_000_000),
        (3, 3_000_000_000),
        (0.1, 100_000_000),
        ("0", 0),
        ("-0.5", -500_000_000),
    ],
)
def test_us_dollars_become_nano_dollars_exactly(usd: Decimal | str | int | float, nanousd: int) -> None:
    assert nanousd_from_usd(usd) == nanousd


def test_digits_below_a_nano_dollar_are_refused_or_rounded_half_to_even() -> None:
    with pytest.raises(InvalidInput, match="finer than a nano-dollar"):
        nanousd_from_usd("0.0000000005")
    assert nanousd_from_usd("0.0000000005", round_to_nano=True) == 0
    assert nanousd_from_usd("0.0000000015", round_to_nano=True) == 2
    assert nanousd_from_usd(0.1 + 0.2, round_to_nano=True) == 300_000_000


@pytest.mark.parametrize("usd", ["", "1,5", "NaN", "Infinity", float("nan"), True, None, [1]])
def test_what_is_no_amount_of_money_is_refused_with_the_way_out(usd: object) -> None:
    with pytest.raises(InvalidInput, match=r"'0\.002'|unknown"):
        nanousd_from_usd(usd)  # type: ignore[arg-type] # the point of the test


@pytest.mark.parametrize(
    ("nanousd", "unpriced_calls", "shown"),
    [
        (1_234_000, 0, "$0.001234"),
        (1_200_000_000, 3, "≥ $1.20"),
        (None, 0, "unknown"),
        (None, 2, "unknown"),
        (0, 0, "$0.00"),
        (1, 0, "$0.000000001"),
        (1_234_567_890_000_000_000, 0, "$1,234,567,890.00"),
        (-500_000_000, 0, "-$0.50"),
    ],
)
def test_money_is_shown_exactly_and_unknown_money_never_as_zero(
    nanousd: int | None, unpriced_calls: int, shown: str
) -> None:
    assert usd_string(nanousd, unpriced_calls=unpriced_calls) == shown


def test_the_decimal_string_for_machines_has_nine_places() -> None:
    assert decimal_usd_string(1_234_000) == "0.001234000"
    assert decimal_usd_string(-1_500_000_000) == "-1.500000000"
    assert decimal_usd_string(None) is None


@given(st.integers(min_value=-(10**18), max_value=10**18))
def test_nano_dollars_survive_both_ways_of_writing_them(nanousd: int) -> None:
    assert nanousd_from_usd(usd_from_nanousd(nanousd)) == nanousd
    assert nanousd_from_usd(str(decimal_usd_string(nanousd))) == nanousd


@given(st.lists(st.fractions(min_value=0, max_value=10**12, max_denominator=10**7), max_size=6))
def test_split_parts_add_up_to_the_rounded_sum_and_none_is_off_by_one(parts: list[Fraction]) -> None:
    integers = split_to_integers(parts)
    assert sum(integers) == round(sum(parts, Fraction(0)))
    assert all(abs(whole - exact) < 1 for whole, exact in zip(integers, parts, strict=True))
