"""Statements of the sweeper: a timer fires once, when its time has come; leads are each sweeper's own."""

from __future__ import annotations

from sqlalchemy import text

from paidonce_models.store.recovery.sweeping import due_timers, fire_timer, lead, resign
from tests.models.stored_runs import LEASE_US, NAMESPACE, SECOND_US, Store

SOON_US = 60 * SECOND_US


def wake_in(store: Store, run_id: str, microseconds: int) -> None:
    """The agent's earliest deadline, as its advance writes it."""
    at_us = store.clock.now_us + microseconds
    with store.database.write() as connection:
        connection.execute(text("UPDATE runs SET wake_at_us = :at_us WHERE id = :id"), {"at_us": at_us, "id": run_id})


def due(store: Store) -> list[str]:
    return [timer.run_id for timer in store.read(due_timers, namespace=NAMESPACE, shard=0)]


def test_a_timer_fires_when_it_is_due_and_once(store: Store) -> None:
    run_id = store.running()
    wake_in(store, run_id, SOON_US)
    assert (due(store), store.transact(fire_timer, run_id)) == ([], None)
    store.clock.move(SOON_US + SECOND_US)
    assert due(store) == [run_id]
    assert store.transact(fire_timer, run_id) is not None
    assert (due(store), store.transact(fire_timer, run_id)) == ([], None)
    events = store.rows("SELECT kind FROM run_events WHERE run_id = :id ORDER BY seq", id=run_id)
    assert [event.kind for event in events] == ["started", "timer"]


def test_a_timer_that_was_put_off_meanwhile_does_not_fire(store: Store) -> None:
    run_id = store.running()
    wake_in(store, run_id, -SECOND_US)
    assert due(store) == [run_id]
    wake_in(store, run_id, SOON_US)
    assert store.transact(fire_timer, run_id) is None
    assert store.head(run_id).last_seq == 1


def test_who_resigns_gives_up_its_own_leads(store: Store) -> None:
    for shard, leader in ((0, "w1"), (1, "w2")):
        assert store.transact(lead, namespace=NAMESPACE, shard=shard, leader=leader, lease_us=LEASE_US)
    store.transact(resign, namespace=NAMESPACE, leader="w1")
    taken = [store.transact(lead, namespace=NAMESPACE, shard=shard, leader="w3", lease_us=LEASE_US) for shard in (0, 1)]
    assert taken == [True, False]
