"""The single policy keys of a decorator: ``@tool(retry=4, breaker={"window": "10s"})``.

Owns their Python notation and the errors about them. The result is passed to ``PolicyBook``, which also checks whether
the decorator's named policy exists, because decorators do not know the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from pydantic import ValidationError

from paidonce.policies.file.problems import problems_in_keys
from paidonce.policies.file.yaml_text import KeyPath
from paidonce.policies.keys import BREAKER, FIELDS
from paidonce.policies.policy import DecoratorKeys
from paidonce.policies.precedence import Entry, contradictions, written_keys
from paidonce.policies.retry import Retry
from paidonce.policies.schema import PolicySection
from paidonce_models.errors import DeclarationError

_WHEN_OPEN = "breaker.when_open"
_RETRY_NAMES = {"base_seconds": "base", "cap_seconds": "cap"}
"""``Retry``'s names and those of policies."""


def decorator_keys(
    where: str,
    *,
    timeout: float | timedelta | str | Mapping[str, object] | None = None,
    retry: object = None,
    breaker: bool | Mapping[str, object] | None = None,
    when_open: str | None = None,
) -> DecoratorKeys:
    """The given keys, checked like those of the file. ``None`` counts as not given.

    ``when_open`` is ``breaker={"when_open": …}`` without switching a breaker on. Raises ``DeclarationError`` that
    starts with ``where``.
    """
    given = {"timeout": timeout, "retry": _retry(retry), BREAKER: breaker}
    # Checked as plain dictionaries, as strict validation requires.
    plain = {name: dict(value) if isinstance(value, Mapping) else value for name, value in given.items()}
    written = {name: value for name, value in plain.items() if value is not None}
    if when_open is not None and (breaker is False or (isinstance(breaker, Mapping) and "when_open" in breaker)):
        raise DeclarationError(f"{where}: when_open={when_open!r} with breaker={breaker!r}; keep one of them")
    values = _checked(where, written)
    if when_open is not None:
        values[_WHEN_OPEN] = _checked(where, {BREAKER: {"when_open": when_open}})[_WHEN_OPEN]
    found = contradictions({path: Entry(value=value, source="here") for path, value in values.items()})
    if found:
        raise DeclarationError(f"{where}: {'; '.join(found)}")
    order = [BREAKER, *FIELDS]
    return tuple(sorted(values.items(), key=lambda item: order.index(item[0])))


def _checked(where: str, written: Mapping[str, object]) -> dict[str, object]:
    def place_of(path: KeyPath) -> str:
        return f"{where}: {'.'.join(str(key) for key in path)}"

    try:
        return written_keys(PolicySection.model_validate(written))
    except ValidationError as error:
        raise DeclarationError("; ".join(problems_in_keys(error, place_of))) from None


def _retry(value: object) -> object:
    if isinstance(value, Retry):
        return {
            "max_attempts": value.max_attempts,
            "base": min(value.base_seconds, value.cap_seconds),  # a Retry's cap may be smaller, and then applies
            "cap": value.cap_seconds,
            "retry_on": list(value.retry_on),
        }
    if isinstance(value, Mapping):
        return {_RETRY_NAMES.get(str(name), str(name)): entry for name, entry in value.items()}
    return value
