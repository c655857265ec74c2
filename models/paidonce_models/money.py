"""Money as integer nano-dollars: 1 USD is 1,000,000,000.

Owns the conversion from and to what people write, and the one way to round and split
an exact sum. Holds no price and no clock, and never uses binary floating point.
Unknown money is ``None`` and is never shown as zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from fractions import Fraction

from paidonce_models.errors import InvalidInput

NANOUSD_PER_USD = 1_000_000_000
LARGEST_EXPONENT = 40
"""Far beyond any price or sum; the exact fraction of 1e999999999 would not fit into memory."""


def exact_amount(value: Decimal | str | int | float, what: str = "amount of money") -> Fraction:
    """The number that a person wrote, exactly; a float counts as the digits that Python prints for it.

    Raises ``InvalidInput`` naming ``what`` if it is not a finite number.
    """
    if isinstance(value, bool) or not isinstance(value, Decimal | str | int | float):
        raise InvalidInput(
            f"{what}: expected a Decimal, a string, an int or a float, got {type(value).__name__}; write '0.002'"
        )
    try:
        number = Decimal(repr(value) if isinstance(value, float) else value)
    except InvalidOperation:
        raise InvalidInput(f"{what}: {value!r} is not a decimal number; write it like '0.002'") from None
    if not number.is_finite():
        raise InvalidInput(f"{what}: {value!r} is not a finite number; leave it out if it is unknown")
    if number and abs(number.adjusted()) > LARGEST_EXPONENT:
        raise InvalidInput(f"{what}: {str(value)[:50]} is not a plausible amount; check the exponent")
    return Fraction(number)


def nanousd_from_usd(usd: Decimal | str | int | float, *, round_to_nano: bool = False) -> int:
    """US dollars as integer nano-dollars, exactly.

    A float counts as the digits Python prints for it. Digits below a
    nano-dollar are refused, or rounded half to even with ``round_to_nano``
    (for the sums that gateways report).
    """
    exact = exact_amount(usd) * NANOUSD_PER_USD
    if exact.denominator != 1 and not round_to_nano:
        raise InvalidInput(f"amount of money: {usd!r} USD is finer than a nano-dollar; give at most 9 decimal places")
    return round(exact)


def usd_from_nanousd(nanousd: int) -> Decimal:
    """Integer nano-dollars as exact US dollars."""
    return Decimal(nanousd).scaleb(-9)


def decimal_usd_string(nanousd: int | None) -> str | None:
    """US dollars for machines: all nine places, no currency sign, ``None`` for unknown."""
    if nanousd is None:
        return None
    whole, rest = divmod(abs(nanousd), NANOUSD_PER_USD)
    return f"{'-' if nanousd < 0 else ''}{whole}.{rest:09d}"


def usd_string(nanousd: int | None, *, unpriced_calls: int = 0) -> str:
    """US dollars for people, exact, with at least two places: ``$0.001234``.

    If the price of some calls is unknown, the sum is a lower bound, ``≥ $1.20``;
    if nothing is known, it is ``unknown``.
    """
    if nanousd is None:
        return "unknown"
    whole, rest = divmod(abs(nanousd), NANOUSD_PER_USD)
    places = f"{rest:09d}".rstrip("0").ljust(2, "0")
    return f"{'≥ ' if unpriced_calls > 0 else ''}{'-' if nanousd < 0 else ''}${whole:,}.{places}"


def split_to_integers(parts: Sequence[Fraction]) -> list[int]:
    """Round exact parts to integers that add up to their sum rounded half to even.

    Largest remainder: each part is rounded down and the missing units go to the parts
    with the largest remainders, the earlier first, so that no part is off by one unit or
    more.
    """
    floors = [part.numerator // part.denominator for part in parts]
    missing = round(sum(parts, Fraction(0))) - sum(floors)
    order = sorted(range(len(parts)), key=lambda index: (floors[index] - parts[index], index))
    for index in order[:missing]:
        floors[index] += 1
    return floors
