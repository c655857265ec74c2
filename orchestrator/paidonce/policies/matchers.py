"""The words by which a policy names failures: ``timeout``, ``http:5xx``, ``ValueError``, ``!http:429``.

Owns their notation and when a list of them covers a failure. ``failures`` decides which kinds a failure has. Pure.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Final

from paidonce.policies.failures import CONNECTION, TIMEOUT, class_name

EXCEPT: Final = "!"
"""Prefix of an exception: what it names is excluded from what the other entries cover, wherever it is in the list."""
MATCHER_EXAMPLES: Final = (
    "timeout, connection, a status such as http:429 or http:5xx, or the name of an exception class; "
    "each may be excepted, as !http:429"
)

_WORDS: Final = (TIMEOUT, CONNECTION)
_STATUS: Final = re.compile(r"http:[345](?:xx|[0-9]{2})")
_CLASS: Final = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*")


def parse_matcher(value: object) -> str:
    """Normalise a matcher; an exception class becomes its name. Raises ``ValueError``."""
    if isinstance(value, type) and issubclass(value, BaseException):
        return class_name(value)
    if not isinstance(value, str):
        raise ValueError(MATCHER_EXAMPLES)
    word = value.removeprefix(EXCEPT)
    if word in _WORDS or _STATUS.fullmatch(word):
        return value
    # A class in lower case is rare (gaierror), a typing error is not.
    near = difflib.get_close_matches(word.lower(), _WORDS, n=1, cutoff=0.75) if word == word.lower() else []
    if near:
        raise ValueError(f"{near[0]!r}, did you mean that? Otherwise {MATCHER_EXAMPLES}")
    if not _CLASS.fullmatch(word):
        raise ValueError(MATCHER_EXAMPLES)
    return value


def any_matches(matchers: Iterable[str], kinds: frozenset[str], kinds_of_some: frozenset[str] = frozenset()) -> bool:
    """Whether a list covers a failure of these kinds: an entry names one of them, and no exclusion does.

    An exclusion of a kind that only some errors of a group have applies to the whole group.
    """
    covered = False
    for matcher in matchers:
        if matcher.startswith(EXCEPT):
            if matcher[len(EXCEPT) :] in kinds or matcher[len(EXCEPT) :] in kinds_of_some:
                return False
        elif matcher in kinds:
            covered = True
    return covered
