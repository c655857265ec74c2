"""Marks of runs whose agents' code may be what ends processes, and what deaths prove."""

from __future__ import annotations

import pytest

from paidonce_models.store.recovery.slice_marks import (
    DEATHS_BEFORE_BLOCKING,
    blame_slices,
    delete_mark,
    forget_marks_of_ended_runs,
    marked_by,
    set_mark,
)
from tests.models.stored_runs import NAMESPACE, Store


def mark(store: Store, run_id: str, worker: str, signature: str = "of the dead", namespace: str = NAMESPACE) -> None:
    store.transact(set_mark, namespace=namespace, run_id=run_id, worker=worker, signature=signature)


def deaths(store: Store, run_id: str, count: int) -> list[bool]:
    """So many processes die in the run's code; whether each blocked it."""
    blocked = []
    for number in range(count):
        mark(store, run_id, f"w{number}")
        (blamed,) = store.transact(blame_slices, f"w{number}", counts=True)
        blocked.append(blamed.is_blocked)
    return blocked


def test_the_third_death_in_a_row_blocks_the_run_with_the_signature_of_the_code_that_died(store: Store) -> None:
    run_id = store.running()
    assert deaths(store, run_id, DEATHS_BEFORE_BLOCKING) == [False, False, True]
    run = store.row("SELECT state, state_reason, blocked_signature FROM runs WHERE id = :id", id=run_id)
    assert tuple(run) == ("blocked", "slice_ends_process", "of the dead")


def test_a_slice_that_comes_to_its_end_in_between_begins_the_count_anew(store: Store) -> None:
    run_id = store.running()
    deaths(store, run_id, 2)
    mark(store, run_id, "w9")
    store.transact(delete_mark, run_id=run_id, worker="w9")
    assert deaths(store, run_id, 2) == [False, False]


def test_a_process_that_was_killed_from_outside_counts_for_nothing(store: Store) -> None:
    run_id = store.running()
    for number in range(2 * DEATHS_BEFORE_BLOCKING):
        mark(store, run_id, f"w{number}")
        (blamed,) = store.transact(blame_slices, f"w{number}", counts=False)
        assert (blamed.deaths, blamed.is_blocked) == (0, False)
    assert store.read(marked_by, NAMESPACE, run_id) == ""


@pytest.mark.parametrize("worker", ["", "somebody else"])
def test_a_death_says_nothing_of_what_others_have_marked(store: Store, worker: str) -> None:
    run_id = store.running()
    mark(store, run_id, "w1")
    assert store.transact(blame_slices, worker, counts=True) == []
    assert store.read(marked_by, NAMESPACE, run_id) == "w1"
    store.transact(delete_mark, run_id=run_id, worker=worker)
    assert store.read(marked_by, NAMESPACE, run_id) == "w1"


def test_a_run_of_another_namespace_is_not_marked(store: Store) -> None:
    run_id = store.running()
    mark(store, run_id, "w1", namespace="elsewhere")
    assert store.read(marked_by, NAMESPACE, run_id) == ""


def test_marks_of_runs_that_have_ended_are_forgotten(store: Store) -> None:
    run_id, other = store.running(), store.running()
    mark(store, run_id, "w1")
    mark(store, other, "w1")
    with store.database.write() as connection:
        connection.exec_driver_sql(f"UPDATE runs SET state = 'cancelled' WHERE id = '{run_id}'")
    store.transact(forget_marks_of_ended_runs, NAMESPACE)
    assert [store.read(marked_by, NAMESPACE, each) for each in (run_id, other)] == ["", "w1"]
