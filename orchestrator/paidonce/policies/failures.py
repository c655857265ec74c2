"""What kind of failure an error is, whoever's client raised it.

Owns turning an exception into the words that policies match: ``timeout``, ``connection``, ``http:503``,
``http:5xx``, and the names of its classes, bare and with their module. It also finds how long the other side asked
to be left alone. Retries, retry budgets and breakers see failures only through this.

It imports no HTTP client and calls nothing on a response but attributes and headers: an error is read by the names
of its classes and by attributes that clients share (``status_code``, ``response``, ``headers``). Tried on openai,
anthropic, httpx, httpx2, requests, urllib, aiohttp, google-genai and botocore.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Final

TIMEOUT: Final = "timeout"
CONNECTION: Final = "connection"
LONGEST_RETRY_AFTER_SECONDS: Final = 7 * 86_400.0
"""What is asked beyond this is cut to it: as long as a step may stay parked by default."""

_TIMEOUT_ENDINGS: Final = ("Timeout", "TimeoutError", "TimeoutException", "TimedOut", "DeadlineExceeded")
_CONNECTION_ENDING: Final = "ConnectionError"
_CONNECTION_NAMES: Final = frozenset(
    {
        "ChunkedEncodingError",  # requests: the answer broke off
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


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An error as policies see it."""

    kinds: frozenset[str]
    """Everything that a matcher may name."""
    retry_after_seconds: float | None = None
    """How long the other side asked to wait; ``None`` if it did not say."""
    summary: str = ""
    """The error in two words for people, such as ``http:503 InternalServerError``."""


def _now() -> datetime:
    return datetime.now(UTC)


def describe_failure(error: BaseException, *, clock: Callable[[], datetime] = _now) -> Failure:
    """The kinds of an error and of what it was raised ``from``.

    An HTTP status ends that way: the answer explains the failure, and what lies behind it is how the client came by
    it. Behind a time-out or a broken connection there is no answer, so no status is looked for. An exception group
    with one member is read as that member. The clock (timezone-aware) is asked only where ``Retry-After`` is a date.
    Only kinds of an ``Exception`` hold the word ``Exception``; cancellations and interrupts do not.
    """
    kinds: set[str] = set()
    retry_after_seconds = None
    for each in _chain(error):
        names = _class_names(type(each))
        may_have_status = not kinds & {TIMEOUT, CONNECTION}
        kinds |= names
        if any(name.endswith(_TIMEOUT_ENDINGS) for name in names):
            kinds.add(TIMEOUT)
        if not isinstance(each, Exception):
            continue
        if retry_after_seconds is None:
            retry_after_seconds = _retry_after_seconds(each, clock)
        status = _status(each) if may_have_status else None
        if status is not None:
            kinds |= {f"http:{status}", f"http:{status // 100}xx"}
            break
        if names & _CONNECTION_NAMES or any(name.endswith(_CONNECTION_ENDING) for name in names):
            kinds.add(CONNECTION)
    told = sorted(kind for kind in kinds if kind.startswith("http:") and not kind.endswith("xx"))
    told = told or [kind for kind in (TIMEOUT, CONNECTION) if kind in kinds]
    summary = " ".join([*told, type(error).__name__])
    return Failure(kinds=frozenset(kinds), retry_after_seconds=retry_after_seconds, summary=summary)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, and what each was raised from; urllib's and urllib3's ``reason`` counts as that."""
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen and len(seen) < _LONGEST_CHAIN:
        yield following
        seen.add(id(following))
        reason = _attribute(following, "reason")
        if isinstance(following, BaseExceptionGroup) and len(following.exceptions) == 1:
            following = following.exceptions[0]
        elif following.__cause__ is None and isinstance(reason, BaseException):
            following = reason
        else:
            following = following.__cause__


def class_name(cls: type) -> str:
    """A class's name with its module, as it may be written in a policy; builtins go without."""
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def _class_names(cls: type) -> set[str]:
    classes = [each for each in cls.__mro__ if each is not object]
    return {each.__name__ for each in classes} | {class_name(each) for each in classes}


def _status(error: Exception) -> int | None:
    """The HTTP status of the answer that an error stands for."""
    response = _attribute(error, "response")
    metadata = _attribute(response, "ResponseMetadata")
    candidates = (
        _attribute(error, "status_code"),  # openai, anthropic
        _attribute(response, "status_code"),  # httpx, requests
        _attribute(response, "status"),
        _attribute(metadata, "HTTPStatusCode"),  # botocore
        _attribute(error, "status"),  # aiohttp
        _attribute(error, "code"),  # urllib, google-genai
    )
    for value in candidates:
        if isinstance(value, int) and not isinstance(value, bool) and 300 <= value <= 599:
            return int(value)
    return None


def _retry_after_seconds(error: Exception, clock: Callable[[], datetime]) -> float | None:
    """What the answer's headers ask, or an attribute ``retry_after`` of the error itself."""
    response = _attribute(error, "response")
    metadata = _attribute(response, "ResponseMetadata")
    for source in (
        _attribute(response, "headers"),
        _attribute(error, "headers"),
        _attribute(metadata, "HTTPHeaders"),
    ):
        headers = _lower_case(source)
        milliseconds = _number(headers.get("retry-after-ms"))  # openai's and Azure's, finer than the standard's
        if milliseconds is not None:
            return _bounded(milliseconds / 1000)
        text = headers.get("retry-after")
        seconds = _number(text)
        if seconds is None and text is not None:
            seconds = _seconds_until(text, clock)
        if seconds is not None:
            return _bounded(seconds)
    asked = _attribute(error, "retry_after")
    if isinstance(asked, timedelta):
        return _bounded(asked.total_seconds())
    if isinstance(asked, int) and not isinstance(asked, bool):
        return _bounded(float(min(asked, int(LONGEST_RETRY_AFTER_SECONDS))) if asked > 0 else 0.0)
    if isinstance(asked, float):
        seconds = _number(str(asked))
        return None if seconds is None else _bounded(seconds)
    return None


def _seconds_until(date: str, clock: Callable[[], datetime]) -> float | None:
    try:
        moment = parsedate_to_datetime(date)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - clock()).total_seconds()


def _number(text: str | None) -> float | None:
    try:
        number = math.nan if text is None else float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _bounded(seconds: float) -> float:
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER_SECONDS)


def _lower_case(headers: object) -> Mapping[str, str]:
    """Headers by lower-case name, from any client's mapping."""
    items = _attribute(headers, "items")
    try:
        pairs = list(items()) if callable(items) else []
        return {str(name).lower(): str(value).strip() for name, value in pairs}
    except Exception:  # noqa: BLE001 - a foreign object that only looked like headers
        return {}


def _attribute(holder: object, name: str) -> object:
    """An attribute of a foreign object, or an entry of a dictionary; ``None`` where there is none or it raises."""
    if isinstance(holder, dict) and name in holder:
        return holder[name]
    try:
        return getattr(holder, name, None)
    except Exception:  # noqa: BLE001 - a client's property may raise anything, and here only its value counts
        return None
