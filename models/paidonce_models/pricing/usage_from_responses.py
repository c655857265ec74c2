"""``extract_usage``: the ``Usage`` in a provider's response, SDK object or plain JSON.

Owns the recognition of response shapes and their reduction to the two things that are
read, the model's name and the usage block; genai-prices' extractors then count, before
and independently of any price, so that an unknown model keeps its tokens. Reads nothing
of a response's content. A response without usage (a stream that did not request it)
gives unknown counts, never zeros. Computes no money: ``price_book`` does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from paidonce_models.errors import InvalidInput
from paidonce_models.usage import LARGEST_COUNT, Usage

if TYPE_CHECKING:
    from genai_prices.types import Usage as ListedUsage

MAIN_COUNTS: Final = {
    "input_tokens": "input_tokens",
    "cache_read_tokens": "cache_read_tokens",
    "cache_write_tokens": "cache_write_tokens",
    "output_tokens": "output_tokens",
    "output_reasoning_tokens": "reasoning_tokens",
}
USAGE_NAMES: Final = ("usage", "usageMetadata", "usage_metadata")
MODEL_NAMES: Final = ("model", "modelVersion", "model_version")
CAMEL_CASE: Final = {
    "prompt_token_count": "promptTokenCount",
    "cached_content_token_count": "cachedContentTokenCount",
    "cache_tokens_details": "cacheTokensDetails",
    "prompt_tokens_details": "promptTokensDetails",
    "candidates_token_count": "candidatesTokenCount",
    "candidates_tokens_details": "candidatesTokensDetails",
    "thoughts_token_count": "thoughtsTokenCount",
    "tool_use_prompt_token_count": "toolUsePromptTokenCount",
    "tool_use_prompt_tokens_details": "toolUsePromptTokensDetails",
    "total_token_count": "totalTokenCount",
    "token_count": "tokenCount",
}
LEGIBLE_INPUT: Final = ("prompt_tokens", "input_tokens", "promptTokenCount")
LEGIBLE_OUTPUT: Final = ("completion_tokens", "output_tokens")
"""Google's output is the sum of two counts, so it is left out."""
GOOGLE_ONLY: Final = {"prompt_token_count", "candidates_token_count", "total_token_count"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """Whose API a usage block belongs to, and which of its dialects."""

    provider: str
    flavor: str


def extract_usage(response: object, *, provider: str | None = None, model_requested: str | None = None) -> Usage:
    """The usage a response reports.

    Understands OpenAI chat completions, Responses and embeddings, Anthropic messages and
    google-genai, as SDK objects or as dicts of those shapes, and compatible APIs.
    ``provider`` names who bills, if the shape alone would mislead (an OpenAI client that
    calls Groq, for example). Raises ``InvalidInput`` for anything else and for counts that
    contradict each other.
    """
    fields = response_fields(response)
    model = next((str(fields[name]) for name in MODEL_NAMES if fields.get(name)), None)
    block = next((plain(fields[name]) for name in USAGE_NAMES if fields.get(name) is not None), None)
    if isinstance(block, Mapping) and GOOGLE_ONLY & block.keys():
        block = with_google_names(block)
    if block is None and model is None:
        raise InvalidInput(
            f"no usage found in a {type(response).__name__}; pass the provider's whole response, "
            "or the numbers: record_usage(provider=..., model=..., input_tokens=..., output_tokens=...)"
        )
    if not isinstance(block, Mapping) or not block:
        return Usage(provider=provider or sdk_provider(response), model_requested=model_requested, model_billed=model)
    shape = recognise(block, fields, response)
    if shape is None:
        raise InvalidInput(
            f"the usage of a {type(response).__name__} has the unknown fields {', '.join(sorted(block))}; "
            "give the numbers: record_usage(provider=..., model=..., input_tokens=..., output_tokens=...)"
        )
    billing_provider = provider or gateway_provider(response) or shape.provider
    counts = read_counts(shape, billing_provider, block)
    values = vars(counts)
    other_units = {name: int(value) for name, value in values.items() if name not in MAIN_COUNTS and value}
    main = {ours: int(values[theirs]) for theirs, ours in MAIN_COUNTS.items() if theirs in values}
    if shape.flavor == "chat" and not main.get("cache_write_tokens") and block.get("cache_creation_input_tokens"):
        # litellm uses chat completions and keeps Anthropic's name for tokens written to the cache.
        main["cache_write_tokens"] = int(str(block["cache_creation_input_tokens"]))
    if shape.flavor == "embeddings":
        main["output_tokens"] = 0
    return Usage(
        provider=billing_provider,
        model_requested=model_requested,
        model_billed=model,
        **main,
        other_units=tuple(sorted(other_units.items())),
        price_context=read_price_context(fields, block),
    )


def legible_counts(
    response: object, *, provider: str | None = None, model_requested: str | None = None
) -> Usage | None:
    """Input and output of a usage block that ``extract_usage`` refuses; ``None`` if neither can be read.

    Without their parts, which contradict them: such a usage has no price. Anthropic reports input in parts only.
    """
    fields = response_fields(response)
    block = next((plain(fields[name]) for name in USAGE_NAMES if fields.get(name) is not None), None)
    if not isinstance(block, Mapping):
        return None
    counts = with_google_names(block)
    shape = recognise(counts, fields, response) if isinstance(counts, Mapping) else None
    if shape is None or not isinstance(counts, Mapping):
        return None
    input_tokens = None if shape.provider == "anthropic" else first_count(counts, LEGIBLE_INPUT)
    output_tokens = first_count(counts, LEGIBLE_OUTPUT)
    if input_tokens is None and output_tokens is None:
        return None
    return Usage(
        provider=provider or shape.provider,
        model_requested=model_requested,
        model_billed=next((str(fields[name]) for name in MODEL_NAMES if fields.get(name)), None),
        input_tokens=input_tokens,
        output_tokens=output_tokens,
    )


def first_count(counts: Mapping[str, object], names: Iterable[str]) -> int | None:
    """The first of these that the ledger can hold as a number of tokens."""
    for name in names:
        value = counts.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST_COUNT:
            return value
    return None


def request_ids_of(response: object) -> tuple[str, ...]:
    """The provider's own ids of a request: the SDKs' ``_request_id`` (a header) first, then the body's id."""
    names = ("_request_id", "request_id", "id", "responseId", "response_id")
    if isinstance(response, Mapping):
        found = [response.get(name) for name in names]
    else:
        found = [getattr(response, name, None) for name in names]
    hidden = getattr(response, "_hidden_params", None)
    headers = hidden.get("additional_headers") if isinstance(hidden, Mapping) else None
    if isinstance(headers, Mapping):
        # litellm generates its own ids and keeps the provider's headers.
        found += [value for name, value in headers.items() if str(name).lower().endswith("request-id")]
    return tuple(dict.fromkeys(value for value in found if isinstance(value, str) and value))


def response_fields(response: object) -> dict[str, object]:
    """The few top-level fields that matter; a response's content is never copied."""
    names = (*USAGE_NAMES, *MODEL_NAMES, "object", "type", "service_tier")
    if isinstance(response, Mapping):
        return {name: response.get(name) for name in names}
    return {name: getattr(response, name, None) for name in names}


def plain(value: object) -> object:
    """A usage block as plain data: mappings, SDK models and simple objects become dicts."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    dump = getattr(value, "model_dump", None)
    if callable(dump):
        return plain(dump(mode="json", warnings=False))
    if hasattr(value, "__dict__") and not isinstance(value, type):
        return plain({key: item for key, item in vars(value).items() if not key.startswith("_")})
    return value


def with_google_names(value: object) -> object:
    """Converts google-genai's Python names to those of its JSON, which the extractors read."""
    if isinstance(value, Mapping):
        return {CAMEL_CASE.get(str(key), str(key)): with_google_names(item) for key, item in value.items()}
    if isinstance(value, list):
        return [with_google_names(item) for item in value]
    return value


def recognise(block: Mapping[str, object], fields: Mapping[str, object], response: object) -> Shape | None:
    """The shape by its fields; chat completions first, because gateways add others' fields to theirs."""
    if "prompt_tokens" in block:
        return Shape(provider="openai", flavor="chat" if "completion_tokens" in block else "embeddings")
    if "promptTokenCount" in block or "candidatesTokenCount" in block or "totalTokenCount" in block:
        return Shape(provider="google", flavor="default")
    if "input_tokens" in block:
        anthropic_fields = {"cache_creation_input_tokens", "cache_read_input_tokens", "cache_creation"}
        if anthropic_fields & block.keys() or fields.get("type") == "message" or sdk_provider(response) == "anthropic":
            return Shape(provider="anthropic", flavor="default")
        return Shape(provider="openai", flavor="responses")
    return None


def sdk_provider(response: object) -> str | None:
    """The provider whose SDK the response's class comes from, if any."""
    package = type(response).__module__.partition(".")[0]
    return {"openai": "openai", "anthropic": "anthropic", "google": "google"}.get(package)


def gateway_provider(response: object) -> str | None:
    """The provider that responded, according to litellm."""
    hidden = getattr(response, "_hidden_params", None)
    name = hidden.get("custom_llm_provider") if isinstance(hidden, Mapping) else None
    return name if isinstance(name, str) and name else None


def read_counts(shape: Shape, billing_provider: str, block: Mapping[str, object]) -> ListedUsage:
    """The counts by the billing provider's extractor if it has one of that dialect, else by the shape's.

    They differ: x-ai, for example, reports reasoning separately from the output.
    """
    # genai-prices takes 0.2 s to import: paid at the first response, not by every process that can read one.
    from paidonce_models.pricing.catalogue import private_snapshot  # noqa: PLC0415

    snapshot = private_snapshot()
    data = {"usage": block, "usageMetadata": block}
    if billing_provider != shape.provider:
        try:
            return snapshot.find_provider(None, billing_provider, None).extract_usage(data, api_flavor=shape.flavor)[1]
        except (LookupError, ValueError):
            pass  # Unknown to the list, or without that dialect: the shape's own extractor reads it.
    try:
        return snapshot.find_provider(None, shape.provider, None).extract_usage(data, api_flavor=shape.flavor)[1]
    except ValueError as error:
        raise InvalidInput(
            f"the usage of a {shape.provider} {shape.flavor} response cannot be read: {error}"
        ) from error


def read_price_context(fields: Mapping[str, object], block: Mapping[str, object]) -> tuple[tuple[str, str], ...]:
    """What the response itself reports about its tariff, in genai-prices' terms; nothing is inferred."""
    context: dict[str, str] = {}
    for tier in (fields.get("service_tier"), block.get("service_tier")):
        if tier == "batch":
            context["processing"] = "batch"
        elif isinstance(tier, str) and tier not in ("standard", "auto"):
            context["service_tier"] = tier
    speed = block.get("speed")
    if isinstance(speed, str) and speed != "standard":
        context["speed"] = speed
    return tuple(sorted(context.items()))
