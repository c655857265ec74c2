"""Calls whose usage is still to come: counted once, or unknown, whoever dies before it is known."""

from __future__ import annotations

from typing import Any

from paidonce_models.store.ledger.awaited_calls import (
    ENDED_LONG_AGO_US,
    NewAwaitedCall,
    forget_written,
    keep_awaited,
    settle_as_unknown,
    settle_left_behind,
)
from paidonce_models.store.ledger.call_rows import insert_calls
from paidonce_models.store.recovery.lost_steps import reclaim_step
from paidonce_models.store.steps.claims import Claim
from paidonce_models.usage import CallKind, CallRecord, UsageSource
from tests.models.stored_runs import LEASE_US, NAMESPACE, SECOND_US, Store, failure, key_of, success


def waiting(claim: Claim, **options: Any) -> CallRecord:
    given = {"provider": "openai", "model_requested": "gpt-4o-mini", "usage_source": UsageSource.MISSING, **options}
    return CallRecord(kind=CallKind.LLM, started_at_us=claim.claimed_at_us, **given)


def known(record: CallRecord) -> CallRecord:
    return CallRecord(
        id=record.id,
        kind=record.kind,
        started_at_us=record.started_at_us,
        usage_source=UsageSource.PROVIDER,
        input_tokens=100,
        cost_nanousd=700,
        input_cost_nanousd=700,
    )


def keep(store: Store, claim: Claim, *records: CallRecord) -> None:
    new = [NewAwaitedCall(key=key_of(claim), step=claim.name, record=record) for record in records]
    store.transact(keep_awaited, new)


def lose(store: Store, claim: Claim) -> None:
    store.clock.move(LEASE_US + SECOND_US)
    store.transact(reclaim_step, key_of(claim), why="killed", alone=False)


def calls(store: Store) -> list[tuple[Any, ...]]:
    return sorted(
        ((row.attempt, row.cost_nanousd, row.usage_source) for row in store.rows("SELECT * FROM calls")), key=repr
    )


def kept(store: Store) -> int:
    return len(store.rows("SELECT id FROM awaited_calls"))


def test_a_lost_attempt_turns_what_it_waited_for_into_one_unknown_call(store: Store) -> None:
    claim = store.claimed(store.running())
    keep(store, claim, record := waiting(claim, tool="search"))
    keep(store, claim, record)
    lose(store, claim)
    row = store.row("SELECT * FROM calls")
    assert (row.id, row.tool, row.model_requested, row.cost_nanousd) == (record.id, "search", "gpt-4o-mini", None)
    attempt = store.row("SELECT * FROM attempts")
    assert (attempt.outcome, attempt.calls, attempt.unpriced_calls, attempt.cost_nanousd) == ("lost", 1, 1, None)
    assert kept(store) == 0


def test_a_cost_that_was_stated_meanwhile_is_not_lost(store: Store) -> None:
    claim = store.claimed(store.running())
    record = waiting(claim)
    keep(store, claim, record)
    keep(store, claim, waiting(claim, id=record.id, cost_nanousd=5, other_cost_nanousd=5, price_source="explicit"))
    lose(store, claim)
    assert calls(store) == [(1, 5, "missing")]
    assert store.row("SELECT * FROM attempts").cost_nanousd == 5


def test_one_attempt_is_not_settled_with_the_loss_of_another(store: Store) -> None:
    run_id = store.running(steps=2)
    first, second = store.claimed(run_id, 1), store.claimed(run_id, 2)
    keep(store, first, waiting(first))
    keep(store, second, waiting(second))
    store.transact(settle_as_unknown, key_of(first))
    assert (len(calls(store)), kept(store)) == (1, 1)


def test_a_call_is_forgotten_only_once_the_ledger_has_it(store: Store) -> None:
    claim = store.claimed(store.running())
    keep(store, claim, record := waiting(claim))
    assert store.transact(forget_written, [record.id]) == set(), "its completion may never be committed"
    store.transact(insert_calls, claim, [known(record)])
    assert store.transact(forget_written, [record.id]) == {record.id}
    assert kept(store) == 0


def test_a_loss_adds_nothing_to_a_call_that_was_written_with_its_usage(store: Store) -> None:
    claim = store.claimed(store.running())
    keep(store, claim, record := waiting(claim))
    store.transact(insert_calls, claim, [known(record)])
    lose(store, claim)
    assert (calls(store), kept(store)) == ([(1, 700, "provider")], 0)


def test_a_lost_attempt_that_comes_back_adds_what_it_knows_by_now_once(store: Store) -> None:
    claim = store.claimed(store.running())
    keep(store, claim, record := waiting(claim))
    lose(store, claim)
    for _ in range(2):
        store.transact(insert_calls, claim, [known(record)])
    assert calls(store) == [(1, 700, "provider"), (1, None, "missing")]
    attempt = store.row("SELECT * FROM attempts")
    assert (attempt.calls, attempt.unpriced_calls, attempt.cost_nanousd) == (2, 1, 700)


def test_what_an_ended_attempt_leaves_behind_is_settled_after_a_while(store: Store) -> None:
    claim = store.claimed(store.running())
    keep(store, claim, waiting(claim))
    store.complete(success(claim))
    store.transact(settle_left_behind, NAMESPACE)
    assert kept(store) == 1, "its process may be about to write it"
    store.clock.move(ENDED_LONG_AGO_US + SECOND_US)
    store.transact(settle_left_behind, "others")
    assert kept(store) == 1
    store.transact(settle_left_behind, NAMESPACE)
    assert (len(calls(store)), kept(store)) == (2, 0)


def test_what_a_former_attempt_leaves_behind_is_settled_without_that_of_the_present_one(store: Store) -> None:
    run_id = store.running()
    first = store.claimed(run_id)
    keep(store, first, waiting(first))
    store.complete(failure(first, retry_after_us=0))
    store.clock.move(ENDED_LONG_AGO_US + SECOND_US)
    second = store.claimed(run_id)
    keep(store, second, waiting(second))
    store.transact(settle_left_behind, NAMESPACE)
    assert [(attempt, source) for attempt, _, source in calls(store)] == [(1, "explicit"), (1, "missing")]
    assert kept(store) == 1


def test_a_call_that_was_settled_meanwhile_is_not_asked_about_again(store: Store) -> None:
    claim = store.claimed(store.running())
    keep(store, claim, record := waiting(claim))
    lose(store, claim)
    assert store.transact(forget_written, [record.id]) == {record.id}
    assert store.transact(forget_written, []) == set()
