"""What the book remembers never shows: every call is priced as the list and the rows say for its own instant."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from fractions import Fraction

import pytest
from genai_prices.types import Usage as ListedUsage
from genai_prices.units import _get_registry
from hypothesis import given, settings
from hypothesis import strategies as st

from paidonce_models.money import NANOUSD_PER_USD
from paidonce_models.pricing import PriceBook, PricedUsage, PriceRow
from paidonce_models.pricing import price_book as book_module
from paidonce_models.pricing.catalogue import private_snapshot
from paidonce_models.usage import Usage

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
MAIN = ("input_tokens", "cache_read_tokens", "cache_write_tokens", "output_tokens")
OTHER_UNITS = sorted(set(_get_registry().units) - {*MAIN, "output_reasoning_tokens", "requests"})
ROUNDED_UP_BY_THE_LIST = ("whisper-large-v3", "whisper-large-v3-turbo")
"""Groq's ten seconds at least; a length in seconds is nothing that a response's usage tells us."""
MODELS = sorted(
    (provider.id, model.id)
    for provider in private_snapshot().providers
    for model in provider.models
    if model.id not in ROUNDED_UP_BY_THE_LIST
)
SHARED = PriceBook()


def parts_of(priced: PricedUsage) -> tuple[int, ...]:
    return (
        priced.input_cost_nanousd,
        priced.cache_read_cost_nanousd,
        priced.cache_write_cost_nanousd,
        priced.output_cost_nanousd,
        priced.other_cost_nanousd,
    )


def listed_nanousd(provider: str, model: str, usage: Usage, at: datetime) -> int | None:
    """The library's own total, rounded once; ``None`` where it refuses the counts or has no such name."""
    counts = {name: count for name, count in (*usage.token_counts(), *usage.other_units) if count is not None}
    reasoning = counts.pop("reasoning_tokens", None)
    if reasoning is not None:
        counts["output_reasoning_tokens"] = reasoning
    try:
        total = private_snapshot().calc(ListedUsage(**counts), model, provider, None, at).total_price
    except (LookupError, ValueError):
        return None
    return round(Fraction(total) * NANOUSD_PER_USD)


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    count = st.integers(0, 500_000)
    read, written, plain = draw(count), draw(st.sampled_from([0, 0, 7_001])), draw(count)
    output = draw(count)
    others = draw(st.lists(st.tuples(st.sampled_from(OTHER_UNITS), st.integers(1, 1_000)), max_size=2))
    return Usage(
        input_tokens=plain + read + written,
        cache_read_tokens=draw(st.sampled_from([read, read, None])),
        cache_write_tokens=draw(st.sampled_from([written, None])),
        output_tokens=output,
        reasoning_tokens=draw(st.sampled_from([None, output // 3])),
        other_units=tuple(sorted(dict(others).items())),
    )


@settings(max_examples=150)
@given(st.sampled_from(MODELS), usages(), st.integers(0, 400 * 24 * 60))
def test_whatever_is_remembered_a_call_costs_what_the_list_computes(
    known: tuple[str, str], counts: Usage, minutes: int
) -> None:
    provider, model = known
    at = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=minutes)
    usage = Usage(
        provider=provider,
        model_billed=model,
        **{name: getattr(counts, name) for name in (*MAIN, "reasoning_tokens", "other_units")},
    )
    priced = SHARED.price(usage, at)
    assert priced == PriceBook().price(usage, at)
    if priced is not None:
        assert priced.cost_nanousd == listed_nanousd(provider, model, usage, at)
        assert sum(parts_of(priced)) == priced.cost_nanousd
        assert min(parts_of(priced)) >= 0


@pytest.mark.slow
def test_every_model_that_the_list_finds_by_its_name_is_priced() -> None:
    priced_models = 0
    for provider, model in MODELS:
        usage = Usage(provider=provider, model_billed=model, input_tokens=1_000, output_tokens=0)
        priced = SHARED.price(usage, NOON)
        if priced is not None:
            priced_models += 1
            assert priced.cost_nanousd == listed_nanousd(provider, model, usage, NOON)
    assert priced_models > 500


def models_by_the_clock() -> Iterator[tuple[str, str, list[datetime]]]:
    """Models whose price depends on the time of the day, with both sides of each edge."""
    for provider in private_snapshot().providers:
        for model in provider.models:
            if isinstance(model.prices, list):
                times = [getattr(each.constraint, "start_time", None) for each in model.prices]
                edges = [datetime.combine(NOON.date(), each.replace(tzinfo=UTC)) for each in times if each is not None]
                if edges:
                    microsecond = timedelta(microseconds=1)
                    yield provider.id, model.id, [side for edge in edges for side in (edge - microsecond, edge)]


def test_a_price_by_the_time_of_the_day_changes_to_the_microsecond() -> None:
    seen = list(models_by_the_clock())
    assert seen
    for provider, model, instants in seen:
        usage = Usage(provider=provider, model_billed=model, input_tokens=1_000_003, output_tokens=1_000_003)
        for at in (*instants, *reversed(instants)):
            priced = SHARED.price(usage, at)
            assert priced is not None
            assert priced.cost_nanousd == listed_nanousd(provider, model, usage, at)


@given(
    st.tuples(*[st.integers(0, 10**12)] * 4),
    st.tuples(*[st.integers(0, 10**7)] * 4),
)
def test_own_prices_are_exact_and_their_parts_add_up_to_the_nano_dollar(
    rates: tuple[int, int, int, int], tokens: tuple[int, int, int, int]
) -> None:
    plain, read, written, output = tokens
    row = PriceRow(
        provider="vllm",
        model="mine",
        valid_from=NOON,
        input_nanousd_per_mtok=rates[0],
        cache_read_nanousd_per_mtok=rates[1],
        cache_write_nanousd_per_mtok=rates[2],
        output_nanousd_per_mtok=rates[3],
    )
    priced = PriceBook([row]).price(
        Usage(
            provider="vllm",
            model_billed="mine",
            input_tokens=plain + read + written,
            cache_read_tokens=read,
            cache_write_tokens=written,
            output_tokens=output,
        ),
        NOON,
    )
    assert priced is not None
    exact = [Fraction(rate * count, 1_000_000) for rate, count in zip(rates, tokens, strict=True)]
    assert priced.cost_nanousd == sum(parts_of(priced)) == round(sum(exact))
    assert all(abs(part - whole) < 1 for part, whole in zip(parts_of(priced), exact, strict=False))


def test_a_row_begins_and_ends_to_the_microsecond_whichever_call_came_before() -> None:
    until, end = NOON + timedelta(hours=1), NOON + timedelta(hours=2)
    rows = [
        PriceRow(
            model="m", valid_from=NOON, valid_until=until, input_nanousd_per_mtok=10**6, output_nanousd_per_mtok=0
        ),
        PriceRow(
            model="m", valid_from=until, valid_until=end, input_nanousd_per_mtok=2 * 10**6, output_nanousd_per_mtok=0
        ),
    ]
    book = PriceBook(rows)
    usage = Usage(provider="p", model_requested="m", input_tokens=1, output_tokens=5)
    microsecond = timedelta(microseconds=1)
    expected = [
        (NOON - microsecond, None),
        (NOON, 1),
        (until - microsecond, 1),
        (until, 2),
        (end - microsecond, 2),
        (end, None),
    ]
    for at, cost in (*expected, *reversed(expected)):
        priced = book.price(usage, at)
        assert (None if priced is None else priced.cost_nanousd) == cost


def test_what_is_remembered_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(book_module, "REMEMBERED_TARIFFS", 3)
    book = PriceBook()
    for number in range(10):
        book.price(Usage(provider="openai", model_billed=f"made-up-{number}", input_tokens=1), NOON)
    assert len(book._tariffs) <= 3
