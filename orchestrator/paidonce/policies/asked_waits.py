"""How long the other side asks to wait: in a response's headers, in an attribute of the error, or in its body.

Providers say it in different places: ``Retry-After`` in seconds or as a date, ``retry-after-ms`` (OpenAI, Azure), a
``RetryInfo`` in the error's details (Gemini), a field ``retry_after``, a sentence ("Please try again in 1.2s"), or the
time at which an exhausted limit is reset (``x-ratelimit-reset-tokens``, ``anthropic-ratelimit-*-reset``).

Reads only attributes and headers of a foreign object, and only a body that its client has already read. The search is
bounded, and an implausible time is ignored.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Final

LONGEST_SECONDS: Final = 7 * 86_400.0
"""Longer waits are cut to this: the time for which a step may stay parked by default."""
LARGEST_BODY_BYTES: Final = 64 * 1024
LONGEST_TEXT: Final = 4_096
MOST_VALUES: Final = 200
DEEPEST_VALUE: Final = 8
LONGEST_TIME: Final = 100
"""Maximum characters of a text that is only a number, a time span or a date."""

_TELLS_A_WAIT: Final = frozenset({408, 409, 425, 429})
_FIELDS: Final = {
    "retry_after": 1.0,
    "retry_after_seconds": 1.0,
    "retry_after_ms": 0.001,
    "retryAfter": 1.0,
    "retryAfterSeconds": 1.0,
    "retryAfterMs": 0.001,
    "retryDelay": 1.0,
    "retry_delay": 1.0,
}
"""Fields of a body, and the seconds per unit of a bare number in them. Gemini's ``retryDelay`` is text like ``13s``."""
_CODES: Final = frozenset({"code", "type", "status", "reason"})
_LIMITED: Final = re.compile(
    r"rate.?limit|too.?many|quota|exhausted|overload|unavailable|throttl|slow.?down|server.?error|timeout|^(?:429|5\d\d)$",
    re.I,
)
"""For an error without a status, in a stream that began with 200: codes for which its sentence counts."""
_SENTENCE: Final = re.compile(r"\b(?:try(?:ing)? again|retry|retrying|wait)\s+(?:again\s+)?(?:in|after|for)\s+", re.I)
_AMOUNT: Final = re.compile(
    r"\s*([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*"
    r"(milliseconds?|msecs?|ms|seconds?|secs?|s|minutes?|mins?|m|hours?|hrs?|h|days?|d)(?![A-Za-z])",
    re.I,
)
_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_RESET: Final = re.compile(r"(?:x-ratelimit-reset|ratelimit-reset)(?:-([a-z-]+))?|anthropic-ratelimit-([a-z-]+)-reset")
_SMALLEST_EPOCH: Final = 1e9
"""A bare number in a reset header above this is a time since 1970, below it a number of seconds."""


def asked_wait_seconds(error: Exception, status: int | None, clock: Callable[[], datetime]) -> float | None:
    """The wait in seconds that the error requests, 0 or more; ``None`` if none. ``clock`` is read for dates."""
    headers = _headers_of(error)
    found = _in_retry_after(headers, clock)
    if found is None:
        found = _in_attribute(error, clock)
    if found is None and (status is None or status in _TELLS_A_WAIT or status >= 500):
        found = _in_bodies(error, status, clock)
        if found is None and status == 429:
            found = _until_limits_are_reset(headers, clock)
    return None if found is None else min(max(found, 0.0), LONGEST_SECONDS)


def attribute(holder: object, name: str) -> object:
    """An attribute of a foreign object, or an entry of a dictionary; ``None`` if there is none or reading it raises."""
    if isinstance(holder, dict) and name in holder:
        return holder[name]
    try:
        return getattr(holder, name, None)
    except Exception:  # noqa: BLE001 - a client's property may raise anything, and here only its value counts
        return None


# -- headers -----------------------------------------------------------------------------


