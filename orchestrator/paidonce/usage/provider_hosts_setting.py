"""Parses the setting ``PAIDONCE_PROVIDER_HOSTS``: which API a host speaks that is not in the list of providers.

Also owns the names of the providers whose API usage capture can read. The built-in hosts, and
which requests to them are paid, are in ``paidonce_workers.capture.provider_endpoints``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum
from typing import Final


class Api(StrEnum):
    """The shape of requests, responses and streams."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    GOOGLE = "google"


API_OF_PROVIDER: Final = {
    "anthropic": Api.ANTHROPIC,
    "google": Api.GOOGLE,
    **dict.fromkeys(
        (
            *("azure", "cerebras", "deepseek", "fireworks", "groq", "mistral", "moonshotai", "openai"),
            *("openrouter", "perplexity", "together", "x-ai"),
        ),
        Api.OPENAI,
    ),
}
"""Providers by their names in genai-prices, and the API each speaks."""

_HOST: Final = re.compile(r"^(\[[0-9a-f:.]+\]|[a-z0-9_](?:[a-z0-9._-]*[a-z0-9_])?)(?::([0-9]{1,5}))?$")


def parse_provider_hosts(value: object) -> object:
    """``"llm.internal=openai,127.0.0.1:4000=anthropic"`` as pairs of host (with its port, if said) and provider.

    A host may occur in several pairs, one for each API it speaks. What is neither text nor
    pairs is returned unchanged for the setting's type to refuse. Raises ``ValueError`` that
    says what was expected.
    """
    entries: list[object]
    if isinstance(value, str):
        entries = [entry for entry in re.split(r"[,\s]+", value) if entry]
    elif isinstance(value, Iterable):
        entries = list(value)
    else:
        return value
    return tuple(dict.fromkeys(_pair(entry) for entry in entries))


def _pair(entry: object) -> tuple[str, str]:
    if isinstance(entry, str):
        host, _, provider = entry.partition("=")
    elif isinstance(entry, tuple | list) and len(entry) == 2:
        host, provider = str(entry[0]), str(entry[1])
    else:
        raise ValueError("HOST=PROVIDER pairs, as llm.internal=openai")
    host, provider = host.strip().lower(), provider.strip().lower()
    found = _HOST.match(host)
    if found is None or int(found[2] or 0) > 65535:
        raise ValueError(f"HOST=PROVIDER pairs, a host being a name or an address with or without :PORT, not {host!r}")
    if provider not in API_OF_PROVIDER:
        raise ValueError(f"one of {', '.join(sorted(API_OF_PROVIDER))} after {host}=, not {provider!r}")
    return host, provider
