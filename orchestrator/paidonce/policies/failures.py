"""Classifies an error as a failure, whichever client raised it.

Owns the conversion of an exception to the words that policies match: ``timeout``, ``connection``, ``http:503``,
``http:5xx``, and the names of its classes, bare and with their module. ``asked_waits`` finds how long the other side
asked to wait. Retries, retry budgets and breakers see failures only through this.

Imports no HTTP client and reads only attributes and headers of a response: an error is classified by the names of its
classes and by attributes that clients share (``status_code``, ``response``, ``headers``). Tried on openai, anthropic,
httpx, httpx2, requests, urllib, aiohttp, google-genai and botocore.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from paidonce.policies.asked_waits import asked_wait_seconds, attribute

TIMEOUT: Final = "timeout"
CONNECTION: Final = "connection"

_TIMEOUT_ENDINGS: Final = ("Timeout", "TimeoutError", "TimeoutException", "TimedOut", "DeadlineExceeded")
_CONNECTION_ENDING: Final = "ConnectionError"
_CONNECTION_NAMES: Final = frozenset(
    {
        "ChunkedEncodingError",  # requests: the response broke off
        "ClientPayloadError",  # aiohttp: the same
        "ConnectError",
        "ConnectionClosedError",
        "IncompleteRead",  # http.client and urllib3
        "NetworkError",  # httpx: also reading and writing
        "ProxyError",
        "RemoteProtocolError",  # httpx: the server hung up
        "SSLError",
        "gaierror",  # no address for the name
        "urllib.error.URLError",
        "urllib3.exceptions.ProtocolError",
    }
)
_LONGEST_CHAIN: Final = 16
_DEEPEST: Final = 64
"""How many errors of a chain are followed."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An error as policies see it."""

    kinds: frozenset[str]
    """Everything that a matcher may name; of a group, the kinds of each of its errors."""
    kinds_of_some: frozenset[str] = frozenset()
    """Kinds that only some errors of a group have: a matcher can exclude them, but not cover the group by them."""
    retry_after_seconds: float | None = None
    """How long the other side asked to wait, in seconds; ``None`` if it did not."""
    summary: str = ""
    """The error in short for people, such as ``http:503 InternalServerError``."""


def _now() -> datetime:
    return datetime.now(UTC)


def describe_failure(error: BaseException, *, clock: Callable[[], datetime] = _now) -> Failure:
    """The kinds of an error and of the errors it was raised ``from``.

    The chain ends at an HTTP status: the response explains the failure, and the rest is how the client got it. After a
    timeout or a broken connection there is no response, so no status is looked for. A group has the kinds that all its
    errors share, and the longest of their waits; cancellations in it are consequences and do not count. The clock
    (timezone-aware) is read only if a wait is a date. Only kinds of an ``Exception`` contain the word ``Exception``;
    cancellations and interrupts do not.
    """
    found = _described(error, clock, frozenset())
    told = sorted(kind for kind in found.kinds if kind.startswith("http:") and not kind.endswith("xx"))
    told = told or [kind for kind in (TIMEOUT, CONNECTION) if kind in found.kinds]
    return replace(found, summary=" ".join([*told, type(error).__name__]))


def leaves_of(error: BaseException) -> list[BaseException]:
    """The errors in a group, at any depth, whatever the group was raised from; else the error alone.

    Cancellations are left out if there is any other error.
    """
    return _leaves_of(error, frozenset())


def _leaves_of(error: BaseException, above: frozenset[int]) -> list[BaseException]:
    chain, leaves = _chain(error, above)
    below = above | {id(each) for each in chain}
    return [each for leaf in leaves for each in _leaves_of(leaf, below)] or [error]


