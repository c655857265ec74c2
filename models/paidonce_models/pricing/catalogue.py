"""genai-prices, isolated: the only module that computes with it.

Owns a private ``DataSnapshot`` (never the process-wide one, which any library may
replace with ``UpdatePrices``), how long a listed price is valid, and the split of a
price by kind of token, which genai-prices does not offer. Offline: nothing is fetched.
It uses the library's unit registry, which is not public; tests check that the parts
add up to the library's own total.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Final

import genai_prices
from genai_prices.data import providers
from genai_prices.data_snapshot import DataSnapshot
from genai_prices.decompose import is_descendant_or_self
from genai_prices.types import (
    ConditionalPrice,
    ModelInfo,
    ModelPrice,
    StartDateConstraint,
    TieredPrices,
    TimeOfDateConstraint,
)
from genai_prices.types import Usage as ListedUsage
from genai_prices.units import UnitDef, UnitRegistry, _get_registry

from paidonce_models.instants import MICROSECOND, microseconds_of
from paidonce_models.money import NANOUSD_PER_USD
from paidonce_models.pricing.rate_card import PARTS, SMALLEST, BilledUnit, RateCard, Tiers, make_rate_card

DAY: Final = timedelta(days=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class ListedPrice:
    """A model's price from the list, valid in ``[from_us, until_us)``; ``card`` is ``None`` if nothing has a price."""

    name: str
    from_us: int
    until_us: int
    card: RateCard | None


@functools.cache
def private_snapshot() -> DataSnapshot:
    """The bundled price list with its own look-up cache."""
    return DataSnapshot(providers=list(providers), from_auto_update=False)


def find_listed_price(
    provider: str | None, model: str, at: datetime, price_context: dict[str, str]
) -> ListedPrice | None:
    """The listed price of a model at an instant, ``None`` if the list has none.

    Without a provider, the model's name decides, as far as the list can tell.
    """
    try:
        found_provider, found_model = private_snapshot().find_provider_model(model, None, provider, None)
    except LookupError:
        return None
    if not any(found_model is each for each in found_provider.models):
        price_context = {}  # Found with another provider, whose tariffs are not this one's; the library sees it so too.
    price = found_model.get_prices(at, price_context)
    tariff = "".join(f" {key}={value}" for key, value in sorted(price_context.items()))
    name = f"{found_provider.id}/{found_model.id}"
    source = f"genai-prices {genai_prices.__version__} {name}{tariff}"
    from_us, until_us = stretch_of_the_day(found_model, at)
    return ListedPrice(name=name, from_us=from_us, until_us=until_us, card=card_of(price, source))


def stretch_of_the_day(model: ModelInfo, at: datetime) -> tuple[int, int]:
    """The interval around an instant, within its UTC day, in microseconds, in which no price of the model changes.

    Prices start on a UTC date or apply at certain times of day; an unknown condition applies to this instant only.
    """
    at = at.astimezone(UTC)
    midnight = datetime.combine(at.date(), time(), UTC)
    edges = [midnight, midnight + DAY]
    prices: list[ConditionalPrice] = [] if isinstance(model.prices, ModelPrice) else list(model.prices)
    for constraint in [each.constraint for each in (*prices, *(model.price_variants or ()))]:
        if isinstance(constraint, TimeOfDateConstraint):
            for edge in (constraint.start_time, constraint.end_time):
                edges.append(datetime.combine(at.date(), utc_time_of_day(edge), UTC))
        elif constraint is not None and not isinstance(constraint, StartDateConstraint):
            edges += [at, at + MICROSECOND]
    before, after = max(edge for edge in edges if edge <= at), min(edge for edge in edges if edge > at)
    return microseconds_of(before), microseconds_of(after)


def utc_time_of_day(value: time) -> time:
    """A constraint's time of day in UTC, as the library reads it: without a zone it is UTC."""
    if value.tzinfo is None:
        return value
    return datetime.combine(date(1970, 1, 1), value).astimezone(UTC).time()


def card_of(price: ModelPrice, price_source: str) -> RateCard | None:
    """A price prepared for charging; ``None`` if nothing has a price.

    More special units that a plain one includes are charged at their own prices: the
    plain input price is for input tokens that are neither cached nor audio.
    """
    registry: UnitRegistry = _get_registry()
    found = [(unit, getattr(price, unit.price_key)) for unit in registry.units.values()]
    priced = [(unit, rate) for unit, rate in found if rate is not None]
    fees = [Fraction(tiers_of(unit, rate)[0][1]) for unit, rate in priced if unit.usage_key == "requests"]
    priced = sorted(
        ((unit, rate) for unit, rate in priced if unit.usage_key != "requests"),
        key=lambda each: (-len(each[0].dimensions), each[0].usage_key),
    )
    units: list[BilledUnit] = []
    for unit, rate in priced:
        inside = tuple(place for place in range(len(units)) if is_descendant_or_self(unit, priced[place][0]))
        units.append(BilledUnit(name=unit.usage_key, part=part_of(unit), contains=inside, tiers=tiers_of(unit, rate)))
    return make_rate_card(units, price_source=price_source, request_nanousd=sum(fees, Fraction(0)))


def tiers_of(unit: UnitDef, rate: Decimal | TieredPrices) -> Tiers:
    """A rate in nano-dollars per unit, by the size of the request."""
    if isinstance(rate, Decimal):
        steps = [(SMALLEST, rate)]
    else:
        steps = [(SMALLEST, rate.base), *((tier.start, tier.price) for tier in rate.tiers)]
    return tuple((start, Fraction(price) * NANOUSD_PER_USD / unit.per) for start, price in steps)


def part_of(unit: UnitDef) -> int:
    """Which of the five parts of a cost a billed unit belongs to."""
    direction = unit.dimensions.get("direction")
    if unit.dimensions.get("family") != "tokens" or direction is None:
        return PARTS.index("other")
    token_type = unit.dimensions.get("token_type", "")
    return PARTS.index(token_type if token_type in PARTS else direction)


@functools.lru_cache(maxsize=4_000)
def is_missing_a_count(names: tuple[str, ...], priced: frozenset[str]) -> bool:
    """Whether a usage that reports these units lacks the count of a charged one that must be above zero.

    By the library's own rule: if text and cached tokens are reported separately, the
    cached text tokens, which have their own price, must be reported too.
    """
    registry: UnitRegistry = _get_registry()
    usage = ListedUsage(**{name: 1 for name in names if name in registry.units})
    try:
        for name in priced:
            getattr(usage, name)
    except ValueError:
        return True
    return False
