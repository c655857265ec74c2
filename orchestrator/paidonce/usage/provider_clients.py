"""``provider_client``: creates a provider's own client with its hidden retries turned off.

Only the step counts tries. A client that silently retries a failed request multiplies them: four attempts of a step by
three of its client are twelve paid tries at a provider that is down.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Final, ParamSpec, TypeVar

from paidonce_models.errors import InvalidInput

P = ParamSpec("P")
C = TypeVar("C")

_GOOGLE: Final = "google.genai"
_ONE_ATTEMPT: Final = {"attempts": 1}


def provider_client(client: Callable[P, C], *args: P.args, **options: P.kwargs) -> C:
    """``client(*args, **options)`` with its hidden retries set to none, as in ``provider_client(openai.AsyncOpenAI)``.

    Supports classes with ``max_retries=``, such as those of ``openai`` and ``anthropic``, and ``google.genai.Client``.
    Raises ``InvalidInput`` for any other, and if ``options`` request retries: declare them at the step, ``retry=3``.
    """
    if _takes(client, "max_retries"):
        return client(*args, **_without_retries(client, options))
    if getattr(client, "__module__", "").startswith(_GOOGLE):
        return client(*args, **_with_one_attempt(client, options))
    raise InvalidInput(
        f"provider_client cannot turn off the retries of {_name(client)}: expected a class that takes "
        "max_retries=, such as openai.AsyncOpenAI or anthropic.Anthropic, or google.genai.Client; create the client "
        "yourself and turn its retries off, so that the step's own are the only ones"
    )


def _without_retries(client: object, options: Mapping[str, Any]) -> dict[str, Any]:
    if options.get("max_retries", 0) != 0:
        raise InvalidInput(_asked(client, f"max_retries={options['max_retries']!r}"))
    return {**options, "max_retries": 0}


def _with_one_attempt(client: object, options: Mapping[str, Any]) -> dict[str, Any]:
    given = options.get("http_options") or {}
    http = dict(given) if isinstance(given, Mapping) else given.model_dump(exclude_none=True)
    retries = http.get("retry_options") or _ONE_ATTEMPT
    if dict(retries) != _ONE_ATTEMPT:
        raise InvalidInput(_asked(client, f"retry_options={retries!r}"))
    return {**options, "http_options": {**http, "retry_options": _ONE_ATTEMPT}}


def _asked(client: object, found: str) -> str:
    return (
        f"{found} for {_name(client)}: a client of provider_client never retries by itself; leave it out and give the "
        "step its retries, as in @step(retry=3), which are counted, spaced and limited by its policy"
    )


def _takes(client: Callable[..., Any], name: str) -> bool:
    try:
        return name in inspect.signature(client).parameters
    except (TypeError, ValueError):
        return False


def _name(client: object) -> str:
    return f"{getattr(client, '__module__', '')}.{getattr(client, '__qualname__', repr(client))}".lstrip(".")
