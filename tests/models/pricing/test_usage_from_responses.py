"""Usage out of the providers' own response shapes, SDK objects and plain JSON alike."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from openai.types import CreateEmbeddingResponse
from openai.types.chat import ChatCompletion
from openai.types.responses import Response

from paidonce_models.errors import InvalidInput
from paidonce_models.pricing import extract_usage
from paidonce_models.pricing.usage_from_responses import legible_counts, request_ids_of
from paidonce_models.usage import Usage

CHAT = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "gpt-4o-2024-08-06",
    "service_tier": "flex",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hi"}}],
    "usage": {
        "prompt_tokens": 1000,
        "completion_tokens": 200,
        "total_tokens": 1200,
        "prompt_tokens_details": {"cached_tokens": 768, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 150, "audio_tokens": 0},
    },
}
CHAT_USAGE = Usage(
    provider="openai",
    model_billed="gpt-4o-2024-08-06",
    input_tokens=1000,
    cache_read_tokens=768,
    output_tokens=200,
    reasoning_tokens=150,
    price_context=(("service_tier", "flex"),),
)
RESPONSES = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1,
    "model": "gpt-5-mini-2025-08-07",
    "output": [],
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "tools": [],
    "usage": {
        "input_tokens": 90,
        "input_tokens_details": {"cached_tokens": 10, "cache_write_tokens": 0},
        "output_tokens": 40,
        "output_tokens_details": {"reasoning_tokens": 32},
        "total_tokens": 130,
    },
}
EMBEDDINGS = {
    "object": "list",
    "data": [{"object": "embedding", "index": 0, "embedding": [0.1]}],
    "model": "text-embedding-3-small",
    "usage": {"prompt_tokens": 8, "total_tokens": 8},
}
ANTHROPIC = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-haiku-4-5-20251001",
    "content": [],
    "usage": {
        "input_tokens": 12,
        "cache_creation_input_tokens": 300,
        "cache_read_input_tokens": 2000,
        "cache_creation": {"ephemeral_5m_input_tokens": 200, "ephemeral_1h_input_tokens": 100},
        "output_tokens": 55,
        "service_tier": "batch",
        "server_tool_use": {"web_search_requests": 2, "web_fetch_requests": 0},
    },
}
ANTHROPIC_USAGE = Usage(
    provider="anthropic",
    model_billed="claude-haiku-4-5-20251001",
    input_tokens=2312,
    cache_read_tokens=2000,
    cache_write_tokens=300,
    output_tokens=55,
    other_units=(("cache_write_1h_tokens", 100), ("cache_write_5m_tokens", 200), ("web_searches", 2)),
    price_context=(("processing", "batch"),),
)
GOOGLE = {
    "candidates": [],
    "modelVersion": "gemini-2.5-flash",
    "responseId": "r1",
    "usageMetadata": {
        "promptTokenCount": 500,
        "cachedContentTokenCount": 400,
        "candidatesTokenCount": 30,
        "thoughtsTokenCount": 70,
        "totalTokenCount": 600,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 500}],
    },
}
GOOGLE_IN_PYTHON = SimpleNamespace(
    model_version="gemini-2.5-flash",
    response_id="r1",
    usage_metadata=SimpleNamespace(
        prompt_token_count=500,
        cached_content_token_count=400,
        candidates_token_count=30,
        thoughts_token_count=70,
        total_token_count=600,
        prompt_tokens_details=[SimpleNamespace(modality="TEXT", token_count=500)],
        cache_tokens_details=None,
    ),
)
GOOGLE_USAGE = Usage(
    provider="google",
    model_billed="gemini-2.5-flash",
    input_tokens=500,
    cache_read_tokens=400,
    output_tokens=100,
    reasoning_tokens=70,
    other_units=(("input_text_tokens", 500),),
)


@pytest.mark.parametrize("response", [CHAT, ChatCompletion.model_validate(CHAT)], ids=["json", "sdk"])
def test_chat_completions_are_read(response: object) -> None:
    assert extract_usage(response) == CHAT_USAGE


@pytest.mark.parametrize("response", [RESPONSES, Response.model_validate(RESPONSES)], ids=["json", "sdk"])
def test_the_responses_api_is_read(response: object) -> None:
    assert extract_usage(response, model_requested="gpt-5-mini") == Usage(
        provider="openai",
        model_requested="gpt-5-mini",
        model_billed="gpt-5-mini-2025-08-07",
        input_tokens=90,
        cache_read_tokens=10,
        cache_write_tokens=0,
        output_tokens=40,
        reasoning_tokens=32,
    )


@pytest.mark.parametrize("response", [EMBEDDINGS, CreateEmbeddingResponse.model_validate(EMBEDDINGS)])
def test_embeddings_are_read_with_an_output_of_zero(response: object) -> None:
    assert extract_usage(response) == Usage(
        provider="openai", model_billed="text-embedding-3-small", input_tokens=8, output_tokens=0
    )


@pytest.mark.parametrize(
    ("tier", "context"),
    [
        ("auto", ()),
        ("standard", ()),
        ("priority", (("service_tier", "priority"),)),
        ("batch", (("processing", "batch"),)),
    ],
)
def test_the_tier_that_a_response_names_is_its_tariff(tier: str, context: tuple[tuple[str, str], ...]) -> None:
    assert extract_usage(CHAT | {"service_tier": tier}).price_context == context


def test_anthropic_input_is_normalised_to_include_its_cache() -> None:
    assert extract_usage(ANTHROPIC) == ANTHROPIC_USAGE


@pytest.mark.parametrize("response", [GOOGLE, GOOGLE_IN_PYTHON], ids=["json", "python names"])
def test_google_output_includes_thoughts_in_both_spellings(response: object) -> None:
    assert extract_usage(response) == GOOGLE_USAGE


def test_an_unknown_model_keeps_its_tokens() -> None:
    usage = extract_usage(CHAT | {"model": "my-own-llama"}, provider="vllm")
    assert (usage.provider, usage.model_billed, usage.input_tokens) == ("vllm", "my-own-llama", 1000)


def test_the_billing_provider_counts_in_its_own_way() -> None:
    usage = extract_usage(CHAT | {"model": "grok-4"}, provider="x-ai")
    assert usage.output_tokens == 350


def test_litellm_names_who_answered_and_keeps_cache_writes() -> None:
    response = SimpleNamespace(
        model="claude-haiku-4-5",
        usage={
            "prompt_tokens": 100,
            "completion_tokens": 5,
            "cache_creation_input_tokens": 60,
            "prompt_tokens_details": {"cached_tokens": 20},
        },
        _hidden_params={"custom_llm_provider": "anthropic"},
    )
    usage = extract_usage(response)
    assert usage.provider == "anthropic"
    assert (usage.input_tokens, usage.cache_write_tokens) == (100, 60)


def test_a_stream_without_usage_is_unknown_not_zero() -> None:
    usage = extract_usage(CHAT | {"usage": None})
    assert usage.model_billed == "gpt-4o-2024-08-06"
    assert not usage.is_known


@pytest.mark.parametrize("response", [{}, "text", 3, object(), {"usage": None}])
def test_what_is_no_response_is_refused_with_the_way_out(response: object) -> None:
    with pytest.raises(InvalidInput, match="no usage found in a"):
        extract_usage(response)


def test_an_unknown_shape_is_refused_naming_its_fields() -> None:
    with pytest.raises(InvalidInput, match="unknown fields characters, words"):
        extract_usage({"model": "m", "usage": {"words": 3, "characters": 4}})


def test_counts_that_contradict_each_other_are_refused_naming_both() -> None:
    usage = CHAT["usage"] | {"prompt_tokens": 100}  # type: ignore[operator] # a dict
    with pytest.raises(InvalidInput, match=r"cache_read_tokens \(768\) cannot exceed input_tokens \(100\)"):
        extract_usage(CHAT | {"usage": usage})
    with pytest.raises(InvalidInput, match="cannot be read"):
        extract_usage(CHAT | {"usage": usage | {"prompt_tokens": -1}})


def test_of_counts_that_contradict_each_other_only_whole_ones_are_legible() -> None:
    usage = CHAT["usage"] | {"prompt_tokens": 100}  # type: ignore[operator] # a dict
    found = legible_counts(CHAT | {"usage": usage})
    assert found is not None and (found.input_tokens, found.output_tokens) == (100, 200)
    found = legible_counts(CHAT | {"usage": usage | {"completion_tokens": 0}})
    assert found is not None and found.output_tokens == 0
    parts = {"input_tokens": 7, "cache_read_input_tokens": -1, "output_tokens": 5}
    found = legible_counts(ANTHROPIC | {"usage": parts})  # 7 is only what came from no cache
    assert found is not None and (found.input_tokens, found.output_tokens) == (None, 5)


def test_the_request_id_is_the_header_before_the_body() -> None:
    response = ChatCompletion.model_validate(CHAT)
    assert request_ids_of(response) == ("chatcmpl-1",)
    response._request_id = "req_abc"
    assert request_ids_of(response) == ("req_abc", "chatcmpl-1")
    assert request_ids_of(GOOGLE) == ("r1",)
    assert request_ids_of({}) == ()
