"""Which requests are paid calls: by method, host and path, with the operator's own hosts on top."""

from __future__ import annotations

import pytest

from paidonce.settings import load_settings
from paidonce_models.errors import ConfigurationError
from paidonce_models.usage import CallKind
from paidonce_workers.capture.provider_endpoints import HostTable

KNOWN = [
    ("https://api.openai.com/v1/chat/completions", "openai", CallKind.LLM, None),
    ("https://api.openai.com/v1/responses", "openai", CallKind.LLM, None),
    ("https://api.openai.com/v1/embeddings", "openai", CallKind.EMBEDDING, None),
    ("https://me.openai.azure.com/openai/deployments/gpt-4o/chat/completions", "azure", CallKind.LLM, "gpt-4o"),
    ("https://me.openai.azure.com/openai/v1/responses", "azure", CallKind.LLM, None),
    ("https://me.services.ai.azure.com/anthropic/v1/messages", "azure", CallKind.LLM, None),
    ("https://api.anthropic.com/v1/messages", "anthropic", CallKind.LLM, None),
    ("https://api.anthropic.com/v1/chat/completions", "anthropic", CallKind.LLM, None),
    (
        "https://generativelanguage.googleapis.com/v1beta/models/gemini-2.5-flash:streamGenerateContent",
        *("google", CallKind.LLM, "gemini-2.5-flash"),
    ),
    (
        "https://europe-west4-aiplatform.googleapis.com/v1/projects/p/locations/l/publishers/google/models/g:generateContent",
        *("google", CallKind.LLM, "g"),
    ),
    (
        "https://generativelanguage.googleapis.com/v1beta/models/e:batchEmbedContents",
        *("google", CallKind.EMBEDDING, "e"),
    ),
    ("https://generativelanguage.googleapis.com/v1beta/openai/chat/completions", "google", CallKind.LLM, None),
    ("https://openrouter.ai/api/v1/chat/completions", "openrouter", CallKind.LLM, None),
    ("https://api.groq.com/openai/v1/chat/completions", "groq", CallKind.LLM, None),
    ("https://api.mistral.ai/v1/embeddings", "mistral", CallKind.EMBEDDING, None),
    ("https://api.deepseek.com/chat/completions", "deepseek", CallKind.LLM, None),
    ("https://api.together.xyz/v1/chat/completions", "together", CallKind.LLM, None),
    ("https://api.fireworks.ai/inference/v1/chat/completions", "fireworks", CallKind.LLM, None),
    ("https://api.openai.com/v1/batches", "openai", CallKind.LLM, None),
    ("https://api.openai.com/v1/videos", "openai", CallKind.LLM, None),
    ("https://api.anthropic.com/v1/messages/batches", "anthropic", CallKind.LLM, None),
    (
        "https://generativelanguage.googleapis.com/v1beta/models/veo-3:predictLongRunning",
        *("google", CallKind.LLM, "veo-3"),
    ),
    ("https://generativelanguage.googleapis.com/v1beta/interactions", "google", CallKind.LLM, None),
    ("https://api.x.ai/v1/chat/completions", "x-ai", CallKind.LLM, None),
]
UNPAID = [
    "https://api.openai.com/v1/models",
    "https://api.openai.com/v1/responses/resp_1/cancel",
    "https://api.anthropic.com/v1/messages/count_tokens",
    "https://generativelanguage.googleapis.com/v1beta/models/g:countTokens",
    "https://example.com/v1/chat/completions",
    "https://api.openai.com.example.com/v1/chat/completions",
]


def split(url: str) -> tuple[str, str]:
    host, _, path = url.removeprefix("https://").partition("/")
    return host, f"/{path}"


@pytest.mark.parametrize(("url", "provider", "kind", "model"), KNOWN)
def test_paid_requests_are_known(url: str, provider: str, kind: CallKind, model: str | None) -> None:
    host, path = split(url)
    found = HostTable().find("POST", host, 443, path)
    assert found is not None
    assert (found.provider, found.kind, found.model) == (provider, kind, model)
    assert HostTable().find("GET", host, 443, path) is None


@pytest.mark.parametrize("url", UNPAID)
def test_everything_else_is_left_alone(url: str) -> None:
    host, path = split(url)
    assert HostTable().find("POST", host, 443, path) is None


@pytest.mark.parametrize(
    ("method", "path", "found"),
    [
        ("GET", "/v1/responses/resp_1", ("resp_1", {})),
        ("POST", "/v1/responses/resp_1/cancel", ("resp_1", {})),
        ("GET", "/v1/batches/batch_1", ("batch_1", {"service_tier": "batch"})),  # which no answer of a batch says
        ("POST", "/v1/batches/batch_1", None),
        ("GET", "/v1/batches", None),
    ],
)
def test_polls_are_known_by_the_work_they_ask_for(
    method: str, path: str, found: tuple[str, dict[str, object]] | None
) -> None:
    poll = HostTable().find_poll(method, "api.openai.com", 443, path)
    assert (None if poll is None else (poll.id, poll.says)) == found
    assert HostTable().find_poll(method, "example.com", 443, path) is None


def test_an_operators_host_speaks_what_was_said_at_the_port_that_was_said() -> None:
    settings = load_settings(
        provider_hosts="LLM.internal=openai, 127.0.0.1:4000=anthropic,127.0.0.1:4000=groq [::1]:8=google"
    )
    assert settings.provider_hosts == (
        ("llm.internal", "openai"),
        ("127.0.0.1:4000", "anthropic"),
        ("127.0.0.1:4000", "groq"),
        ("[::1]:8", "google"),
    )
    table = HostTable(settings.provider_hosts)

    def provider(host: str, port: int, path: str) -> str | None:
        found = table.find("POST", host, port, path)
        return None if found is None else found.provider

    assert provider("llm.internal", 9, "/v1/chat/completions") == "openai"
    assert provider("llm.internal", 443, "/v1/messages") is None
    assert provider("127.0.0.1", 4000, "/v1/messages") == "anthropic"
    assert provider("127.0.0.1", 4000, "/v1/messages/batches") == "anthropic"
    assert provider("127.0.0.1", 4000, "/v1/chat/completions") == "groq"
    assert provider("127.0.0.1", 4001, "/v1/chat/completions") is None
    assert provider("::1", 8, "/v1beta/models/g:generateContent") == "google"
    assert provider("api.openai.com", 443, "/v1/chat/completions") == "openai"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("llm.internal", "not ''"),
        ("llm.internal=llama", "not 'llama'"),
        ("http://llm.internal=openai", "not 'http://llm.internal'"),
        ("host:99999=openai", "not 'host:99999'"),
    ],
)
def test_a_mapping_that_cannot_be_meant_is_refused(value: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match="PAIDONCE_PROVIDER_HOSTS") as refused:
        load_settings(provider_hosts=value)
    assert message in str(refused.value)
