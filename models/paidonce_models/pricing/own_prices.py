"""Your own price rows: negotiated rates and self-hosted models, dated.

Owns the row's value, its validation and which row applies at an instant. Rows are
never overwritten: a new price is a new row with a later start, so that a call of last
month keeps last month's price. Pure: no clock, no store.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction
from itertools import pairwise
from typing import Final

from paidonce_models.errors import InvalidInput
from paidonce_models.pricing.rate_card import SMALLEST, TOKENS_PER_PRICE, BilledUnit, RateCard, make_rate_card

PRICE_NAMES: Final = ("input", "cache_read", "cache_write", "output")
LARGEST_NANOUSD_PER_MTOK: Final = 10**15
"""A million US dollars per million tokens must be a wrong unit."""
LONGEST_NAME: Final = {"provider": 100, "model": 200, "note": 500}
"""Widths of the columns of ``price_rows``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PriceRow:
    """Prices of one model from an instant on, in nano-dollars per million tokens.

    ``model`` is a full name, or a prefix followed by ``*``; ``provider`` ``None`` means
    any. Names are kept in lower case, because case never distinguishes models. If a cache
    price is left out, those tokens cost the input price. If the output price is left out,
    there is none: a call with output tokens is then unpriced, one without (an embedding)
    is not. Nothing is filled in from the price list, so that a call has one source.
    Without ``valid_until`` the row is valid until the next row of that model. ``id`` is
    that of the stored row, if it is stored.
    """

    model: str
    valid_from: datetime
    input_nanousd_per_mtok: int
    provider: str | None = None
    valid_until: datetime | None = None
    cache_read_nanousd_per_mtok: int | None = None
    cache_write_nanousd_per_mtok: int | None = None
    output_nanousd_per_mtok: int | None = None
    note: str = ""
    id: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", self.model.strip().lower())
        provider = None if self.provider is None else self.provider.strip().lower()
        object.__setattr__(self, "provider", None if provider in ("", "*") else provider)
        if not self.model.strip("*").strip() or "*" in self.model[:-1]:
            raise InvalidInput(f"price row for model {self.model!r}: give a name, or a beginning followed by one '*'")
        if self.provider is not None and "*" in self.provider:
            raise InvalidInput(f"price row for provider {self.provider!r}: give its whole name, or '*' alone for any")
        for name, limit in LONGEST_NAME.items():
            value = getattr(self, name) or ""
            if len(value) > limit or "\0" in value:
                raise InvalidInput(
                    f"price row for model {self.model[:50]!r}: {name} has {len(value)} characters; "
                    f"at most {limit} are kept, and none of them may be NUL"
                )
        for instant in (self.valid_from, self.valid_until):
            if instant is not None and instant.tzinfo is None:
                raise InvalidInput(f"{self.label}: {instant.isoformat()} has no time zone; add one, for example +00:00")
        if self.valid_until is not None and self.valid_until <= self.valid_from:
            raise InvalidInput(
                f"{self.label}: valid_until {self.valid_until.isoformat()} must be after "
                f"valid_from {self.valid_from.isoformat()}"
            )
        for name in PRICE_NAMES:
            price = getattr(self, f"{name}_nanousd_per_mtok")
            if price is not None and price < 0:
                raise InvalidInput(f"{self.label}: {name}_nanousd_per_mtok ({price}) cannot be below 0")
            if price is not None and price > LARGEST_NANOUSD_PER_MTOK:
                raise InvalidInput(
                    f"{self.label}: {name}_nanousd_per_mtok ({price}) cannot exceed {LARGEST_NANOUSD_PER_MTOK}; "
                    "prices are US dollars per million tokens"
                )

    @property
    def name(self) -> str:
        """Provider and model, ``*`` for any provider."""
        return f"{self.provider or '*'}/{self.model}"

    @property
    def label(self) -> str:
        """The row's name in messages and ``price_source``; a stored row's id comes first."""
        if self.id is not None:
            return f"own:{self.id} {self.name}"
        return f"own {self.name} from {self.valid_from.date().isoformat()}"

    @property
    def dates(self) -> str:
        """The row's period of validity, for messages."""
        until = "open" if self.valid_until is None else self.valid_until.isoformat()
        return f"{self.valid_from.isoformat()} to {until}"

    def matches(self, provider: str | None, model: str) -> bool:
        """Whether the row applies to this provider and model, ignoring case."""
        if self.provider is not None and (provider is None or self.provider != provider.lower()):
            return False
        asked = model.lower()
        return asked.startswith(self.model[:-1]) if self.model.endswith("*") else asked == self.model

    def is_active(self, at: datetime) -> bool:
        """Whether ``at`` lies in ``[valid_from, valid_until)``."""
        return self.valid_from <= at and (self.valid_until is None or at < self.valid_until)

    def overlaps(self, other: PriceRow) -> bool:
        """Whether both apply to the same name at the same time; a row without an end is taken to last for ever."""
        if self.name != other.name:
            return False
        first, second = sorted((self, other), key=lambda row: row.valid_from)
        return first.valid_until is None or first.valid_until > second.valid_from

    def card(self) -> RateCard | None:
        """The row prepared for charging; it uses the five counts of a usage and no other billed units."""
        units: list[BilledUnit] = []
        for part, name in ((1, "cache_read"), (2, "cache_write"), (0, "input"), (3, "output")):
            price = getattr(self, f"{name}_nanousd_per_mtok")
            if price is not None:
                inside = tuple(range(len(units))) if name == "input" else ()
                tiers = ((SMALLEST, Fraction(price, TOKENS_PER_PRICE)),)
                units.append(BilledUnit(name=f"{name}_tokens", part=part, contains=inside, tiers=tiers))
        return make_rate_card(units, price_source=self.label)


def check_rows(rows: Iterable[PriceRow]) -> tuple[PriceRow, ...]:
    """The rows ordered by start; raises if two rows of one model overlap, naming both."""
    ordered = tuple(sorted(rows, key=lambda row: (row.name, row.valid_from)))
    for earlier, later in pairwise(ordered):
        if earlier.name != later.name:
            continue
        same_start = earlier.valid_from == later.valid_from
        if same_start or (earlier.valid_until is not None and earlier.valid_until > later.valid_from):
            raise InvalidInput(
                f"price rows overlap: {earlier.label} ({earlier.dates}) and {later.label} ({later.dates}); "
                "end the first where the second begins"
            )
    return ordered


def find_row(rows: Sequence[PriceRow], provider: str | None, model: str, at: datetime) -> PriceRow | None:
    """The row that applies: a named provider before any, a full name before a pattern, the longest, the latest."""
    found = [row for row in rows if row.matches(provider, model) and row.is_active(at)]
    if not found:
        return None
    return max(
        found,
        key=lambda row: (row.provider is not None, not row.model.endswith("*"), len(row.model), row.valid_from),
    )