def _headers_of(error: Exception) -> list[Mapping[str, str]]:
    response = attribute(error, "response")
    sources = (
        attribute(response, "headers"),
        attribute(error, "headers"),
        attribute(attribute(response, "ResponseMetadata"), "HTTPHeaders"),  # botocore
    )
    return [_lower_case(source) for source in sources]


def _in_retry_after(sources: list[Mapping[str, str]], clock: Callable[[], datetime]) -> float | None:
    for headers in sources:
        milliseconds = _number(headers.get("retry-after-ms"))  # openai's and Azure's, finer than the standard's
        if milliseconds is not None:
            return milliseconds / 1000
        text = headers.get("retry-after")
        seconds = _number(text)
        if seconds is None and text is not None:
            seconds = _until(_date(text[:LONGEST_TIME]), clock)
        if seconds is not None:
            return seconds
    return None


def _until_limits_are_reset(sources: list[Mapping[str, str]], clock: Callable[[], datetime]) -> float | None:
    """The longest time until a limit is reset, of those that are used up."""
    waits: list[float] = []
    for headers in sources:
        for name, text in list(headers.items())[:MOST_VALUES]:
            match = _RESET.fullmatch(name)
            if match is None:
                continue
            left = _number(headers.get(name.replace("reset", "remaining")))
            seconds = _span(text)
            if seconds is None and (number := _number(text)) is not None:
                seconds = number if number < _SMALLEST_EPOCH else number - clock().timestamp()
            if seconds is None:
                seconds = _until(_moment(text), clock)
            if seconds is not None and seconds >= 0 and not left:
                waits.append(seconds)
    return max(waits, default=None)


def _lower_case(headers: object) -> Mapping[str, str]:
    """Headers by lower-case name, from any client's mapping."""
    items = attribute(headers, "items")
    try:
        pairs = list(items()) if callable(items) else []
        return {str(name).lower(): str(value).strip() for name, value in pairs}
    except Exception:  # noqa: BLE001 - a foreign object that only looked like headers
        return {}


# -- the error itself, and its body ------------------------------------------------------


def _in_attribute(error: Exception, clock: Callable[[], datetime]) -> float | None:
    asked = attribute(error, "retry_after")
    if isinstance(asked, str):
        return _told_seconds(asked, 1.0, clock)
    if isinstance(asked, datetime):
        return _until(asked, clock)
    if isinstance(asked, timedelta):
        return asked.total_seconds()
    if isinstance(asked, int) and not isinstance(asked, bool):
        return float(min(max(asked, 0), int(LONGEST_SECONDS)))
    return _number(str(asked)) if isinstance(asked, float) else None


def _in_bodies(error: Exception, status: int | None, clock: Callable[[], datetime]) -> float | None:
    """In what a client has read: openai's and anthropic's ``body``, google-genai's ``details``, a response's bytes.

    Without a status it is no response, but may be the end of a stream, which a client passes as ``body``.
    """
    response = attribute(error, "response")
    bodies = [attribute(error, "body"), attribute(error, "details")]
    if status is not None:
        bodies.append(attribute(response, "_content"))  # httpx and requests, where it was read; the property may read
        bodies.append(attribute(response, "Error"))  # botocore
    for body in bodies:
        if isinstance(body, str | bytes):
            body = _decoded(body)
        found = _in_value(body, clock, is_limit=status is not None)
        if found is not None:
            return found
    return None


def _decoded(body: str | bytes) -> object:
    if len(body) > LARGEST_BODY_BYTES:
        return None
    text = body if isinstance(body, str) else body.decode("utf-8", "replace")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _in_value(body: object, clock: Callable[[], datetime], *, is_limit: bool) -> float | None:
    """The longest wait in a field, else in the first sentence with one, if it is known to be about a limit."""
    fields: list[float] = []
    sentence = None
    for name, value in _values(body):
        if name in _FIELDS:
            seconds = _field_seconds(value, _FIELDS[name], clock)
            if seconds is not None:
                fields.append(seconds)
            continue
        if not is_limit and name in _CODES:
            is_limit = _says_limited(value)
        if sentence is None and isinstance(value, str):
            sentence = _sentence_seconds(value)
    return max(fields, default=sentence if is_limit else None)


