"""An exception of user code as data: what the store keeps of it and what an agent is told.

Owns that any exception can be described, whatever its ``__str__`` does and however long its text is, in texts that
every store takes, and that no credential is in them: they are masked here, before they are stored and before the
agent is told, so that it sees the same live and on replay. It never raises, and never keeps the exception object.
"""

from __future__ import annotations

import traceback
from types import TracebackType

from paidonce_models.errors import PaidonceError
from paidonce_models.masking import mask, mask_values

LONGEST_MESSAGE = 10_000
"""Characters. A message is in the event, the step and the attempt, and an agent reads it at each replay."""
LONGEST_TRACEBACK = 20_000
LONGEST_MASKED = 1_000_000
"""Characters that are searched for credentials. What lies behind is cut off, as the limits above are far lower."""
_OUR_PACKAGES = frozenset({"paidonce", "paidonce_workers"})


def error_of(error: BaseException) -> dict[str, object]:
    """An exception as JSON; Paidonce's own keep their details."""
    if isinstance(error, PaidonceError):
        ours = error.to_json()
        return {**ours, "message": mask(error.message), "details": mask_values(error.details)}
    described: dict[str, object] = {"type": type(error).__name__, "code": "user_error", "message": _message_of(error)}
    if isinstance(error, BaseExceptionGroup):
        described["errors"] = [error_of(each) for each in error.exceptions]
    return described


def traceback_of(error: BaseException) -> str:
    """The traceback as text, from the user's own code on; the end of it where it is long."""
    if isinstance(error, PaidonceError) and error.__traceback__ is None:
        return mask(error.message)
    text = "".join(traceback.format_exception(type(error), error, _from_user_code(error.__traceback__)))
    text = mask(text[-LONGEST_MASKED:])  # before it is cut, which may part a credential from what tells it is one
    return storable(text if len(text) <= LONGEST_TRACEBACK else "…" + text[-LONGEST_TRACEBACK:])


def storable(text: str) -> str:
    """The text with NUL and halves of surrogate pairs written as escapes: no column of PostgreSQL takes them."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\x00", "\\x00")


def _message_of(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception as failure:  # noqa: BLE001 - a `__str__` of the user's raises what it likes
        return f"(its text cannot be made: {type(failure).__name__})"
    if not text:
        return type(error).__name__
    length = len(text)
    text = mask(text[:LONGEST_MASKED])
    if length <= LONGEST_MASKED and len(text) <= LONGEST_MESSAGE:
        return text
    return f"{text[:LONGEST_MESSAGE]}… ({length:,} characters)"


def _from_user_code(trace: TracebackType | None) -> TracebackType | None:
    """The traceback without our frames above the body; the whole of it where it holds no others."""
    rest = trace
    while rest is not None:
        package = str(rest.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
        if package not in _OUR_PACKAGES:
            return rest
        rest = rest.tb_next
    return trace
