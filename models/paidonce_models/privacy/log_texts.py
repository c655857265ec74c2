"""What logs may contain of an exception: never the data that it quotes.

Owns which exceptions may be quoted in a log. An exception's message may contain anything: the text of a prompt, a row
that a database refused, the body of a message. So a log shows the exception's type and where it was raised, and its
message only if it was written by us without data, or by the network stack. The exception of a step itself is in the
store, with its traceback, for those who need it: ``paidonce show RUN --step N``.
"""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Iterable
from typing import Final

from paidonce_models.errors import BrokerUnreachable, CircuitStoreUnreachable, ConfigurationError, StoreError
from paidonce_models.privacy.masking import mask
from paidonce_models.privacy.visible_text import visible

_ID: Final = re.compile(r"[0-9a-fA-F-]{32,36}")
_CONTENT_TYPE: Final = re.compile(r"(?:application|text)/[a-z0-9.+-]{1,40}")
LONGEST_CAUSE: Final = 500
"""Characters."""
MOST_PLACES: Final = 8
_OURS: Final = (StoreError, BrokerUnreachable, CircuitStoreUnreachable, ConfigurationError)
_OF_TRANSPORTS: Final = frozenset({"redis", "kombu", "amqp"})
_SAFE_NAMES: Final = ("ConnectionError", "OperationalError", "TimeoutError", "ConnectionForced", "AuthenticationError")
_OF_THE_PROTOCOL: Final = frozenset(
    {
        *("args", "argsrepr", "body", "body_encoding", "callbacks", "chain", "chord", "content-encoding"),
        *("content-type", "correlation_id", "delivery_info", "delivery_tag", "errbacks", "eta", "expires", "headers"),
        *("id", "kwargs", "kwargsrepr", "lang", "priority", "properties", "reply_to", "root_id", "task", "timelimit"),
    }
)
"""Names that a message may lack; any other name in a ``KeyError`` may be the message's own text."""


def shown_id(text: str) -> str:
    """A run's id as a message names it; a message may hold anything."""
    return text if _ID.fullmatch(text) else "(no id)"


def shown_headers(names: Iterable[object]) -> str:
    """The names of a message's headers: those of Celery's protocol, and the number of others."""
    known = sorted(name for name in map(str, names) if name in _OF_THE_PROTOCOL)
    others = sum(1 for name in names if str(name) not in _OF_THE_PROTOCOL)
    return ", ".join([*known, *([f"{others} other(s)"] if others else [])])


def shown_type(content_type: object) -> str:
    """A message's content type, if it looks like one."""
    text = str(content_type)
    return text if _CONTENT_TYPE.fullmatch(text) else "(none that is known)"


def loggable(text: object, longest: int = LONGEST_CAUSE) -> str:
    """A text from outside for a log: one line, no credentials, limited length."""
    given = text if isinstance(text, str) else str(text)
    line = visible(mask(given[: 8 * longest]))
    return (
        line if len(line) <= longest and len(given) <= 8 * longest else f"{line[:longest]}… ({len(given):,} characters)"
    )


def cause_of(error: BaseException) -> str:
    """An exception in a log: its type, and its message if that cannot contain a prompt, a result or a row."""
    name = type(error).__name__
    said = _said(error)
    return loggable(f"{name}: {said}" if said else name)


def failure_of(error: BaseException) -> str:
    """The same with the places where it was raised, innermost first, for unexpected errors."""
    places = [f"{os.path.basename(each.filename)}:{each.lineno}" for each in traceback.extract_tb(error.__traceback__)]
    where = " < ".join(reversed(places[-MOST_PLACES:]))
    return f"{cause_of(error)} at {loggable(where)}" if where else cause_of(error)


def _said(error: BaseException) -> str:
    if isinstance(error, _OURS):
        return error.message
    if isinstance(error, OSError) and error.errno is not None:
        return error.strerror or os.strerror(error.errno)  # without the file's name
    if isinstance(error, ConnectionError | TimeoutError):
        return str(error)
    if isinstance(error, KeyError) and error.args and error.args[0] in _OF_THE_PROTOCOL:
        return str(error)
    kinds = type(error).__mro__
    if any(kind.__module__.partition(".")[0] in _OF_TRANSPORTS and kind.__name__ in _SAFE_NAMES for kind in kinds):
        return str(error)
    return ""
