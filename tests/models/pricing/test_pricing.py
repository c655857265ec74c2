"""Money against hand-computed figures: rate x tokens, the rates written here as numbers."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paidonce_models.errors import InvalidInput
from paidonce_models.pricing import PriceBook, PriceRow
from paidonce_models.pricing.catalogue import find_listed_price, private_snapshot
from paidonce_models.usage import Usage

NOVEMBER = datetime(2026, 11, 20, 12, tzinfo=UTC)

# US dollars per million tokens are thousands of nano-dollars a token: 2.5 USD/M is 2,500.
HAND_COMPUTED = [
    # provider, model, input, read, write, output tokens; nano-dollars a token: plain, read, write, output
    ("openai", "gpt-4o", (10_000, 4_000, 0, 1_000), (2_500, 1_250, None, 10_000)),
    ("openai", "gpt-4.1-mini", (12_345, 2_345, 0, 678), (400, 100, None, 1_600)),
    ("openai", "gpt-6-cyber", (9_000, 3_000, 1_000, 500), (20_000, 2_000, 25_000, 100_000)),
    ("anthropic", "claude-3-5-haiku", (50_000, 30_000, 10_000, 2_000), (800, 80, 1_000, 4_000)),
    ("anthropic", "claude-haiku-4-5", (20_000, 15_000, 4_000, 3_000), (1_000, 100, 1_250, 5_000)),
    ("openai", "gpt-5.6-cyber", (81_234, 60_001, 7_003, 4_321), (12_500, 1_250, 15_625, 75_000)),
    ("anthropic", "claude-sonnet-5", (64_000, 33_333, 11_111, 999), (2_000, 200, 2_500, 10_000)),
    ("anthropic", "claude-opus-4-5", (7_777, 5_000, 2_000, 333), (5_000, 500, 6_250, 25_000)),
    ("google", "gemini-2.5-flash", (100_000, 60_000, 0, 5_000), (300, 30, None, 2_500)),
]


def test_six_of_the_hand_computed_models_have_both_cache_reads_and_cache_writes() -> None:
    assert sum(1 for _, _, (_, read, written, _), _ in HAND_COMPUTED if read and written) >= 6


@pytest.mark.parametrize(("provider", "model", "tokens", "rates"), HAND_COMPUTED)
def test_the_price_is_rate_times_tokens_for_every_kind_of_token(
    provider: str,
    model: str,
    tokens: tuple[int, int, int, int],
    rates: tuple[int, int, int | None, int],
) -> None:
    input_tokens, read, write, output = tokens
    plain_rate, read_rate, write_rate, output_rate = rates
    priced = PriceBook().price(
        Usage(
            provider=provider,
            model_billed=model,
            input_tokens=input_tokens,
            cache_read_tokens=read,
            cache_write_tokens=write,
            output_tokens=output,
        ),
        NOVEMBER,
    )
    assert priced is not None
    assert priced.input_cost_nanousd == plain_rate * (input_tokens - read - write)
    assert priced.cache_read_cost_nanousd == read_rate * read
    assert priced.cache_write_cost_nanousd == (write_rate or 0) * write
    assert priced.output_cost_nanousd == output_rate * output
    assert priced.other_cost_nanousd == 0
    assert priced.cost_nanousd == (
        plain_rate * (input_tokens - read - write) + read_rate * read + (write_rate or 0) * write + output_rate * output
    )
    assert priced.input_nanousd_per_mtok == plain_rate * 1_000_000
    assert priced.cache_read_nanousd_per_mtok == read_rate * 1_000_000
    assert priced.cache_write_nanousd_per_mtok == (None if write_rate is None else write_rate * 1_000_000)
    assert priced.output_nanousd_per_mtok == output_rate * 1_000_000
    assert priced.price_source.startswith("genai-prices ")
    assert f"{provider}/" in priced.price_source


def test_the_cache_for_an_hour_is_dearer_than_the_one_for_five_minutes() -> None:
    usage = Usage(
        provider="anthropic",
        model_billed="claude-haiku-4-5",
        input_tokens=10_000,
        cache_write_tokens=6_000,
        output_tokens=0,
        other_units=(("cache_write_1h_tokens", 4_000),),
    )
    priced = PriceBook().price(usage, NOVEMBER)
    assert priced is not None
    assert priced.cache_write_cost_nanousd == 2_000 * 1_250 + 4_000 * 2_000
    assert priced.input_cost_nanousd == 4_000 * 1_000


def test_crossing_a_tier_changes_the_rate_of_all_tokens() -> None:
    def cost(input_tokens: int) -> int:
        priced = PriceBook().price(
            Usage(provider="openai", model_billed="gpt-5.6-luna", input_tokens=input_tokens, output_tokens=10), NOVEMBER
        )
        assert priced is not None
        return priced.cost_nanousd

    assert cost(272_000) == 272_000 * 200 + 10 * 1_200
    assert cost(272_001) == 272_001 * 400 + 10 * 1_800


def test_the_price_is_that_of_the_day_of_the_request() -> None:
    usage = Usage(provider="openai", model_billed="gpt-5.6-luna", input_tokens=1_000, output_tokens=0)
    before = PriceBook().price(usage, datetime(2026, 7, 29, tzinfo=UTC))
    after = PriceBook().price(usage, int(datetime(2026, 7, 30, tzinfo=UTC).timestamp()) * 1_000_000)
    assert before is not None
    assert after is not None
    assert (before.cost_nanousd, after.cost_nanousd) == (1_000 * 1_000, 1_000 * 200)


def test_searches_are_charged_besides_the_tokens() -> None:
    usage = Usage(
        provider="openai", model_billed="gpt-5", input_tokens=100, output_tokens=0, other_units=(("web_searches", 3),)
    )
    priced = PriceBook().price(usage, NOVEMBER)
    assert priced is not None
    assert priced.other_cost_nanousd == 3 * 10_000_000
    assert priced.cost_nanousd == 100 * 1_250 + 3 * 10_000_000


def test_a_fee_for_each_request_is_charged_besides_the_tokens() -> None:
    usage = Usage(provider="perplexity", model_billed="sonar", input_tokens=1_000, output_tokens=10)
    priced = PriceBook().price(usage, NOVEMBER)
    assert priced is not None
    assert (priced.other_cost_nanousd, priced.cost_nanousd) == (12_000_000, 1_010 * 1_000 + 12_000_000)


@pytest.mark.parametrize(
    "usage",
    [
        Usage(provider="openai", model_billed="no-such-model", input_tokens=10, output_tokens=1),
        Usage(provider="ollama", model_billed="gpt-4o", input_tokens=10, output_tokens=1),
        Usage(provider="openai", input_tokens=10, output_tokens=1),
        Usage(provider="openai", model_billed="gpt-4o"),
        Usage(provider="openai", model_billed="gpt-4o", input_tokens=10),
        Usage(provider="openai", model_billed="gpt-4o", output_tokens=10),
        Usage(provider="google", model_billed="gemma-3", input_tokens=10, output_tokens=1),
        Usage(provider="openai", model_billed="text-embedding-3-small", input_tokens=10, output_tokens=1),
        Usage(
            provider="google",
            model_billed="gemini-2.5-flash",
            input_tokens=10,
            output_tokens=1,
            other_units=(("input_audio_tokens", 50),),
        ),
    ],
    ids=[
        *("model", "provider", "no model", "no tokens", "no output", "no input", "no prices", "no output price"),
        "more audio than input",
    ],
)
def test_what_cannot_be_priced_in_full_is_unknown_not_zero(usage: Usage) -> None:
    assert PriceBook().price(usage, NOVEMBER) is None


def test_an_embedding_needs_no_output_tokens() -> None:
    priced = PriceBook().price(
        Usage(provider="openai", model_billed="text-embedding-3-small", input_tokens=1_000), NOVEMBER
    )
    assert priced is not None
    assert priced.cost_nanousd == 1_000 * 20


def test_the_billed_model_is_priced_before_the_requested_one() -> None:
    usage = Usage(
        provider="openai", model_requested="gpt-4o", model_billed="gpt-4o-mini", input_tokens=1_000, output_tokens=0
    )
    priced = PriceBook().price(usage, NOVEMBER)
    assert priced is not None
    assert priced.cost_nanousd == 1_000 * 150


def test_the_snapshot_is_our_own() -> None:
    from genai_prices import data_snapshot

    empty = data_snapshot.DataSnapshot(providers=[], from_auto_update=True)
    data_snapshot.set_custom_snapshot(empty)
    try:
        usage = Usage(provider="openai", model_billed="gpt-4o", input_tokens=1, output_tokens=0)
        assert PriceBook().price(usage, NOVEMBER) is not None
        assert data_snapshot.get_snapshot() is empty
    finally:
        data_snapshot.set_custom_snapshot(None)


@given(
    st.sampled_from([(provider, model) for provider, model, _, _ in HAND_COMPUTED] + [("openai", "gpt-5.6-luna")]),
    st.integers(0, 10**7),
    st.integers(0, 10**7),
    st.integers(0, 10**7),
    st.integers(0, 10**7),
)
def test_the_parts_add_up_to_the_total_that_the_price_list_computes_itself(
    known: tuple[str, str], plain: int, read: int, write: int, output: int
) -> None:
    from genai_prices.types import Usage as ListedUsage

    provider, model = known
    counts = {
        "input_tokens": plain + read + write,
        "cache_read_tokens": read,
        "cache_write_tokens": write,
        "output_tokens": output,
    }
    priced = PriceBook().price(Usage(provider=provider, model_billed=model, **counts), NOVEMBER)
    assert priced is not None
    parts = (
        priced.input_cost_nanousd,
        priced.cache_read_cost_nanousd,
        priced.cache_write_cost_nanousd,
        priced.output_cost_nanousd,
        priced.other_cost_nanousd,
    )
    assert sum(parts) == priced.cost_nanousd
    listed = private_snapshot().calc(ListedUsage(**counts), model, provider, None, NOVEMBER)
    assert priced.cost_nanousd == round(listed.total_price * 1_000_000_000)


def own_row(day: int, price: int, **more: object) -> PriceRow:
    values: dict[str, object] = {
        "provider": "openai",
        "model": "gpt-4o",
        "valid_from": datetime(2026, 11, day, tzinfo=UTC),
        "input_nanousd_per_mtok": price,
        "output_nanousd_per_mtok": 2 * price,
    }
    return PriceRow(**(values | more))  # type: ignore[arg-type] # a row with some values replaced


def test_own_dated_rows_lie_on_top_of_the_list() -> None:
    book = PriceBook([own_row(10, 1_000_000_000), own_row(15, 1_100_000_000)])
    usage = Usage(provider="openai", model_billed="gpt-4o", input_tokens=100, output_tokens=10)

    def price(day: int) -> tuple[int, str]:
        priced = book.price(usage, datetime(2026, 11, day, tzinfo=UTC))
        assert priced is not None
        return priced.cost_nanousd, priced.price_source

    assert price(9)[0] == 100 * 2_500 + 10 * 10_000
    assert price(10) == (100 * 1_000 + 10 * 2_000, "own openai/gpt-4o from 2026-11-10")
    assert price(15) == (100 * 1_100 + 10 * 2_200, "own openai/gpt-4o from 2026-11-15")


def test_a_self_hosted_model_is_priced_by_a_pattern_and_a_full_name_comes_first() -> None:
    book = PriceBook(
        [
            own_row(1, 50_000_000, provider=None, model="llama-*", output_nanousd_per_mtok=0),
            own_row(1, 70_000_000, provider="vllm", model="llama-70b"),
        ]
    )
    small = book.price(Usage(provider="vllm", model_billed="Llama-8b", input_tokens=3, output_tokens=9), NOVEMBER)
    large = book.price(Usage(provider="vllm", model_billed="llama-70b", input_tokens=3, output_tokens=9), NOVEMBER)
    assert small is not None
    assert large is not None
    assert small.cost_nanousd == 3 * 50
    assert large.cost_nanousd == 3 * 70 + 9 * 140


def test_a_full_name_comes_before_a_pattern_that_adds_nothing_to_it() -> None:
    rows = [own_row(1, 50_000_000, model="llama*"), own_row(1, 70_000_000, model="llama")]
    for ordered in (rows, rows[::-1]):
        priced = PriceBook(ordered).price(
            Usage(provider="openai", model_billed="llama", input_tokens=3, output_tokens=0), NOVEMBER
        )
        assert priced is not None
        assert priced.cost_nanousd == 3 * 70


def test_a_price_of_one_provider_is_none_of_anothers_or_of_nobodys() -> None:
    book = PriceBook([own_row(1, 70_000_000, provider="vllm", model="llama-70b")])
    for provider, cost in (("VLLM", 3 * 70), ("groq-alike", None), (None, None)):
        priced = book.price(
            Usage(provider=provider, model_billed="llama-70b", input_tokens=3, output_tokens=0), NOVEMBER
        )
        assert (None if priced is None else priced.cost_nanousd) == cost


def test_cache_tokens_without_a_price_of_their_own_cost_the_input_price() -> None:
    book = PriceBook([own_row(1, 1_000_000_000)])
    usage = Usage(provider="openai", model_billed="gpt-4o", input_tokens=100, cache_read_tokens=40, output_tokens=0)
    priced = book.price(usage, NOVEMBER)
    assert priced is not None
    assert (priced.input_cost_nanousd, priced.cache_read_cost_nanousd) == (100 * 1_000, 0)
    assert priced.cache_read_nanousd_per_mtok is None


def test_fractions_of_a_nano_dollar_are_rounded_once() -> None:
    book = PriceBook([own_row(1, 500_000)])
    usage = Usage(provider="openai", model_billed="gpt-4o", input_tokens=1, output_tokens=1)
    priced = book.price(usage, NOVEMBER)
    assert priced is not None
    assert (priced.input_cost_nanousd, priced.output_cost_nanousd, priced.cost_nanousd) == (1, 1, 2)


def test_an_own_row_without_an_output_price_is_for_calls_without_output() -> None:
    book = PriceBook([own_row(1, 20_000_000, model="my-embedding", output_nanousd_per_mtok=None)])
    embedding = book.price(Usage(provider="openai", model_billed="my-embedding", input_tokens=9), NOVEMBER)
    assert embedding is not None
    assert (embedding.cost_nanousd, embedding.output_nanousd_per_mtok) == (9 * 20, None)
    answer = Usage(provider="openai", model_billed="my-embedding", input_tokens=9, output_tokens=1)
    assert book.price(answer, NOVEMBER) is None


def test_reasoning_without_the_output_that_it_is_a_part_of_has_no_price() -> None:
    book = PriceBook([own_row(1, 1_000_000, output_nanousd_per_mtok=0)])
    usage = Usage(provider="openai", model_billed="gpt-4o", input_tokens=1, reasoning_tokens=5)
    assert book.price(usage, NOVEMBER) is None


def test_a_stored_row_is_named_as_the_source() -> None:
    book = PriceBook([own_row(1, 1_000_000, id="0197")])
    priced = book.price(Usage(provider="OpenAI", model_billed="GPT-4o", input_tokens=1, output_tokens=0), NOVEMBER)
    assert priced is not None
    assert priced.price_source == "own:0197 openai/gpt-4o"


def test_an_own_price_of_an_alias_holds_for_the_model_behind_it_and_not_for_another_one() -> None:
    book = PriceBook([own_row(1, 1_000_000_000), own_row(1, 3_000_000_000, provider="azure", model="my-deployment")])

    def source(provider: str, requested: str, billed: str) -> str:
        usage = Usage(
            provider=provider, model_requested=requested, model_billed=billed, input_tokens=1, output_tokens=0
        )
        priced = book.price(usage, NOVEMBER)
        assert priced is not None
        return priced.price_source

    assert source("openai", "gpt-4o", "gpt-4o-2024-08-06").startswith("own ")
    assert source("azure", "my-deployment", "gpt-4o").startswith("own ")
    assert source("openai", "gpt-4o", "gpt-4o-mini").startswith("genai-prices")


def test_rows_whose_dates_overlap_are_refused_naming_both() -> None:
    with pytest.raises(
        InvalidInput, match=r"overlap: own openai/gpt-4o from 2026-11-10 .* own openai/gpt-4o from 2026-11-15"
    ):
        PriceBook([own_row(15, 1), own_row(10, 1, valid_until=datetime(2026, 11, 16, tzinfo=UTC))])
    with pytest.raises(InvalidInput, match="overlap"):
        PriceBook([own_row(10, 1), own_row(10, 2)])
    PriceBook([own_row(15, 1), own_row(10, 1, valid_until=datetime(2026, 11, 15, tzinfo=UTC))])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"valid_from": datetime(2026, 1, 1)}, "time zone"),
        ({"valid_until": datetime(2026, 11, 1, tzinfo=UTC)}, "must be after"),
        ({"input_nanousd_per_mtok": -1}, r"input_nanousd_per_mtok \(-1\) cannot be below 0"),
        ({"input_nanousd_per_mtok": 10**16}, "US dollars per million tokens"),
        ({"provider": "open*"}, "whole name"),
        ({"note": "n" * 501}, "501 characters"),
        ({"model": "*"}, "followed by one"),
        ({"model": "a*b"}, "followed by one"),
    ],
)
def test_a_row_that_says_nothing_sensible_is_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        own_row(1, 1, **wrong)


def test_a_stated_tariff_selects_its_prices() -> None:
    assert find_listed_price("openai", "gpt-5", NOVEMBER, {}) is not None
    usage = Usage(provider="openai", model_billed="gpt-5", input_tokens=1_000, output_tokens=0)
    flex = Usage(
        provider="openai",
        model_billed="gpt-5",
        input_tokens=1_000,
        output_tokens=0,
        price_context=(("service_tier", "flex"),),
    )
    plain_price, flex_price = PriceBook().price(usage, NOVEMBER), PriceBook().price(flex, NOVEMBER)
    assert plain_price is not None
    assert flex_price is not None
    assert (plain_price.cost_nanousd, flex_price.cost_nanousd) == (1_250_000, 625_000)
    assert flex_price.price_source.endswith("service_tier=flex")


def test_a_price_that_was_looked_up_before_is_for_calls_of_its_tariff() -> None:
    book = PriceBook()
    plain = Usage(provider="openai", model_billed="gpt-5", input_tokens=1_000, output_tokens=0)
    flex = replace(plain, price_context=(("service_tier", "flex"),))
    priced = [book.price(usage, NOVEMBER) for usage in (plain, flex, plain)]
    assert [each and each.cost_nanousd for each in priced] == [1_250_000, 625_000, 1_250_000]


def test_a_model_that_is_found_with_another_provider_is_not_priced_by_that_ones_tariffs() -> None:
    plain = Usage(provider="azure", model_billed="claude-haiku-4-5", input_tokens=1_000, output_tokens=0)
    batch = replace(plain, price_context=(("processing", "batch"),))
    priced = [PriceBook().price(usage, NOVEMBER) for usage in (plain, batch)]
    assert [each and each.cost_nanousd for each in priced] == [1_000_000, 1_000_000]