def _described(error: BaseException, clock: Callable[[], datetime], above: frozenset[int]) -> Failure:
    """``above`` are the errors that led here: a chain may also be cyclic through a group."""
    chain, leaves = _chain(error, above)
    of_chain = _describe_chain(chain, clock)
    if not leaves:
        return of_chain
    below = above | {id(each) for each in chain}
    each = [_described(leaf, clock, below) for leaf in leaves]
    shared = frozenset.intersection(*(found.kinds for found in each))
    of_some = frozenset().union(*(found.kinds | found.kinds_of_some for found in each))
    kinds = of_chain.kinds | shared
    waits = [found.retry_after_seconds for found in (of_chain, *each) if found.retry_after_seconds is not None]
    return Failure(kinds=kinds, kinds_of_some=of_some - kinds, retry_after_seconds=max(waits, default=None))


def _describe_chain(chain: list[BaseException], clock: Callable[[], datetime]) -> Failure:
    kinds: set[str] = set()
    retry_after_seconds = None
    for each in chain:
        names = _class_names(type(each))
        may_have_status = not kinds & {TIMEOUT, CONNECTION}
        kinds |= names
        if any(name.endswith(_TIMEOUT_ENDINGS) for name in names):
            kinds.add(TIMEOUT)
        if not isinstance(each, Exception):
            continue
        status = _status(each) if may_have_status else None
        if retry_after_seconds is None:
            retry_after_seconds = asked_wait_seconds(each, status, clock)
        if status is not None:
            kinds |= {f"http:{status}", f"http:{status // 100}xx"}
            break
        if names & _CONNECTION_NAMES or any(name.endswith(_CONNECTION_ENDING) for name in names):
            kinds.add(CONNECTION)
    return Failure(kinds=frozenset(kinds), retry_after_seconds=retry_after_seconds)


def _chain(error: BaseException, above: frozenset[int]) -> tuple[list[BaseException], list[BaseException]]:
    """The error and what each was raised from, including the ``reason`` of urllib and urllib3.

    Also the leaves of a group that ends the chain; a group with one member is replaced by that member.
    """
    chain: list[BaseException] = []
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen and len(seen) < _LONGEST_CHAIN:
        chain.append(following)
        seen.add(id(following))
        reason = attribute(following, "reason")
        if isinstance(following, BaseExceptionGroup):
            leaves = [each for each in _flat(following) if id(each) not in above and id(each) not in seen]
            if len(leaves) > 1 and len(above) < _DEEPEST:
                return chain, leaves
            following = leaves[0] if leaves else None
        elif following.__cause__ is None and isinstance(reason, BaseException):
            following = reason
        else:
            following = following.__cause__
    return chain, []


def _flat(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    """The errors of a group, with nested groups resolved; without cancellations, if there is any other error."""
    leaves: list[BaseException] = []
    waiting: list[BaseException] = [group]
    while waiting:
        each = waiting.pop()
        if isinstance(each, BaseExceptionGroup):
            waiting += reversed(each.exceptions)
        else:
            leaves.append(each)
    return [each for each in leaves if not isinstance(each, asyncio.CancelledError)] or leaves


def class_name(cls: type) -> str:
    """A class's name with its module, as it may be written in a policy; builtins go without."""
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def _class_names(cls: type) -> set[str]:
    classes = [each for each in cls.__mro__ if each is not object]
    return {each.__name__ for each in classes} | {class_name(each) for each in classes}


def _status(error: Exception) -> int | None:
    """The HTTP status of the response that an error represents."""
    response = attribute(error, "response")
    metadata = attribute(response, "ResponseMetadata")
    candidates = (
        attribute(error, "status_code"),  # openai, anthropic
        attribute(response, "status_code"),  # httpx, requests
        attribute(response, "status"),
        attribute(metadata, "HTTPStatusCode"),  # botocore
        attribute(error, "status"),  # aiohttp
        attribute(error, "code"),  # urllib, google-genai
    )
    for value in candidates:
        if isinstance(value, int) and not isinstance(value, bool) and 300 <= value <= 599:
            return int(value)
    return None
