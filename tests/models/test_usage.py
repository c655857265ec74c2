"""``Usage`` and ``CallRecord`` refuse counts and sums that contradict each other."""

from __future__ import annotations

import pytest

from paidonce_models.errors import InvalidInput
from paidonce_models.tables.calls import Call
from paidonce_models.usage import TEXT_LIMITS, CallKind, CallRecord, Usage, UsageSource


def test_cache_tokens_above_input_are_refused_naming_both() -> None:
    with pytest.raises(InvalidInput, match=r"cache_read_tokens \(120\) cannot exceed input_tokens \(100\)"):
        Usage(input_tokens=100, cache_read_tokens=120)
    with pytest.raises(InvalidInput, match=r"cache_write_tokens \(101\) cannot exceed input_tokens \(100\)"):
        Usage(input_tokens=100, cache_write_tokens=101)


def test_cache_reads_and_writes_together_cannot_exceed_input() -> None:
    with pytest.raises(InvalidInput, match=r"\(60\) and cache_write_tokens \(50\) together .* input_tokens \(100\)"):
        Usage(input_tokens=100, cache_read_tokens=60, cache_write_tokens=50)
    assert Usage(input_tokens=110, cache_read_tokens=60, cache_write_tokens=50).is_known


def test_cache_tokens_without_input_are_refused() -> None:
    with pytest.raises(InvalidInput, match=r"cache_read_tokens \(5\) .* part of input_tokens \(None\)"):
        Usage(cache_read_tokens=5)


@pytest.mark.parametrize(
    "name", ["input_tokens", "cache_read_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens"]
)
def test_negative_tokens_are_refused_by_name(name: str) -> None:
    with pytest.raises(InvalidInput, match=rf"{name} \(-1\) cannot be below 0"):
        Usage(**{name: -1})  # type: ignore[arg-type] # one count by name


def test_tokens_that_are_no_integers_are_refused() -> None:
    with pytest.raises(InvalidInput, match=r"input_tokens must be an int or None, got float 1\.5"):
        Usage(input_tokens=1.5)  # type: ignore[arg-type] # the point of the test
    with pytest.raises(InvalidInput, match="got bool"):
        Usage(output_tokens=True)


def test_unknown_counts_stay_unknown() -> None:
    usage = Usage(model_billed="m")
    assert usage.input_tokens is None
    assert not usage.is_known


def test_the_parts_of_a_call_must_add_up_to_its_cost() -> None:
    with pytest.raises(InvalidInput, match=r"\(3\) must add up to its cost \(4\)"):
        CallRecord(
            kind=CallKind.LLM,
            started_at_us=0,
            usage_source=UsageSource.PROVIDER,
            cost_nanousd=4,
            input_cost_nanousd=1,
            output_cost_nanousd=2,
        )


def test_a_call_cannot_cost_less_than_nothing() -> None:
    with pytest.raises(InvalidInput, match="cost_nanousd"):
        CallRecord(kind=CallKind.TOOL, started_at_us=0, usage_source=UsageSource.EXPLICIT, cost_nanousd=-1)


def test_numbers_beyond_the_store_are_refused_with_a_hint() -> None:
    with pytest.raises(InvalidInput, match=r"input_tokens .* check the unit"):
        Usage(input_tokens=10**16)
    with pytest.raises(InvalidInput, match=r"cost_nanousd .* check the unit"):
        CallRecord(kind=CallKind.TOOL, started_at_us=0, usage_source=UsageSource.EXPLICIT, cost_nanousd=10**16)


def test_texts_too_long_for_their_column_are_cut_rather_than_lost_with_the_money() -> None:
    call = CallRecord(
        kind=CallKind.TOOL,
        started_at_us=0,
        usage_source=UsageSource.EXPLICIT,
        provider="p" * 500,
        model_billed="m\0" * 500,
        cost_nanousd=1,
    )
    assert (call.provider, call.model_billed, call.cost_nanousd) == ("p" * 100, "m" * 200, 1)


def test_texts_that_no_store_takes_are_mended() -> None:
    call = CallRecord(kind=CallKind.TOOL, started_at_us=0, usage_source=UsageSource.EXPLICIT, provider="p\ud83d\u00e9")
    assert call.provider == "p?\u00e9"


@pytest.mark.parametrize("times", [{"started_at_us": -1}, {"started_at_us": 10**18}, {"duration_us": 10**16}])
def test_times_that_no_date_can_name_are_refused(times: dict[str, int]) -> None:
    with pytest.raises(InvalidInput, match="check the unit"):
        CallRecord(**{"started_at_us": 0, **times}, kind=CallKind.TOOL, usage_source=UsageSource.EXPLICIT)


def test_the_limits_of_texts_are_the_widths_of_the_columns() -> None:
    columns = Call.metadata.tables["calls"].columns
    assert {name: columns[name].type.length for name in TEXT_LIMITS} == TEXT_LIMITS
