"""``RateCard``: the prices of one model in one period, prepared for integer arithmetic.

Owns the arithmetic of a call: what is left of each billed unit after the more special
ones are subtracted, times its rate, exact, in integers over one common denominator,
rounded once and split into parts that add up. Pure: knows no price list, no dates and
no clock. What a card cannot charge in full is unpriced, never free.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from paidonce_models.money import split_to_integers
from paidonce_models.usage import Usage

PARTS: Final = ("input", "cache_read", "cache_write", "output", "other")
QUOTED: Final = ("input_tokens", "cache_read_tokens", "cache_write_tokens", "output_tokens")
"""The units whose prices are stored with a call."""
TOKENS_PER_PRICE: Final = 1_000_000
"""Prices are quoted per this many tokens."""
SMALLEST: Final = -1
"""The start of the bracket that every request is in: a tier applies above its start."""

Tiers = Sequence[tuple[int, Fraction]]
"""``(start, nano-dollars per unit)``, the ``SMALLEST`` first: above ``start`` input tokens, all units cost that."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PricedUsage:
    """Money of one call: five parts that add up to ``cost_nanousd``, and the unit prices used.

    Unit prices are nano-dollars per million tokens of the plain kinds (text,
    shortest cache); ``None`` where the model has no such price, in which case
    its tokens were charged at the input price.
    """

    cost_nanousd: int
    input_cost_nanousd: int
    cache_read_cost_nanousd: int
    cache_write_cost_nanousd: int
    output_cost_nanousd: int
    other_cost_nanousd: int
    input_nanousd_per_mtok: int | None
    cache_read_nanousd_per_mtok: int | None
    cache_write_nanousd_per_mtok: int | None
    output_nanousd_per_mtok: int | None
    price_source: str


@dataclass(frozen=True, kw_only=True, slots=True)
class BilledUnit:
    """A unit with a price: its name as a count of ``Usage``, its part of the cost, and its price by size of request.

    ``contains`` are the indexes of the more special units that its count includes; they
    come before it and are charged at their own prices.
    """

    name: str
    part: int
    contains: tuple[int, ...]
    tiers: Tiers


@dataclass(frozen=True, kw_only=True, slots=True)
class Bracket:
    """The prices of requests with more than ``start`` input tokens: ``(name, part, contains, rate)`` of each unit.

    A rate is in units of the card's denominator. ``quoted`` are nano-dollars per million tokens.
    """

    start: int
    units: tuple[tuple[str, int, tuple[int, ...], int], ...]
    quoted: tuple[int | None, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class RateCard:
    """What each unit costs. A rate times a count, divided by ``denominator``, is nano-dollars.

    ``required`` are the counts that must be known, because they cost something.
    ``request_rate`` is charged once per call.
    """

    brackets: tuple[Bracket, ...]
    denominator: int
    request_rate: int
    names: frozenset[str]
    required: frozenset[str]
    price_source: str

    def charge(self, usage: Usage) -> PricedUsage | None:
        """Exact money for ``usage``; ``None`` if a needed count or price is unknown or counts contradict each other.

        Cache tokens without a price of their own cost the input price.
        """
        if not self.covers(usage):
            return None
        counts: dict[str, int | None] = {
            "input_tokens": usage.input_tokens,
            "cache_read_tokens": usage.cache_read_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
            "output_tokens": usage.output_tokens,
            "output_reasoning_tokens": usage.reasoning_tokens,
            **dict(usage.other_units),
        }
        bracket = self.bracket_of(usage.input_tokens or 0)
        rest: list[int] = []
        parts = [0, 0, 0, 0, self.request_rate]
        for name, part, contains, rate in bracket.units:
            count = counts.get(name) or 0
            for place in contains:
                count -= rest[place]
            if count < 0:
                return None  # For example more audio than input: the tokens are kept, the price is unknown.
            rest.append(count)
            parts[part] += count * rate
        if self.denominator != 1:
            parts = split_to_integers([Fraction(part, self.denominator) for part in parts])
        return PricedUsage(
            cost_nanousd=sum(parts),
            input_cost_nanousd=parts[0],
            cache_read_cost_nanousd=parts[1],
            cache_write_cost_nanousd=parts[2],
            output_cost_nanousd=parts[3],
            other_cost_nanousd=parts[4],
            input_nanousd_per_mtok=bracket.quoted[0],
            cache_read_nanousd_per_mtok=bracket.quoted[1],
            cache_write_nanousd_per_mtok=bracket.quoted[2],
            output_nanousd_per_mtok=bracket.quoted[3],
            price_source=self.price_source,
        )

    def covers(self, usage: Usage) -> bool:
        """Whether every count that the price needs is known, and every known count has a price."""
        for name, count in (("input_tokens", usage.input_tokens), ("output_tokens", usage.output_tokens)):
            if count is None:
                if name in self.required:
                    return False
            elif count and name not in self.names and not any(other in self.names for other, _ in usage.other_units):
                return False
        return not (usage.output_tokens is None and usage.reasoning_tokens and "output_tokens" in self.names)

    def bracket_of(self, input_tokens: int) -> Bracket:
        """The bracket of a request of that size: above a tier's start, the price of all its tokens changes."""
        brackets = self.brackets
        for index in range(len(brackets) - 1, 0, -1):
            if input_tokens > brackets[index].start:
                return brackets[index]
        return brackets[0]


def make_rate_card(
    units: Sequence[BilledUnit], *, price_source: str, request_nanousd: Fraction | int = 0
) -> RateCard | None:
    """A card from units with prices, the more special before the plain ones; ``None`` if nothing has a price."""
    fee = Fraction(request_nanousd)
    if not units and not fee:
        return None
    starts = sorted({start for unit in units for start, _ in unit.tiers} | {SMALLEST})
    denominator = math.lcm(fee.denominator, *(rate.denominator for unit in units for _, rate in unit.tiers))
    brackets = []
    for start in starts:
        exact = {unit.name: price_above(unit.tiers, start) for unit in units}
        quoted = [exact.get(name) for name in QUOTED]
        brackets.append(
            Bracket(
                start=start,
                units=tuple(
                    (unit.name, unit.part, unit.contains, int(exact[unit.name] * denominator)) for unit in units
                ),
                quoted=tuple(None if price is None else round(price * TOKENS_PER_PRICE) for price in quoted),
            )
        )
    return RateCard(
        brackets=tuple(brackets),
        denominator=denominator,
        request_rate=int(fee * denominator),
        names=frozenset(unit.name for unit in units),
        required=frozenset(unit.name for unit in units if len(unit.tiers) > 1 or unit.tiers[0][1]),
        price_source=price_source,
    )


def price_above(tiers: Tiers, start: int) -> Fraction:
    """The price in requests with just more than ``start`` input tokens."""
    return [price for begins, price in tiers if begins <= start][-1]
