"""A captured call: what its answer says is counted, and what a broken answer cannot know is unknown."""

from __future__ import annotations

from paidonce.usage.call_recorder import CallRecorder
from paidonce.usage.captured_calls import CapturedCall
from paidonce_models.usage import CallKind, CallRecord, UsageSource


def recorded(*, output_is_known: bool) -> CallRecord:
    """A message of Anthropic's, whose stream tells of the input and the first tokens of output when it opens."""
    call = CallRecord(
        kind=CallKind.LLM,
        started_at_us=1_795_000_000_000_000,
        provider="anthropic",
        model_requested="claude-sonnet-4-5",
        usage_source=UsageSource.MISSING,
    )
    usage = {"input_tokens": 1_000, "output_tokens": 3}
    answer = {"type": "message", "model": "claude-sonnet-4-5", "usage": usage}
    captured = CapturedCall(call=call, answer=answer, output_is_known=output_is_known)
    return captured.record(CallRecorder().priced)


def test_an_answer_that_came_to_its_end_is_counted_and_priced() -> None:
    call = recorded(output_is_known=True)
    assert (call.input_tokens, call.output_tokens) == (1_000, 3)
    assert call.cost_nanousd == 1_000 * 3_000 + 3 * 15_000


def test_the_output_of_an_answer_that_was_cut_is_unknown_and_so_is_its_cost() -> None:
    call = recorded(output_is_known=False)
    assert (call.input_tokens, call.output_tokens, call.cost_nanousd) == (1_000, None, None)
    assert call.is_unpriced
