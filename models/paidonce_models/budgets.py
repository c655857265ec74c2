"""Budgets: which of them a run draws on, and whether there is room for one more attempt. Pure.

A *budget* is a rule: a subject (all runs, a tag's value, an agent, one run), a period (each run, UTC day or UTC
month), a unit (money, tokens, steps) and a limit. Each period has an *account* with what is spent and what is
reserved for attempts under way. A run draws on the accounts of its *lineage*: its own and those of all its ancestors.

    available = limit - spent - reserved

An attempt reserves before it starts what it is expected to cost. With reservations that are never too small,
``spent`` never passes the limit. No clock, session or store here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from paidonce_models.money import usd_string

ALL_RUNS = "all"
"""The subject that every run belongs to."""
AGENT = "agent="
RUN = "run="
TAG = "tag:"


class Period(StrEnum):
    """How long an account lasts. Days and months are those of UTC."""

    RUN = "run"
    DAY = "day"
    MONTH = "month"


class Unit(StrEnum):
    """What a budget counts: nano-dollars, input and output tokens, steps that were begun."""

    USD = "usd"
    TOKENS = "tokens"
    STEPS = "steps"


class Source(StrEnum):
    """Where a budget comes from: an agent's decorator, or a person's command, which goes first."""

    DECLARED = "declared"
    SET = "set"


class Basis(StrEnum):
    """Where an estimate comes from."""

    DECLARED = "declared"
    """The step's declared maximum."""
    LEARNED = "learned"
    """The dearest of its last accepted attempts."""
    GUESS = "guess"
    """A setting, as long as the step has no history; it takes no more than there is."""


class Ancestor(NamedTuple):
    """A subject that a run belongs to, and the run that is counted for it where the period is a run."""

    subject: str
    run_id: str


