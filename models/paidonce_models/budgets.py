"""Budgets: which of them apply to a run, and whether there is room for one more attempt. Pure.

A *budget* is a rule: a subject (all runs, a tag's value, an agent, one run), a period (each run, UTC day or UTC
month), a unit (money, tokens, steps) and a limit. Each period has an *account* with what is spent and what is
reserved for running attempts. A run draws on the accounts of its *lineage*: its own and those of all its ancestors.

    available = limit - spent - reserved

An attempt reserves its expected cost before it starts. If no reservation is too small, ``spent`` never exceeds the
limit. No clock, session or store here.
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
    """What a budget counts: nano-dollars, input and output tokens, steps that were started."""

    USD = "usd"
    TOKENS = "tokens"
    STEPS = "steps"


class Source(StrEnum):
    """Where a budget comes from: an agent's decorator, or a person's command, which takes precedence."""

    DECLARED = "declared"
    SET = "set"


class Basis(StrEnum):
    """Where an estimate comes from."""

    DECLARED = "declared"
    """The step's declared maximum."""
    LEARNED = "learned"
    """The most expensive of its last accepted attempts."""
    GUESS = "guess"
    """A setting, used while the step has no history; it reserves no more than is left."""


class Ancestor(NamedTuple):
    """A subject that a run belongs to, and the run whose account is used if the period is a run."""

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
        """The budget as the command line shows it, without its amount: ``agent=research per=day usd``."""
        return f"{self.subject} per={self.period} {self.unit}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Account:
    """One period of a budget; ``key`` is the same whichever of the run's rules applies to it."""

    key: str
    subject: str
    """The budget's subject; for the account of a run, its agent's."""
    budget: Budget
    span: str
    """The run's id, ``2026-11-25`` or ``2026-11``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Balance:
    """The contents of an account, in its unit."""

    spent: int
    reserved: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """What an attempt is expected to cost, in a unit."""

    amount: int
    basis: Basis


@dataclass(frozen=True, kw_only=True, slots=True)
class Maxima:
    """The maximum cost of an attempt by the step's decorator; ``None`` where it declares none."""

    nanousd: int | None = None
    tokens: int | None = None

    def of(self, unit: Unit) -> int | None:
        """The maximum in a unit."""
        return self.nanousd if unit is Unit.USD else self.tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class Reservation:
    """What an attempt reserves in an account before it starts."""

    account: Account
    amount: int
    basis: Basis


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """The account that has no room, the requested amount and the available one."""

    account: Account
    amount: int
    available: int
    basis: Basis

    @property
    def message(self) -> str:
        """For people: which budget, the requested amount and its basis, what was left of which limit."""
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
    Basis.LEARNED: "the most expensive of its last attempts",
    Basis.GUESS: "a guess without history",
}


def refusal_text(name: str, span: str, *, limit: int, amount: int, available: int, unit: Unit, basis: Basis) -> str:
    """Why a step is held: the budget, the amount its attempt needs and why, and what is left."""
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
    """The JSON that is stored with a run."""
    return json.dumps(lineage)


def lineage_from_json(text: str) -> Lineage:
    """Parse the output of ``lineage_to_json``."""
    return tuple(Ancestor(*entry) for entry in json.loads(text))


def accounts_of(budgets: Iterable[Budget], lineage: Lineage, now: datetime) -> list[Account]:
    """The accounts that a run of this lineage uses at this time, in the order in which they are locked.

    Of the budgets per run, the nearest applies: one set for the run, else one set for its agent, else the one that its
    agent declares.
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
    """The precedence of budgets per run: the highest applies."""
    if budget.source is Source.DECLARED:
        return 0
    return 2 if budget.subject.startswith(RUN) else 1


def reserve(
    accounts: Sequence[Account], balances: Mapping[str, Balance], estimates: Mapping[Unit, Estimate]
) -> list[Reservation] | Refusal:
    """What an attempt reserves in each account, or the first account that has no room for it.

    A guess reserves no more than is left, so that a step without history can start as long as anything is left; the
    other bases need their whole amount. An overdrawn account has no room even for a free attempt.
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
    """Whether a refused attempt could start now, as far as this account is concerned."""
    available = limit - balance.spent - balance.reserved
    return available > 0 if basis is Basis.GUESS else available >= amount
