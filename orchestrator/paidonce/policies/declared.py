"""The single keys of a policy that a decorator gives: ``@tool(retry=4, breaker={"window": "10s"})``.

Owns how Python writes them and the errors about them. The result is what ``PolicyBook`` takes; whether a policy of
the decorator's name exists is asked there, as the file is none of a decorator's business.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from pydantic import ValidationError

from paidonce.policies.book import DecoratorKeys
from paidonce.policies.keys import BREAKER, FIELDS
from paidonce.policies.layers import Entry, contradictions, written_keys
from paidonce.policies.problems import problems_in_keys
from paidonce.policies.schema import PolicySection
from paidonce.policies.yaml_text import KeyPath
from paidonce.retry import Retry
from paidonce_models.errors import DeclarationError

_WHEN_OPEN = "breaker.when_open"
_RETRY_NAMES = {"base_seconds": "base", "cap_seconds": "cap"}
"""As ``Retry`` calls them, and as policies do."""


def decorator_keys(
    where: str,
    *,
    timeout: float | timedelta | str | Mapping[str, object] | None = None,
    retry: object = None,
    breaker: bool | Mapping[str, object] | None = None,
    when_open: str | None = None,
) -> DecoratorKeys:
    """The keys that were given, checked as the file's are. ``None`` is not given.

    ``when_open`` is ``breaker={"when_open": …}`` without switching a breaker on. Raises ``DeclarationError`` that
    begins with ``where``.
    """
    given = {"timeout": timeout, "retry": _retry(retry), BREAKER: breaker}
    # Checked as plain dictionaries, which is what strict validation takes.
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
            "base": min(value.base_seconds, value.cap_seconds),  # a Retry's cap may be the smaller: it then counts
            "cap": value.cap_seconds,
            "retry_on": list(value.retry_on),
        }
    if isinstance(value, Mapping):
        return {_RETRY_NAMES.get(str(name), str(name)): entry for name, entry in value.items()}
    return value
