"""Checks of the common options of ``@step``, ``@tool`` and ``@agent``, made where they are written."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from paidonce.budget_texts import LARGEST_AMOUNT
from paidonce.stored_texts import MAX_NAME_BYTES, fits, found_instead
from paidonce.values.parameters import Parameters
from paidonce_models.errors import DeclarationError, InvalidInput
from paidonce_models.money import nanousd_from_usd
from paidonce_models.queues import is_reserved


def check_stored(where: str, option: str, value: object, limit_bytes: int) -> None:
    """Refuse a name that the store has no room for at its declaration rather than in its first run."""
    if not isinstance(value, str) or not fits(value, limit_bytes) or not value.isprintable():
        raise DeclarationError(
            f"{where:.200}: {option}= must be 1 to {limit_bytes} bytes of printable text in UTF-8, found "
            f"{found_instead(value)}; give it a shorter {option}="
        )


def check_queue(where: str, name: str) -> None:
    check_stored(where, "queue", name, MAX_NAME_BYTES)
    if is_reserved(name):
        raise DeclarationError(
            f"{where:.200}: queue={name!r} is a name that Paidonce uses on Redis for submissions; choose another"
        )


def checked_name(where: str, option: str, value: object) -> str | None:
    if value is None or (isinstance(value, str) and value.strip() and fits(value, MAX_NAME_BYTES)):
        return value
    raise DeclarationError(f"{where}: {option}={value!r:.80}; expected a name of {MAX_NAME_BYTES} bytes at most")


def nanousd_of(where: str, name: str, usd: str | Decimal | None, *, least: int) -> int | None:
    if usd is None:
        return None
    try:
        nanousd = nanousd_from_usd(usd)
    except InvalidInput as error:
        raise DeclarationError(f"{where}: {name}={usd!r}: {error.message}") from None
    return count_of(where, name, nanousd, least=least, given=usd)


def count_of(where: str, name: str, value: int | None, *, least: int, given: object = None) -> int | None:
    if value is None:
        return None
    shown = value if given is None else given
    if isinstance(value, bool) or not isinstance(value, int):
        raise DeclarationError(f"{where}: {name}={shown!r}; expected a whole number")
    if value < least:
        raise DeclarationError(f"{where}: {name}={shown!r}; expected {'more than 0' if least else '0 or more'}")
    if value > LARGEST_AMOUNT:
        raise DeclarationError(f"{where}: {name}={shown!r:.50} is beyond any real spend; check the unit")
    return value


def parameters_of(kind: str, fn: Callable[..., Any]) -> Parameters:
    if not inspect.isfunction(fn):
        raise DeclarationError(f"@{kind} on {fn!r}; it takes a plain function, not a method, class or callable object")
    return Parameters.for_function(fn, name=f"{kind} {fn.__name__}")
