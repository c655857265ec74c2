"""``record_usage`` finds the attempt, prices the call and names its tool."""

from __future__ import annotations

import asyncio
import contextvars
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from unittest.mock import Mock

import pytest

from paidonce.usage.call_recorder import CallRecorder, innermost_tool, recording_into
from paidonce.usage.explicit_usage import record_usage
from paidonce_models.errors import InvalidInput
from paidonce_models.pricing import PriceBook, PriceRow
from paidonce_models.usage import CallKind, UsageSource

NOVEMBER_US = int(datetime(2026, 11, 20, tzinfo=UTC).timestamp()) * 1_000_000
RESPONSE = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "model": "gpt-4o-mini",
    "usage": {"prompt_tokens": 1000, "completion_tokens": 100},
}


@pytest.fixture
def recorder() -> Iterator[CallRecorder]:
    with recording_into(CallRecorder(now_us=lambda: NOVEMBER_US)) as current:
        yield current


def test_a_response_is_recorded_priced_and_drained_once(recorder: CallRecorder) -> None:
    returned = record_usage(RESPONSE)
    (call,) = recorder.drain()
    assert call == returned
    assert (call.kind, call.usage_source) == (CallKind.LLM, UsageSource.PROVIDER)
    assert (call.provider, call.model_billed, call.input_tokens, call.output_tokens) == (
        "openai",
        "gpt-4o-mini",
        1000,
        100,
    )
    assert call.cost_nanousd == 1000 * 150 + 100 * 600
    assert call.output_cost_nanousd == 100 * 600
    assert call.output_nanousd_per_mtok == 600_000_000
    assert call.provider_request_id == "chatcmpl-1"
    assert call.started_at_us == NOVEMBER_US
    assert recorder.drain() == []


def test_plain_numbers_are_recorded_as_explicit(recorder: CallRecorder) -> None:
    call = record_usage(
        provider="openai", model="gpt-4o-mini", input_tokens=10, output_tokens=1, request_id="r", duration_us=7
    )
    assert (call.usage_source, call.model_requested, call.model_billed) == (
        UsageSource.EXPLICIT,
        "gpt-4o-mini",
        None,
    )
    assert call.cost_nanousd == 10 * 150 + 600
    assert (call.started_at_us, call.duration_us) == (NOVEMBER_US - 7, 7)


def test_an_unknown_model_keeps_its_tokens_and_has_an_unknown_cost(recorder: CallRecorder) -> None:
    call = record_usage(provider="vllm", model="my-llama", input_tokens=10, output_tokens=1)
    assert (call.input_tokens, call.cost_nanousd, call.price_source) == (10, None, None)


def test_a_stream_without_usage_is_recorded_as_missing(recorder: CallRecorder) -> None:
    call = record_usage(RESPONSE | {"usage": None})
    assert (call.usage_source, call.input_tokens, call.cost_nanousd) == (UsageSource.MISSING, None, None)


def test_tokens_that_the_caller_counted_are_an_estimate(recorder: CallRecorder) -> None:
    call = record_usage(provider="openai", model="gpt-4o-mini", input_tokens=10, output_tokens=1, estimated=True)
    assert (call.usage_source, call.cost_nanousd) == (UsageSource.ESTIMATED, 10 * 150 + 600)


def test_a_stated_cost_is_taken_as_it_is(recorder: CallRecorder) -> None:
    call = record_usage(RESPONSE, cost_usd="0.00012345678949")
    assert (call.cost_nanousd, call.price_source) == (123_457, "explicit")
    assert (call.input_tokens, call.input_cost_nanousd) == (1000, None)


def test_units_at_a_price_are_a_paid_tool(recorder: CallRecorder) -> None:
    call = record_usage(provider="search.example", units=3, unit_price_usd="0.0025")
    assert (call.kind, call.cost_nanousd, call.other_cost_nanousd) == (CallKind.TOOL, 7_500_000, 7_500_000)
    assert call.price_source == "explicit 3 x $0.0025"