def _says_limited(code: object) -> bool:
    if isinstance(code, int):
        return code == 429 or 500 <= code <= 599
    return isinstance(code, str) and _LIMITED.search(code[:LONGEST_TIME]) is not None


def _values(body: object) -> Iterator[tuple[str, object]]:
    """The values of a document with their names, the outer ones first; limited in number."""
    waiting: list[tuple[str, object, int]] = [("", body, 0)]
    looked = 0
    while waiting and looked < MOST_VALUES:
        name, value, depth = waiting.pop(0)
        looked += 1
        if isinstance(value, dict):
            if depth < DEEPEST_VALUE:
                waiting += [(str(key), inner, depth + 1) for key, inner in list(value.items())[:MOST_VALUES]]
            if name in _FIELDS:
                yield name, value
        elif isinstance(value, list):
            if depth < DEEPEST_VALUE:
                waiting += [("", inner, depth + 1) for inner in value[:MOST_VALUES]]
        else:
            yield name, value


def _field_seconds(value: object, unit_seconds: float, clock: Callable[[], datetime]) -> float | None:
    if isinstance(value, dict):  # protobuf's Duration, as some clients decode it
        seconds, nanos = value.get("seconds", 0), value.get("nanos", 0)
        numbers = [_number(str(each)) for each in (seconds, nanos) if not isinstance(each, bool)]
        return None if None in numbers or len(numbers) < 2 else _sensible(numbers[0] + numbers[1] / 1e9)  # type: ignore[operator]  # looked at
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        number = _number(str(value)[:32])
        return None if number is None else _sensible(number * unit_seconds)
    return _told_seconds(value, unit_seconds, clock) if isinstance(value, str) else None


def _told_seconds(text: str, unit_seconds: float, clock: Callable[[], datetime]) -> float | None:
    """Parse a number of units, a time span or a date; a past date counts as now."""
    text = text[:LONGEST_TIME].strip()
    number = _number(text)
    if number is not None:
        return _sensible(number * unit_seconds)
    seconds = _span(text)
    if seconds is None:
        until = _until(_moment(text) or _date(text), clock)
        seconds = None if until is None else max(until, 0.0)
    return seconds


def _sensible(seconds: float) -> float | None:
    return seconds if seconds >= 0 else None


def _sentence_seconds(text: str) -> float | None:
    match = _SENTENCE.search(text[:LONGEST_TEXT])
    return None if match is None else _leading_span(text[match.end() : match.end() + LONGEST_TIME])[0]


def _span(text: str) -> float | None:
    """Parse a text that is only a time span: ``13s``, ``6m0s``, ``20ms``."""
    seconds, rest = _leading_span(text[:LONGEST_TIME])
    return seconds if not rest.strip() else None


def _leading_span(text: str) -> tuple[float | None, str]:
    """The time span at the start of a text, and the rest of the text."""
    total, place, found = 0.0, 0, False
    while (match := _AMOUNT.match(text, place)) is not None:
        unit = match[2].lower()
        total += float(match[1]) * (0.001 if unit.startswith(("ms", "milli")) else _UNITS[unit[0]])
        place, found = match.end(), True
    return (total if found else None), text[place:]


# -- numbers and dates -------------------------------------------------------------------


def _number(text: str | None) -> float | None:
    try:
        number = math.nan if text is None else float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _date(text: str) -> datetime | None:
    try:
        return parsedate_to_datetime(text)
    except (ValueError, OverflowError):  # the latter of a year or a zone that no machine can hold
        return None


def _moment(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


def _until(moment: datetime | None, clock: Callable[[], datetime]) -> float | None:
    if moment is None:
        return None
    aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return (aware - clock()).total_seconds()
