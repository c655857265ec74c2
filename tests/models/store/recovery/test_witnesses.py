"""The rows of processes: what others read of them, how a death is recorded, and what is sent again after one."""

from __future__ import annotations

import pytest

from paidonce_models.database.transactions import Database
from paidonce_models.liveness import ServerLock
from paidonce_models.store.recovery.lost_steps import expired_leases, reclaim_step
from paidonce_models.store.recovery.sweeping import lead, take_due
from paidonce_models.store.recovery.witnesses import (
    NewWitness,
    WitnessRow,
    forget_silent_witnesses,
    forget_witness,
    hasten_messages,
    leases_of,
    mark_dead,
    read_witnesses,
    record_witness,
)
from paidonce_models.store.steps.leases import renew_leases
from tests.models.stored_runs import LEASE_US, NAMESPACE, SECOND_US, Store, failure, key_of, success
from tests.services.waiting import wait_until


def witness(worker: str, *, place: str = "here", lock: ServerLock | None = None) -> NewWitness:
    """What a process says of itself."""
    return NewWitness(
        worker=worker,
        namespace=NAMESPACE,
        member_of=worker,
        place=place,
        pid=7,
        started="1",
        lock_key=None if lock is None else lock.key,
        server=None if lock is None else lock.server,
    )


def seen(store: Store, *, everywhere: bool = True) -> dict[str, WitnessRow]:
    """What a process at ``here`` reads of all."""
    rows = store.read(read_witnesses, namespace=NAMESPACE, place="here", everywhere=everywhere)
    return {row.worker: row for row in rows}


def test_everybody_sees_its_own_place_and_the_leader(store: Store) -> None:
    for worker, place in (("w1", "here"), ("w2", "there"), ("w3", "there")):
        store.transact(record_witness, witness(worker, place=place))
    assert set(seen(store)) == {"w1", "w2", "w3"}
    assert set(seen(store, everywhere=False)) == {"w1"}
    store.transact(lead, namespace=NAMESPACE, shard=0, leader="w3", lease_us=LEASE_US)
    assert set(seen(store, everywhere=False)) == {"w1", "w3"}


def test_what_a_dead_process_held_is_counted_once(store: Store) -> None:
    run_id = store.running(steps=3)
    store.transact(record_witness, witness("w1"))
    first, second, third = (store.claimed(run_id, position, "w1") for position in (1, 2, 3))
    store.complete(success(third))
    assert seen(store)["w1"].held is None
    assert store.transact(mark_dead, "w1") == 2
    assert store.read(leases_of, "w1") == [key_of(first), key_of(second)]
    store.transact(reclaim_step, key_of(first), why="dead", alone=False, anyway=True)
    assert store.transact(mark_dead, "w1") == 2, "one of two is left, which was not alone for all that"
    assert seen(store)["w1"].held == 2
    assert not store.transact(forget_witness, "w1"), "it still holds a lease"
    store.transact(reclaim_step, key_of(second), why="dead", alone=False, anyway=True)
    assert store.transact(forget_witness, "w1")
    assert not seen(store)


def test_a_process_that_says_it_lives_is_not_dead_whatever_others_concluded(store: Store) -> None:
    store.transact(record_witness, witness("w1"))
    assert store.transact(mark_dead, "w1") == 0
    store.transact(record_witness, witness("w1"))
    assert seen(store)["w1"].held is None
    assert not store.transact(forget_witness, "w1")


def test_of_a_process_without_a_row_nothing_can_be_concluded(store: Store) -> None:
    assert store.transact(mark_dead, "w9") is None


def test_a_lease_that_another_process_has_taken_over_is_not_reclaimed_from_the_dead(store: Store) -> None:
    claim = store.claimed(store.running(), worker="w2")
    assert store.transact(reclaim_step, key_of(claim), why="dead", alone=False, anyway=True, owner="w1") is None
    assert store.transact(reclaim_step, key_of(claim), why="dead", alone=False, anyway=True, owner="w2") is not None


