"""Exceptions of user code as data: what the store keeps and what an agent sees.

Guarantees that any exception can be described, whatever its ``__str__`` does and however long its text is, in texts
that every store accepts, without credentials: they are masked here, before they are stored and before the agent sees
them, so that it sees the same live and on replay. Never raises, and never keeps the exception object.
"""

from __future__ import annotations

import traceback
from types import TracebackType

from paidonce_models.errors import InvalidInput, PaidonceError
from paidonce_models.payloads.encoding import encode_json
from paidonce_models.privacy.masking import mask

LONGEST_MESSAGE = 10_000
"""Characters. A message is stored in the event, the step and the attempt, and an agent reads it at each replay."""
LONGEST_TRACEBACK = 20_000
LONGEST_NAME = 200
"""Characters of a type's name, which user code may choose freely."""
MOST_ERRORS = 100
"""Errors of a group, including nested groups: a fan-out of thousands that all fail needs no more."""
LONGEST_MESSAGES = 30_000
"""Characters of the messages of a whole group, beyond the start of each."""
DEEPEST_GROUP = 20
"""Nested groups; each level also takes a level of JSON."""
_SHORTEST_MESSAGE = 200
LONGEST_MASKED = 1_000_000
"""Characters that are searched for credentials. The rest is cut off, because the limits above are far lower."""
_OUR_PACKAGES = frozenset({"paidonce", "paidonce_workers"})


def error_of(error: BaseException) -> dict[str, object]:
    """An exception as JSON; Paidonce's own keep their details."""
    return _described(error, _Room())


class _Room:
    """What is left of an error's size limit: errors in all, characters of their messages."""

    def __init__(self) -> None:
        self.errors = MOST_ERRORS
        self.characters = LONGEST_MESSAGES


def _described(error: BaseException, room: _Room, depth: int = 0) -> dict[str, object]:
    room.errors -= 1
    if isinstance(error, PaidonceError):
        return _own(error)
    message = _message_of(error, max(room.characters, _SHORTEST_MESSAGE))
    room.characters -= len(message)
    described: dict[str, object] = {
        "type": _shortened(type(error).__name__, LONGEST_NAME),
        "code": "user_error",
        "message": message,
    }
    if isinstance(error, BaseExceptionGroup):
        inner = error.exceptions if depth < DEEPEST_GROUP else ()
        told: list[dict[str, object]] = []
        for each in inner:
            if room.errors <= 0:
                break
            told.append(_described(each, room, depth + 1))
        described["errors"] = told
        if len(told) < len(error.exceptions):
            described["more_errors"] = len(error.exceptions) - len(told)
    return described


def traceback_of(error: BaseException) -> str:
    """The traceback as text, from the user's own code on; only its end if it is long."""
    if isinstance(error, PaidonceError) and error.__traceback__ is None:
        return mask(error.message)
    text = "".join(traceback.format_exception(type(error), error, _from_user_code(error.__traceback__)))
    text = mask(text[-LONGEST_MASKED:])  # before it is cut, which may separate a credential from its name
    return storable(text if len(text) <= LONGEST_TRACEBACK else "…" + text[-LONGEST_TRACEBACK:])


def storable(text: str) -> str:
    """The text with NUL and lone surrogates escaped: no column of PostgreSQL accepts them."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\x00", "\\x00")


def _own(error: PaidonceError) -> dict[str, object]:
    """User code raises these too, with its own text and details."""
    described = error.to_json()
    described["message"] = _shortened(error.message, LONGEST_MESSAGE)
    try:
        fits = len(encode_json(error.details, "details")) <= LONGEST_MESSAGE
    except InvalidInput:
        fits = False
    return described if fits else {**described, "details": {}}


def _message_of(error: BaseException, longest: int = LONGEST_MESSAGE) -> str:
    try:
        text = str(error)
    except Exception as failure:  # noqa: BLE001 - a `__str__` of the user's raises what it likes
        return f"(its text cannot be shown: {type(failure).__name__})"
    length = len(text)
    masked = mask(text[:LONGEST_MASKED]) or type(error).__name__
    return _shortened(masked, min(longest, LONGEST_MESSAGE), length)


def _shortened(text: str, longest: int, length: int | None = None) -> str:
    """The start of a text; ``length`` is its length before it was masked."""
    length = len(text) if length is None else length
    return text if max(len(text), length) <= longest else f"{text[:longest]}… ({length:,} characters)"


def _from_user_code(trace: TracebackType | None) -> TracebackType | None:
    """The traceback without our frames above the body; the whole of it if it has no others."""
    rest = trace
    while rest is not None:
        package = str(rest.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
        if package not in _OUR_PACKAGES:
            return rest
        rest = rest.tb_next
    return trace
