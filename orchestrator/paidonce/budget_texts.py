"""Parses budgets as people write them: ``agent=research per=day usd=20``.

Owns the notation of subjects, periods and amounts; never touches the store. Every error says what was found and what
to write instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final

from paidonce.stored_texts import MAX_TAG_BYTES, fits, found_instead
from paidonce_models.budgets import AGENT, ALL_RUNS, RUN, TAG, Period, Unit
from paidonce_models.errors import InvalidInput
from paidonce_models.money import nanousd_from_usd

EXAMPLE: Final = "as in: agent=research per=day usd=20"
LARGEST_AMOUNT: Final = 10**18
MAX_SUBJECT_BYTES: Final = 2 * MAX_TAG_BYTES + len("tag:=")


@dataclass(kw_only=True)
class BudgetWords:
    """The parsed words of a command."""

    subject: str
    per: str | None = None
    amounts: dict[Unit, str | None] = field(default_factory=dict)
    """The units that were named, ``None`` if no amount was given."""


def parse_words(words: Sequence[str]) -> BudgetWords:
    """Parse the words of ``paidonce budget set`` and ``remove``, in any order. Raises ``InvalidInput``."""
    subjects, per = [], []
    amounts: dict[Unit, str | None] = {}
    for word in words:
        name, separator, value = word.partition("=")
        if name == "per" and separator:
            per.append(value)
        elif name in tuple(Unit):
            if Unit(name) in amounts:
                raise InvalidInput(f"{name} is given twice; a budget has one amount in each unit")
            amounts[Unit(name)] = value if separator else None
        elif word == ALL_RUNS or word.startswith((AGENT, RUN, TAG)):
            subjects.append(word)
        else:
            raise InvalidInput(
                f"{word!r} is not a word of a budget: agent=NAME, tag:NAME=VALUE, run=RUN or all; "
                f"per=run, per=day or per=month; usd=, tokens= or steps= ({EXAMPLE})"
            )
    if len(subjects) != 1 or len(per) > 1:
        found = ", ".join([*subjects, *(f"per={each}" for each in per)]) or "none"
        raise InvalidInput(f"a budget has one subject and one per=, found {found} ({EXAMPLE})")
    return BudgetWords(subject=subjects[0], per=per[0] if per else None, amounts=amounts)


def budget_subject(subject: str) -> str:
    """Check a subject. Raises ``InvalidInput``."""
    if subject == ALL_RUNS:
        return subject
    if not fits(subject, MAX_SUBJECT_BYTES):
        raise InvalidInput(
            f"a budget's subject must have at most {MAX_SUBJECT_BYTES} bytes in UTF-8, found {found_instead(subject)}"
        )
    for prefix in (AGENT, RUN):
        if subject.startswith(prefix) and len(subject) > len(prefix):
            return subject
    name, separator, value = subject.removeprefix(TAG).partition("=")
    if subject.startswith(TAG) and name and separator and value:
        return subject
    raise InvalidInput(f"budget subject {subject!r}; expected agent=NAME, tag:NAME=VALUE, run=RUN or all ({EXAMPLE})")


def budget_period(subject: str, per: str | None) -> Period:
    """The period of an account; a subject that is one run has only ``run``. Raises ``InvalidInput``."""
    one_run = subject.startswith(RUN)
    if per is None and one_run:
        return Period.RUN
    try:
        period = Period(per or "")
    except ValueError:
        found = "nothing" if per is None else repr(per)
        raise InvalidInput(f"per= of a budget: expected run, day or month (UTC), found {found} ({EXAMPLE})") from None
    if one_run and period is not Period.RUN:
        raise InvalidInput(f"{subject} is one run: per={per} makes no sense there; leave it out")
    return period


def budget_amount(unit: Unit, amount: str | int | Decimal) -> int:
    """An amount in nano-dollars, tokens or steps; above 0. Raises ``InvalidInput``."""
    if unit is Unit.USD:
        try:
            value = nanousd_from_usd(amount)
        except InvalidInput as error:
            raise InvalidInput(f"usd={amount}: {error.message}") from None
    else:
        text = str(amount)
        if isinstance(amount, bool) or not text.lstrip("-").isdecimal() or not text.isascii():
            raise InvalidInput(f"{unit}={amount}: expected a whole number")
        value = int(text) if len(text) < 100 else LARGEST_AMOUNT + 1
    if value <= 0:
        raise InvalidInput(
            f"{unit}={amount}: a budget must be more than 0: with nothing left, all its runs would be paused at "
            "once; `paidonce budget remove` lifts it, `paidonce cancel` ends a run"
        )
    if value > LARGEST_AMOUNT:
        raise InvalidInput(f"{unit}={amount!s:.50} is beyond any real spend; check the unit")
    return value
