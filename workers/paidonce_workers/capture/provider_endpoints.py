"""The providers' hosts and paths: which HTTP requests are paid calls of a model, and to which provider.

Pure: knows the providers' addresses and the operator's mapping (``PAIDONCE_PROVIDER_HOSTS``), and reads no
request body and no response. A request that does not match is never inspected.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from paidonce.usage.provider_hosts_setting import API_OF_PROVIDER, Api
from paidonce_models.usage import CallKind


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    """What a paid request calls. ``model`` is set if the path names it."""

    provider: str
    api: Api
    kind: CallKind
    model: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Poll:
    """A request for the state of work that another call started. ``says`` is what else is known of its usage."""

    id: str
    api: Api
    says: Mapping[str, object] = field(default_factory=dict)


Spoken = tuple[tuple[str, Api], ...]
"""A host's providers, each with the API that it speaks there; the path decides between them."""

_OPENAI_AND = {"anthropic": Api.ANTHROPIC, "google": Api.GOOGLE, "azure": Api.ANTHROPIC}

KNOWN_HOSTS: Final[dict[str, str]] = {
    "api.openai.com": "openai",
    "eu.api.openai.com": "openai",
    "us.api.openai.com": "openai",
    "api.anthropic.com": "anthropic",
    "generativelanguage.googleapis.com": "google",
    "aiplatform.googleapis.com": "google",
    "openrouter.ai": "openrouter",
    "api.groq.com": "groq",
    "api.mistral.ai": "mistral",
    "codestral.mistral.ai": "mistral",
    "api.deepseek.com": "deepseek",
    "api.together.xyz": "together",
    "api.together.ai": "together",
    "api.fireworks.ai": "fireworks",
    "api.x.ai": "x-ai",
    "api.cerebras.ai": "cerebras",
    "api.perplexity.ai": "perplexity",
    "api.moonshot.ai": "moonshotai",
    "api.moonshot.cn": "moonshotai",
}
KNOWN_SUFFIXES: Final[tuple[tuple[str, str], ...]] = (
    (".openai.azure.com", "azure"),
    (".cognitiveservices.azure.com", "azure"),
    (".services.ai.azure.com", "azure"),
    (".azure-api.net", "azure"),
    ("-aiplatform.googleapis.com", "google"),
    (".api.x.ai", "x-ai"),
)

OPENAI_PATHS: Final = {
    "/chat/completions": CallKind.LLM,
    "/responses": CallKind.LLM,
    "/completions": CallKind.LLM,
    "/embeddings": CallKind.EMBEDDING,
}
BEGINNING_PATHS: Final = ("/batches", "/videos")
"""OpenAI's: requests that start paid work and report its usage later, if at all."""
_POLL: Final = re.compile(r"/(responses|batches)/([A-Za-z0-9_-]{1,200})(/cancel)?$")
ANTHROPIC_PATH: Final = "/v1/messages"
ANTHROPIC_BATCHES: Final = "/v1/messages/batches"
_GOOGLE_INTERACTIONS: Final = "/interactions"
_DEPLOYMENT: Final = re.compile(r"/deployments/([^/]+)/")
_GOOGLE_PATH: Final = re.compile(r"/models/([^/:]+):(\w+)$")
GOOGLE_METHODS: Final = {
    "generateContent": CallKind.LLM,
    "streamGenerateContent": CallKind.LLM,
    "embedContent": CallKind.EMBEDDING,
    "batchEmbedContents": CallKind.EMBEDDING,
    "batchGenerateContent": CallKind.LLM,
    "predictLongRunning": CallKind.LLM,
}


class HostTable:
    """The known hosts, overridden by the operator's (``PAIDONCE_PROVIDER_HOSTS``)."""

    def __init__(self, provider_hosts: Iterable[tuple[str, str]] = ()) -> None:
        self._own: dict[str, Spoken] = {}
        for written, provider in provider_hosts:
            host = written.replace("[", "").replace("]", "")  # as the HTTP libraries give an IPv6 address
            self._own[host] = (*self._own.get(host, ()), (provider, API_OF_PROVIDER[provider]))

    def find(self, method: str, host: str, port: int, path: str) -> Endpoint | None:
        """The endpoint of a paid request; ``None`` for everything that is not a paid call of a model we can read."""
        if method != "POST":
            return None
        spoken = self._spoken(host.lower(), port)
        for provider, api in spoken:
            endpoint = _endpoint(provider, api, path)
            if endpoint is not None:
                return endpoint
        return None

    def find_poll(self, method: str, host: str, port: int, path: str) -> Poll | None:
        """The work that the request polls; ``None`` for everything else."""
        found = _POLL.search(path)
        if found is None or method != ("POST" if found[3] else "GET"):
            return None
        if not any(api is Api.OPENAI for _, api in self._spoken(host.lower(), port)):
            return None
        says = {"service_tier": "batch"} if found[1] == "batches" else {}
        return Poll(id=found[2], api=Api.OPENAI, says=says)

    def _spoken(self, host: str, port: int) -> Spoken:
        if self._own:
            own = self._own.get(f"{host}:{port}") or self._own.get(host)
            if own is not None:
                return own
        provider = KNOWN_HOSTS.get(host)
        if provider is None:
            provider = next((name for suffix, name in KNOWN_SUFFIXES if host.endswith(suffix)), None)
            if provider is None:
                return ()
        also = _OPENAI_AND.get(provider)
        return ((provider, Api.OPENAI),) if also is None else ((provider, also), (provider, Api.OPENAI))


def _endpoint(provider: str, api: Api, path: str) -> Endpoint | None:
    if api is Api.ANTHROPIC:
        if path.endswith((ANTHROPIC_PATH, ANTHROPIC_BATCHES)):
            return Endpoint(provider=provider, api=api, kind=CallKind.LLM)
        return None
    if api is Api.GOOGLE:
        if path.endswith(_GOOGLE_INTERACTIONS):
            return Endpoint(provider=provider, api=api, kind=CallKind.LLM)
        found = _GOOGLE_PATH.search(path)
        kind = None if found is None else GOOGLE_METHODS.get(found[2])
        if found is None or kind is None:
            return None
        return Endpoint(provider=provider, api=api, kind=kind, model=found[1])
    for suffix, kind in OPENAI_PATHS.items():
        if path.endswith(suffix):
            deployment = _DEPLOYMENT.search(path)
            return Endpoint(provider=provider, api=api, kind=kind, model=None if deployment is None else deployment[1])
    if path.endswith(BEGINNING_PATHS):
        return Endpoint(provider=provider, api=api, kind=CallKind.LLM)
    return None
