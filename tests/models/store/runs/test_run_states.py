"""A run is blocked by a step only while nothing else can wake its agent, and says so again after a race."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from paidonce_models.payloads.payload_parts import split
from paidonce_models.states import AttemptOutcome
from paidonce_models.store.blocking.blocked_steps import (
    BODY,
    ENCODED,
    Blocking,
    find_blocked,
    find_blocked_step,
    settle,
)
from paidonce_models.store.recovery.sweeping import due_timers, fire_timer
from paidonce_models.store.runs.run_states import update_stale_run_states
from paidonce_models.store.steps.claims import Claim
from paidonce_models.store.steps.completion import Acceptance, Completion
from tests.models.stored_runs import NAMESPACE, SECOND_US, Store, succeeded

BLOCKED = ("blocked", "result_not_storable")
WAITING = ("waiting", None)
STEP = "module.work"


def block(store: Store, claim: Claim) -> None:
    blocking = Blocking(reason="result_not_storable", form=ENCODED, kept=split(b'"paid"'), shape=BODY)
    completion = Completion(
        claim=claim,
        worker="w1",
        outcome=AttemptOutcome.BLOCKED,
        error={"type": "ResultNotStorable", "message": "no"},
        blocking=blocking,
    )
    assert store.complete(completion) is Acceptance.ACCEPTED


def state(store: Store, run_id: str) -> tuple[str, str | None]:
    row = store.row("SELECT state, state_reason, error FROM runs WHERE id = :r", r=run_id)
    assert (row.error is not None) == (row.state == "blocked")
    return row.state, row.state_reason


def say(store: Store, run_id: str, assignments: str) -> None:
    with store.database.write() as connection:
        connection.execute(text(f"UPDATE runs SET {assignments} WHERE id = :r"), {"r": run_id})


def test_the_timer_of_a_run_whose_step_is_blocked_fires(store: Store) -> None:
    run_id = store.running()
    claim = store.claimed(run_id)
    say(store, run_id, f"wake_at_us = {store.clock() + 60 * SECOND_US}")
    block(store, claim)
    assert state(store, run_id) == WAITING
    store.clock.move(61 * SECOND_US)
    assert [each.run_id for each in store.read(due_timers, namespace=NAMESPACE, shard=0)] == [run_id]
    assert store.transact(fire_timer, run_id) is not None
    store.advance(run_id)  # the agent waits on for the step alone
    assert state(store, run_id) == BLOCKED


def test_a_run_whose_step_is_blocked_waits_for_its_child_run(store: Store) -> None:
    run_id = store.running(steps=1, children=1)
    block(store, store.claimed(run_id))
    assert state(store, run_id) == WAITING
    child = store.row("SELECT child_run_id FROM steps WHERE run_id = :r AND position = 2", r=run_id).child_run_id
    assert store.advance(child, end=succeeded())
    store.advance(run_id)
    assert state(store, run_id) == BLOCKED


def test_an_advance_that_raced_with_a_blocked_step_is_put_right(store: Store) -> None:
    run_id = store.running()
    block(store, store.claimed(run_id))
    assert state(store, run_id) == BLOCKED
    say(store, run_id, "state = 'running', state_reason = NULL, error = NULL")
    store.transact(update_stale_run_states, namespace="another", shard=0)
    assert state(store, run_id) == ("running", None)
    store.transact(update_stale_run_states, namespace=NAMESPACE, shard=0)
    assert state(store, run_id) == BLOCKED


def test_a_run_that_can_proceed_is_not_stale(store: Store) -> None:
    run_id = store.running(steps=2)
    block(store, store.claimed(run_id))
    store.transact(update_stale_run_states, namespace=NAMESPACE, shard=0)
    assert state(store, run_id) == ("running", None)
    blocked = store.read(find_blocked_step, run_id=run_id, position=1)
    assert blocked is not None
    assert store.transact(settle, blocked, split(b'"paid"')) is not None
    store.transact(update_stale_run_states, namespace=NAMESPACE, shard=0)
    assert state(store, run_id) == ("running", None)


@pytest.mark.parametrize("most", [1, 2])
def test_blocked_steps_are_found_page_by_page(store: Store, most: int) -> None:
    run_id = store.running(steps=3)
    for position in (1, 2, 3):
        block(store, store.claimed(run_id, position))
    found: list[int] = []
    after = None
    while page := store.read(find_blocked, namespace=NAMESPACE, names=[STEP], after=after, most=most):
        found += [each.position for each in page]
        after = page[-1]
    assert sorted(found) == [1, 2, 3]
