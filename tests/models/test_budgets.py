"""Which budgets a run draws on, and when there is room: the arithmetic, without a store."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import example, given
from hypothesis import strategies as st

from paidonce_models.budgets import (
    Balance,
    Basis,
    Budget,
    Estimate,
    Period,
    Refusal,
    Source,
    Unit,
    accounts_of,
    has_room,
    lineage_from_json,
    lineage_of,
    lineage_to_json,
    reserve,
)

NOW = datetime(2026, 11, 25, 23, 59, tzinfo=UTC)


def budget(subject: str, amount: int = 100, **options: object) -> Budget:
    return Budget(**{"subject": subject, "period": Period.DAY, "unit": Unit.USD, "amount": amount, **options})  # type: ignore[arg-type]  # a test's own options


def test_a_child_draws_on_its_own_budgets_and_on_those_of_all_its_ancestors() -> None:
    root = lineage_of("r1", "research", {"user": "u1", "team": "a=b"}, None)
    child = lineage_of("r2", "summarise", {"user": "ignored"}, root)
    assert lineage_from_json(lineage_to_json(child)) == child
    budgets = [
        budget("all", period=Period.MONTH),
        budget("tag:user=u1"),
        budget("tag:team=a=b"),
        budget("agent=research"),
        budget("agent=research", period=Period.RUN, source=Source.DECLARED),
        budget("agent=summarise", period=Period.RUN),
        budget("agent=other"),
        budget("tag:user=ignored"),
    ]
    assert [account.key for account in accounts_of(budgets, child, NOW)] == [
        "agent=research/usd/2026-11-25",
        "all/usd/2026-11",
        "run=r1/usd",
        "run=r2/usd",
        "tag:team=a=b/usd/2026-11-25",
        "tag:user=u1/usd/2026-11-25",
    ]
    assert "run=r2/usd" not in {account.key for account in accounts_of(budgets, root, NOW)}


def test_of_the_budgets_that_one_run_has_for_itself_the_nearest_applies() -> None:
    lineage = lineage_of("r1", "research", {}, None)
    declared = budget("agent=research", 1, period=Period.RUN, source=Source.DECLARED)
    for_agent = budget("agent=research", 2, period=Period.RUN)
    for_run = budget("run=r1", 3, period=Period.RUN)
    for budgets, amount in (
        ([declared], 1),
        ([declared, for_agent], 2),
        ([for_agent, declared], 2),
        ([for_run, declared, for_agent], 3),
    ):
        (account,) = accounts_of(budgets, lineage, NOW)
        assert (account.key, account.subject, account.budget.amount) == ("run=r1/usd", "agent=research", amount)


def test_an_agent_that_awaits_itself_has_an_account_for_each_run() -> None:
    lineage = lineage_of("r2", "research", {}, lineage_of("r1", "research", {}, None))
    accounts = accounts_of([budget("agent=research", period=Period.RUN), budget("agent=research")], lineage, NOW)
    assert [account.key for account in accounts] == ["agent=research/usd/2026-11-25", "run=r1/usd", "run=r2/usd"]


def test_an_attempt_needs_room_in_every_account() -> None:
    accounts = accounts_of(
        [budget("all", 100), budget("all", 10, unit=Unit.TOKENS)], lineage_of("r", "a", {}, None), NOW
    )
    tokens, usd = accounts
    balances = {tokens.key: Balance(spent=3, reserved=3), usd.key: Balance(spent=0, reserved=0)}
    estimates = {
        Unit.USD: Estimate(amount=100, basis=Basis.DECLARED),
        Unit.TOKENS: Estimate(amount=5, basis=Basis.LEARNED),
    }
    refusal = reserve(accounts, balances, estimates)
    assert isinstance(refusal, Refusal)
    assert (refusal.account, refusal.amount, refusal.available) == (tokens, 5, 4)
    assert refusal.message == (
        "budget all per=day tokens (2026-11-25) has 4 tokens left of 10 tokens, its next attempt is expected to take "
        "5 tokens (the most expensive of its last attempts)"
    )
    reserved = reserve(accounts, {**balances, tokens.key: Balance(spent=3, reserved=2)}, estimates)
    assert not isinstance(reserved, Refusal)
    assert [reservation.amount for reservation in reserved] == [5, 100]


@given(
    limit=st.integers(1, 100),
    spent=st.integers(0, 120),
    reserved=st.integers(0, 120),
    amount=st.integers(0, 120),
    basis=st.sampled_from(Basis),
)
@example(limit=5, spent=2, reserved=3, amount=0, basis=Basis.GUESS)
def test_no_reservation_passes_the_limit_and_a_refusal_lasts_as_long_as_there_is_no_room(
    limit: int, spent: int, reserved: int, amount: int, basis: Basis
) -> None:
    (account,) = accounts_of([budget("all", limit)], lineage_of("r", "a", {}, None), NOW)
    balance = Balance(spent=spent, reserved=reserved)
    answer = reserve([account], {account.key: balance}, {Unit.USD: Estimate(amount=amount, basis=basis)})
    if isinstance(answer, Refusal):
        assert not has_room(amount, basis, limit=limit, balance=balance)
        return
    (reservation,) = answer
    assert has_room(amount, basis, limit=limit, balance=balance)
    assert spent + reserved + reservation.amount <= limit
    assert reservation.amount == amount or basis is Basis.GUESS