Lineage = tuple[Ancestor, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """A rule. ``amount`` is in nano-dollars, tokens or steps and above 0."""

    subject: str
    period: Period
    unit: Unit
    amount: int
    source: Source = Source.SET

    @property
    def name(self) -> str:
        """The budget as the command line writes it, without its amount: ``agent=research per=day usd``."""
        return f"{self.subject} per={self.period} {self.unit}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Account:
    """One period of a budget; ``key`` is the same whichever rule of a run's applies to it."""

    key: str
    subject: str
    """The budget's; of a run's own account its agent's."""
    budget: Budget
    span: str
    """The run's id, ``2026-11-25`` or ``2026-11``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Balance:
    """What an account holds, in its unit."""

    spent: int
    reserved: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """What an attempt is expected to cost, in a unit."""

    amount: int
    basis: Basis


@dataclass(frozen=True, kw_only=True, slots=True)
class Maxima:
    """What a step's decorator says an attempt costs at most; ``None`` where it says nothing."""

    nanousd: int | None = None
    tokens: int | None = None

    def of(self, unit: Unit) -> int | None:
        """The maximum in a unit."""
        return self.nanousd if unit is Unit.USD else self.tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class Reservation:
    """What an attempt takes from an account before it starts."""

    account: Account
    amount: int
    basis: Basis


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """The account that has no room, what was asked of it and what it had left."""

    account: Account
    amount: int
    available: int
    basis: Basis

    @property
    def message(self) -> str:
        """For people: which budget, what was wanted and on what basis, what was left of how much."""
        budget = self.account.budget
        return refusal_text(
            budget.name,
            self.account.span,
            limit=budget.amount,
            amount=self.amount,
            available=self.available,
            unit=budget.unit,
            basis=self.basis,
        )


_BASES = {
    Basis.DECLARED: "its declared maximum",
    Basis.LEARNED: "the dearest of its last attempts",
    Basis.GUESS: "a guess without any history",
}


def refusal_text(name: str, span: str, *, limit: int, amount: int, available: int, unit: Unit, basis: Basis) -> str:
    """Why a step is held: the budget, what its attempt wants and why, and what is left."""
    return (
        f"budget {name} ({span}) has {amount_text(available, unit)} left of {amount_text(limit, unit)}, "
        f"its next attempt is expected to take {amount_text(amount, unit)} ({_BASES[basis]})"
    )


def amount_text(amount: int, unit: Unit) -> str:
    """An amount for people: ``$0.50``, ``1,200 tokens``, ``3 steps``."""
    return usd_string(amount) if unit is Unit.USD else f"{amount:,} {unit}"


def agent_subject(agent: str) -> str:
    """The subject of an agent's runs and their descendants."""
    return f"{AGENT}{agent}"


def run_subject(run_id: str) -> str:
    """The subject of one run and its descendants."""
    return f"{RUN}{run_id}"


def tag_subject(name: str, value: str) -> str:
    """The subject of all runs that carry a tag of this value."""
    return f"{TAG}{name}={value}"


def lineage_of(run_id: str, agent: str, tags: Mapping[str, str], parent: Lineage | None) -> Lineage:
    """The subjects of a run: its ancestors' (``parent``, with the root's tags) and its own."""
    shared = parent
    if shared is None:
        shared = (Ancestor(ALL_RUNS, run_id), *(Ancestor(tag_subject(*tag), run_id) for tag in sorted(tags.items())))
    return (*shared, Ancestor(agent_subject(agent), run_id), Ancestor(run_subject(run_id), run_id))


def lineage_to_json(lineage: Lineage) -> str:
    """As it is stored with a run."""
    return json.dumps(lineage)


def lineage_from_json(text: str) -> Lineage:
    """What ``lineage_to_json`` wrote."""
    return tuple(Ancestor(*entry) for entry in json.loads(text))


def accounts_of(budgets: Iterable[Budget], lineage: Lineage, now: datetime) -> list[Account]:
    """The accounts that a run of this lineage draws on at this time, in the order in which they are locked.

    Of the budgets that one run has for itself, the nearest applies: one that was set for the run, else one that was
    set for its agent, else the agent's declared one.
    """
    by_subject: dict[str, list[Budget]] = {}
    for budget in budgets:
        by_subject.setdefault(budget.subject, []).append(budget)
    agents = {entry.run_id: entry.subject for entry in lineage if entry.subject.startswith(AGENT)}
    found: dict[str, Account] = {}
    for subject, run_id in lineage:
        for budget in by_subject.get(subject, ()):
            account = _account(budget, run_id, agents[run_id], now)
            present = found.get(account.key)
            if present is None or rank(budget) > rank(present.budget):
                found[account.key] = account
    return [found[key] for key in sorted(found)]


def _account(budget: Budget, run_id: str, agent: str, now: datetime) -> Account:
    span = span_of(budget.period, run_id, now)
    if budget.period is Period.RUN and budget.subject.startswith((AGENT, RUN)):
        return Account(key=f"{run_subject(run_id)}/{budget.unit}", subject=agent, budget=budget, span=span)
    return Account(key=f"{budget.subject}/{budget.unit}/{span}", subject=budget.subject, budget=budget, span=span)


def span_of(period: Period, run_id: str, now: datetime) -> str:
    """Which run, UTC day or UTC month; ``now`` is in UTC."""
    if period is Period.RUN:
        return run_id
    return now.strftime("%Y-%m-%d" if period is Period.DAY else "%Y-%m")


def rank(budget: Budget) -> int:
    """Which of the budgets that a run has for itself applies: the highest."""
    if budget.source is Source.DECLARED:
        return 0
    return 2 if budget.subject.startswith(RUN) else 1


def reserve(
    accounts: Sequence[Account], balances: Mapping[str, Balance], estimates: Mapping[Unit, Estimate]
) -> list[Reservation] | Refusal:
    """What an attempt reserves with each account, or the first account that has no room for it.

    A guess takes no more than there is, so that a step without history can begin as long as anything is left; the
    other bases need their whole amount. An account that is overdrawn has no room even for an attempt that is free.
    """
    reservations = []
    for account in accounts:
        estimate = estimates[account.budget.unit]
        balance = balances[account.key]
        available = account.budget.amount - balance.spent - balance.reserved
        amount = estimate.amount
        if estimate.basis is Basis.GUESS and available > 0:
            amount = min(amount, available)
        if available < amount or (estimate.basis is Basis.GUESS and available <= 0):
            return Refusal(account=account, amount=estimate.amount, available=available, basis=estimate.basis)
        reservations.append(Reservation(account=account, amount=amount, basis=estimate.basis))
    return reservations


def has_room(amount: int, basis: Basis, *, limit: int, balance: Balance) -> bool:
    """Whether an attempt that was refused could be begun now, as far as this account goes."""
    available = limit - balance.spent - balance.reserved
    return available > 0 if basis is Basis.GUESS else available >= amount