def test_a_living_process_keeps_expired_leases_until_it_counts_as_frozen(store: Store) -> None:
    claim = store.claimed(store.running(), worker="w1")
    other = store.claimed(store.running(), worker="w2")
    place = {"namespace": NAMESPACE, "shard": 0, "living": ["w1"], "frozen_us": 5 * LEASE_US}
    store.clock.move(LEASE_US + SECOND_US)
    assert store.read(expired_leases, **place) == [key_of(other)]
    store.clock.move(5 * LEASE_US - 2 * SECOND_US)
    assert store.read(expired_leases, **place) == [key_of(other)]
    store.clock.move(2 * SECOND_US)
    assert set(store.read(expired_leases, **place)) == {key_of(claim), key_of(other)}
    store.transact(renew_leases, worker="w1", held=[key_of(claim)], lease_us=LEASE_US)
    assert store.transact(reclaim_step, key_of(claim), why="late", alone=False) is None, "it was heard of just in time"


def test_what_was_published_a_moment_ago_is_due_again_after_a_death(store: Store) -> None:
    run_id = store.running(steps=2)
    store.claimed(run_id, 2)
    place = {"namespace": NAMESPACE, "shard": 0}
    assert store.transact(take_due, **place) == []
    store.clock.move(SECOND_US)
    store.transact(hasten_messages, NAMESPACE)
    store.clock.move(SECOND_US)
    (due,) = store.transact(take_due, **place)
    assert (due.message.run_id, getattr(due.message, "position", None)) == (run_id, 1)
    for _ in range(4):  # what was sent again may have gone with the next death
        assert store.transact(take_due, **place) == []
        store.transact(hasten_messages, NAMESPACE)
        store.clock.move(SECOND_US)
        assert [each.message for each in store.transact(take_due, **place)] == [due.message]
    store.transact(hasten_messages, NAMESPACE)
    assert store.transact(take_due, **place) == [], "its own back-off holds from then on"


def test_a_retry_is_not_hastened_before_it_is_due(store: Store) -> None:
    store.complete(failure(store.claimed(store.running()), retry_after_us=4 * SECOND_US))
    store.transact(hasten_messages, NAMESPACE)
    assert store.transact(take_due, namespace=NAMESPACE, shard=0) == []


def test_rows_of_processes_that_are_silent_for_days_are_deleted(store: Store) -> None:
    day = 86_400 * SECOND_US
    store.transact(record_witness, witness("w1"))
    store.transact(record_witness, witness("w2"))
    store.claimed(store.running(), worker="w2")
    store.clock.move(2 * day)
    store.transact(record_witness, witness("w3"))
    store.transact(forget_silent_witnesses, NAMESPACE, after_us=day)
    assert set(seen(store)) == {"w2", "w3"}


def test_a_lock_on_the_server_is_seen_by_others_and_its_end_too(postgres_database: str) -> None:
    store, database = Store(postgres_database), Database(postgres_database, pool_size=1)
    locks = [ServerLock(database), ServerLock(database)]
    for worker, lock in zip(("w1", "w2"), locks, strict=True):
        lock.acquire()
        store.transact(record_witness, witness(worker, lock=lock))
    store.transact(record_witness, witness("w3"))
    assert {worker: row.lock_is_held for worker, row in seen(store).items()} == {"w1": True, "w2": True, "w3": None}
    locks[0].close()
    wait_until(lambda: seen(store)["w1"].lock_is_held is False, "the server has ended the session and its lock")
    assert {worker: row.lock_is_held for worker, row in seen(store).items()} == {"w1": False, "w2": True, "w3": None}
    store.transact(record_witness, NewWitness(**{**_fields(witness("w1", lock=locks[0])), "server": "another"}))
    assert seen(store)["w1"].lock_is_held is None, "a lock of before the failover says nothing"
    locks[1].close()
    database.close()
    store.database.close()


@pytest.mark.parametrize("key", [1, 2**31, 2**32 - 1, 2**32, 2**63 - 1])
def test_every_key_is_found_among_the_servers_locks(postgres_database: str, key: int) -> None:
    store, database = Store(postgres_database), Database(postgres_database, pool_size=1)
    lock = ServerLock(database)
    lock.acquire()
    with database.read() as connection:
        connection.exec_driver_sql(f"SELECT pg_advisory_lock({key})")
        named = NewWitness(**{**_fields(witness("w1", lock=lock)), "lock_key": key})
        store.transact(record_witness, named)
        assert seen(store)["w1"].lock_is_held is True
    lock.close()
    database.close()
    store.database.close()


def _fields(witness: NewWitness) -> dict[str, object]:
    return {name: getattr(witness, name) for name in NewWitness.__slots__}
