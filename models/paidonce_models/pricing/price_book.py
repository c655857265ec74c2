"""``PriceBook``: what a ``Usage`` cost at an instant, in exact nano-dollars.

Own dated rows take precedence over genai-prices' list. For an unknown model, or if a
count that the price needs was not reported, the cost is ``None`` and the tokens are
kept. Has no clock: the caller passes the instant of the request.

Which price applies is looked up once per model, tariff and period, and cached; what
remains for a call is integer arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

from paidonce_models.instants import microseconds_of, moment_of
from paidonce_models.pricing.own_prices import PriceRow, check_rows, find_row
from paidonce_models.pricing.rate_card import PricedUsage, RateCard
from paidonce_models.usage import Usage

if TYPE_CHECKING:
    from paidonce_models.pricing.catalogue import ListedPrice

BEFORE_ALL: Final = -(2**63)
AFTER_ALL: Final = 2**63
REMEMBERED_TARIFFS: Final = 2_000
"""How many models and tariffs are cached; names come from outside, so there must be a limit."""

TariffKey = tuple[str | None, str | None, str | None, tuple[tuple[str, str], ...]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Tariff:
    """The result for a model and tariff, valid in ``[from_us, until_us)``; without a card there is no price."""

    from_us: int
    until_us: int
    card: RateCard | None
    is_listed: bool


class PriceBook:
    """Own rows on top of a private genai-prices snapshot. Its prices never change, so threads may share it.

    If two threads ask at once, a cached result may be computed twice, with the same outcome.
    """

    def __init__(self, rows: Iterable[PriceRow] = ()) -> None:
        """Raises ``InvalidInput`` if the dates of two rows of one model overlap."""
        self.rows = check_rows(rows)
        self._tariffs: dict[TariffKey, Tariff] = {}

    def price(self, usage: Usage, at: datetime | int) -> PricedUsage | None:
        """What ``usage`` cost at ``at`` (aware datetime, or microseconds since the epoch); ``None`` if unknown.

        The billed model is looked up first, then the requested one.
        """
        if not usage.is_known:
            return None
        at_us = at if isinstance(at, int) else microseconds_of(at)
        key = (usage.provider, usage.model_billed, usage.model_requested, usage.price_context)
        tariff = self._tariffs.get(key)
        if tariff is None or not tariff.from_us <= at_us < tariff.until_us:
            tariff = self._find_tariff(usage, at_us)
            if len(self._tariffs) >= REMEMBERED_TARIFFS:
                self._tariffs.clear()
            self._tariffs[key] = tariff
        if tariff.card is None or (usage.other_units and tariff.is_listed and lacks_a_count(usage, tariff.card)):
            return None
        return tariff.card.charge(usage)

    def _find_tariff(self, usage: Usage, at_us: int) -> Tariff:
        # genai-prices takes 0.2 s to import: paid at the first price, not by every process that can price.
        from paidonce_models.pricing import catalogue  # noqa: PLC0415

        instant = moment_of(at_us)
        models = [model for model in (usage.model_billed, usage.model_requested) if model]
        rows = [row for row in self.rows if any(row.matches(usage.provider, model) for model in models)]
        from_us, until_us = stretch_around(at_us, rows)
        listed = [
            catalogue.find_listed_price(usage.provider, model, instant, dict(usage.price_context)) for model in models
        ]
        for price in listed:
            if price is not None:
                from_us, until_us = max(from_us, price.from_us), min(until_us, price.until_us)
        for model in models:
            row = find_row(rows, usage.provider, model, instant)
            if row is not None and (model == models[0] or not names_two_models(listed)):
                return Tariff(from_us=from_us, until_us=until_us, card=row.card(), is_listed=False)
        found = next((price for price in listed if price is not None), None)
        card = None if found is None else found.card
        return Tariff(from_us=from_us, until_us=until_us, card=card, is_listed=True)


def lacks_a_count(usage: Usage, card: RateCard) -> bool:
    """Whether the reported units require the count of another one, so that the price is unknown."""
    from paidonce_models.pricing import catalogue  # noqa: PLC0415 - as above; it is loaded by now

    counts = (*usage.token_counts(), *usage.other_units)
    names = ("output_reasoning_tokens" if name == "reasoning_tokens" else name for name, count in counts if count)
    return catalogue.is_missing_a_count(tuple(names), card.names)


def names_two_models(listed: list[ListedPrice | None]) -> bool:
    """Whether the list knows the billed and the requested model, as different ones.

    If so, an own price for the requested model does not apply to the billed one; otherwise one name is an alias.
    """
    known = {price.name for price in listed if price is not None}
    return len(known) > 1


def stretch_around(at_us: int, rows: Iterable[PriceRow]) -> tuple[int, int]:
    """The longest interval around an instant, in microseconds, in which none of the rows starts or ends."""
    edges = {microseconds_of(row.valid_from) for row in rows}
    edges |= {microseconds_of(row.valid_until) for row in rows if row.valid_until is not None}
    before = max((edge for edge in edges if edge <= at_us), default=BEFORE_ALL)
    return before, min((edge for edge in edges if edge > at_us), default=AFTER_ALL)
