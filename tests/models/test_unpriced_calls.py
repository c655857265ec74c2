"""One definition of an unpriced call, wherever it is counted."""

from __future__ import annotations

import itertools
from dataclasses import replace

from paidonce_models.budgets import Budget, Period, Unit
from paidonce_models.store.budgets.budget_rules import set_budget
from paidonce_models.store.commits.committer import Committer
from paidonce_models.store.commits.items import completion_item
from paidonce_models.store.steps.claims import Claim
from paidonce_models.unpriced_calls import IS_UNPRICED
from paidonce_models.usage import CallKind, CallRecord, CallStatus, UsageSource
from tests.models.stored_runs import NAMESPACE, Store, success

BUDGET = Budget(subject="all", period=Period.MONTH, unit=Unit.USD, amount=10**12)


def every_kind_of_call(claim: Claim) -> list[CallRecord]:
    """Calls in each combination of what the definition looks at."""
    combinations = itertools.product(CallStatus, (None, 0, 5), (None, 0, 3), (None, 0, 3))
    return [
        CallRecord(
            kind=CallKind.LLM,
            started_at_us=claim.claimed_at_us,
            usage_source=UsageSource.EXPLICIT,
            status=status,
            cost_nanousd=cost,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
        )
        for status, cost, input_tokens, output_tokens in combinations
    ]


def test_every_place_counts_the_same_calls_as_unpriced(store: Store) -> None:
    run_id = store.running(steps=2)
    claim = store.claimed(run_id)
    calls = every_kind_of_call(claim)
    expected = {call.id for call in calls if call.is_unpriced}
    assert 0 < len(expected) < len(calls)
    store.complete(replace(success(claim), calls=calls))

    by_expression = store.rows(f"SELECT id FROM calls WHERE {IS_UNPRICED}")
    in_the_view = store.rows("SELECT id FROM ledger_calls WHERE unpriced_calls = 1")
    assert {row.id for row in by_expression} == {row.id for row in in_the_view} == expected
    assert store.row("SELECT unpriced_calls FROM attempts").unpriced_calls == len(expected)

    store.transact(set_budget, NAMESPACE, BUDGET)
    store.claimed(run_id, 2)  # opens the account in mid-period, with what the ledger holds
    assert store.row("SELECT unpriced_calls FROM budget_accounts").unpriced_calls == len(expected)


def test_a_batch_counts_them_too(store: Store) -> None:
    if store.database.is_sqlite:
        return
    claim = store.claimed(store.running())
    completion = replace(success(claim), calls=every_kind_of_call(claim))
    assert Committer(store.database).commit(completion_item(completion))
    expected = sum(call.is_unpriced for call in completion.calls)
    assert store.row("SELECT unpriced_calls FROM attempts").unpriced_calls == expected
