"""Formats a response as OpenAI sends it: one completion, or the chunks of a stream.

Pure functions of a request, its response and its entry in the log; sends nothing.
"""

from collections.abc import Iterator

from examples.model_answers import Answer
from examples.model_log import Received
from examples.model_requests import ChatRequest


def model(name: str) -> dict[str, object]:
    """One entry of the list of models."""
    return {"id": name, "object": "model", "created": 1_754_425_928, "owned_by": "stand-in"}


def identity(entry: Received) -> dict[str, str]:
    """The header in which OpenAI sends the request's id."""
    return {"x-request-id": f"req_{entry.fingerprint}_{entry.number}"}


def _usage(entry: Received) -> dict[str, object]:
    return {
        "prompt_tokens": entry.input_tokens,
        "completion_tokens": entry.output_tokens,
        "total_tokens": entry.input_tokens + entry.output_tokens,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }


def _calls(given: Answer, entry: Received) -> list[dict[str, object]]:
    """Tool calls with ids that depend on the request's content only."""
    return [
        {
            "id": f"call_{entry.fingerprint}_{index}",
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        }
        for index, (name, arguments) in enumerate(given.calls)
    ]


def _head(kind: str, request: ChatRequest, entry: Received) -> dict[str, object]:
    return {
        "id": f"chatcmpl-{entry.fingerprint}",
        "object": kind,
        "created": int(entry.arrived_at),
        "model": request.model,
    }


def completion(request: ChatRequest, given: Answer, entry: Received) -> dict[str, object]:
    """The whole response as one object."""
    message: dict[str, object] = {
        "role": "assistant",
        "content": None if given.calls else given.text,
        "refusal": None,
    }
    if given.calls:
        message["tool_calls"] = _calls(given, entry)
    choice = {
        "index": 0,
        "message": message,
        "logprobs": None,
        "finish_reason": "tool_calls" if given.calls else "stop",
    }
    head = _head("chat.completion", request, entry)
    return {**head, "choices": [choice], "usage": _usage(entry)}


def chunks(request: ChatRequest, given: Answer, entry: Received) -> Iterator[dict[str, object]]:
    """The response in chunks; a last one without choices carries the usage, if requested."""
    head = _head("chat.completion.chunk", request, entry)
    without_usage: dict[str, object] = {"usage": None} if request.include_usage else {}

    def piece(delta: dict[str, object], finish: str | None = None) -> dict[str, object]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return {**head, "choices": [choice], **without_usage}

    yield piece({"role": "assistant", "content": None if given.calls else ""})
    for index, call in enumerate(_calls(given, entry)):
        yield piece({"tool_calls": [{"index": index, **call}]})
    if not given.calls:
        words = given.text.split(" ")
        for index, word in enumerate(words):
            yield piece({"content": word if index == 0 else " " + word})
    yield piece({}, "tool_calls" if given.calls else "stop")
    if request.include_usage:
        yield {**head, "choices": [], "usage": _usage(entry)}