def test_a_cost_of_zero_is_known_to_be_zero(recorder: CallRecorder) -> None:
    assert record_usage(provider="free.example", cost_usd=0).cost_nanousd == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "nothing to record"),
        ({"model": "m"}, "nothing to record"),
        ({"response": RESPONSE, "input_tokens": 1}, "not both"),
        ({"units": 3}, "belong together"),
        ({"unit_price_usd": 3}, "belong together"),
        ({"cost_usd": 1, "units": 3, "unit_price_usd": 1}, "not both"),
        ({"cost_usd": -1}, r"cost_usd \(-1\) cannot be below 0"),
        ({"units": -1, "unit_price_usd": 1}, r"units \(-1\) cannot be below 0"),
        ({"cost_usd": "cheap"}, "cost_usd: 'cheap' is not a decimal number"),
        ({"input_tokens": -5}, r"input_tokens \(-5\)"),
        ({"input_tokens": 5, "cache_read_tokens": 6}, "cannot exceed"),
        ({"cost_usd": 1, "started_at_us": 10**22}, "started_at_us .* check the unit"),
        ({"cost_usd": 1, "started_at_us": datetime(2026, 11, 1, tzinfo=UTC)}, "started_at_us .* got datetime"),
        ({"cost_usd": 1, "duration_us": -1}, r"duration_us \(-1\)"),
        ({"cost_usd": 1, "duration_us": 1.5}, "duration_us .* got float"),
        ({"cost_usd": 1, "duration_us": 10**30}, "duration_us .* check the unit"),
        ({"cost_usd": 1, "status": "fine"}, "status 'fine': expected ok, failed, cut"),
        ({"cost_usd": 1, "provider": ["openai"]}, "provider must be text or None, got list"),
        ({"input_tokens": 1, "model": 5}, "model must be text or None, got int"),
        ({"cost_usd": 1, "estimated": True}, "estimated=True applies to token counts"),
        ({"cost_usd": 1, "request_id": 5}, "request_id must be text or None, got int"),
    ],
)
def test_what_makes_no_sense_is_refused_and_records_nothing(
    recorder: CallRecorder, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        record_usage(**arguments)  # type: ignore[arg-type] # one mistake at a time
    assert recorder.drain() == []


def test_outside_a_step_the_error_says_where_to_call() -> None:
    with pytest.raises(InvalidInput, match="inside the body of a @step"):
        record_usage(RESPONSE)


def test_the_innermost_tool_is_named_and_the_outer_one_returns(recorder: CallRecorder) -> None:
    with innermost_tool("outer"):
        with innermost_tool("inner"):
            record_usage(RESPONSE)
        record_usage(RESPONSE)
    record_usage(RESPONSE)
    assert [call.tool for call in recorder.drain()] == ["inner", "outer", None]


def test_attribution_follows_tasks_and_to_thread_and_not_each_others_tools(recorder: CallRecorder) -> None:
    async def search(name: str) -> None:
        with innermost_tool(name):
            await asyncio.sleep(0)
            await asyncio.to_thread(record_usage, RESPONSE)

    async def body() -> None:
        await asyncio.gather(search("a"), search("b"))

    asyncio.run(body())
    assert sorted(str(call.tool) for call in recorder.drain()) == ["a", "b"]


def test_own_prices_lie_on_top(recorder: CallRecorder) -> None:
    row = PriceRow(
        model="gpt-4o-mini",
        valid_from=datetime(2026, 1, 1, tzinfo=UTC),
        input_nanousd_per_mtok=1_000_000,
        output_nanousd_per_mtok=2_000_000,
    )
    with recording_into(CallRecorder(prices=lambda: PriceBook([row]), now_us=lambda: NOVEMBER_US)):
        assert record_usage(RESPONSE).cost_nanousd == 1000 + 200


def test_many_threads_lose_no_call(recorder: CallRecorder) -> None:
    def work() -> None:
        for _ in range(100):
            record_usage(provider="p", cost_usd="0.000000001")

    threads = [threading.Thread(target=contextvars.copy_context().run, args=(work,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    drained = []
    while any(thread.is_alive() for thread in threads):
        drained += recorder.drain()
    for thread in threads:
        thread.join()
    drained += recorder.drain()
    assert len(drained) == 800


def test_calls_of_a_failed_write_come_back_in_front(recorder: CallRecorder) -> None:
    first = record_usage(provider="first", cost_usd=1)
    flushed = recorder.begin_flush()
    second = record_usage(provider="second", cost_usd=1)
    recorder.end_flush(flushed, written=False)
    assert recorder.drain() == [first, second]


@pytest.mark.parametrize("written", [True, False])
def test_the_end_of_an_attempt_waits_for_a_flush_and_takes_what_it_did_not_write(
    recorder: CallRecorder, written: bool
) -> None:
    call = record_usage(provider="p", cost_usd=1)
    flushed = recorder.begin_flush()
    with ThreadPoolExecutor(1) as pool:
        drained = pool.submit(recorder.drain)
        with pytest.raises(TimeoutError):
            drained.result(timeout=0.1)
        recorder.end_flush(flushed, written=written)
        assert drained.result(timeout=5) == ([] if written else [call])


def test_a_flush_that_fails_as_it_begins_keeps_the_calls_and_holds_nobody_up(
    recorder: CallRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = record_usage(provider="p", cost_usd=1)
    with monkeypatch.context() as patched, pytest.raises(MemoryError):
        patched.setattr(recorder, "_recorded", Mock(side_effect=MemoryError))
        recorder.begin_flush()
    assert recorder.drain() == [call]


def test_a_full_recorder_refuses_loudly() -> None:
    with recording_into(CallRecorder(max_calls=1)):
        record_usage(provider="p", cost_usd=1)
        with pytest.raises(InvalidInput, match="more than 1 calls"):
            record_usage(provider="p", cost_usd=1)


def test_importing_and_stating_a_cost_loads_no_price_list() -> None:
    program = """
import sys
from paidonce.usage.explicit_usage import record_usage
from paidonce.usage.call_recorder import CallRecorder, recording_into
with recording_into(CallRecorder()):
    record_usage(provider="p", cost_usd=1)
assert not [name for name in sys.modules if name.startswith(("genai_prices", "paidonce_models.pricing"))]
"""
    subprocess.run([sys.executable, "-c", program], check=True, env={"PYTHONPATH": ":".join(sys.path)})


def test_a_call_that_a_child_completes_while_it_tells_of_it_is_one(recorder: CallRecorder) -> None:
    call = record_usage(RESPONSE)
    recorder.drain()
    recorder.take_over([call], [call])
    assert (recorder.awaited(), recorder.drain()) == ([], [call])


def test_what_a_child_waits_for_at_the_end_of_the_attempt_is_late(recorder: CallRecorder) -> None:
    call = record_usage(RESPONSE)
    recorder.drain()
    recorder.take_over([], [call])
    told: list[bool] = []
    recorder.end(lambda: told.append(True))
    assert (told, recorder.begin_flush()) == ([True], [call])


def test_a_stated_cost_of_tokens_is_not_split(recorder: CallRecorder) -> None:
    of_tokens = record_usage(provider="p", model="m", input_tokens=10, output_tokens=1, cost_usd="0.5")
    of_units = record_usage(provider="p", cost_usd="0.5")
    assert (of_tokens.cost_nanousd, of_tokens.other_cost_nanousd) == (500_000_000, None)
    assert (of_units.cost_nanousd, of_units.other_cost_nanousd) == (500_000_000, 500_000_000)
