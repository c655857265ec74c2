"""Submitting: a key belongs to one run, whoever races for it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from paidonce_models.errors import InvalidInput, KeyConflict, NotFound
from paidonce_models.store.queries import read_run, resolve_run
from paidonce_models.store.runs.submission import Submitted, submit_failed_run
from tests.models.stored_runs import NAMESPACE, Store, new_run

PRODUCERS = 6


def test_producers_that_race_for_a_key_get_one_run(store: Store) -> None:
    barrier = Barrier(PRODUCERS)

    def produce(_: int) -> Submitted:
        barrier.wait()
        return store.submit(key="req-42")

    with ThreadPoolExecutor(PRODUCERS) as pool:
        submitted = list(pool.map(produce, range(PRODUCERS)))
    assert len({each.run_id for each in submitted}) == 1
    assert sum(each.created for each in submitted) == 1
    (events,) = store.row("SELECT count(*) FROM run_events")
    assert events == 1


def test_a_key_with_another_input_is_refused_naming_both(store: Store) -> None:
    first = store.submit(1, key="k")
    with pytest.raises(KeyConflict) as refused:
        store.submit(2, key="k")
    assert first.run_id in refused.value.message
    assert '{"value": 1}' in refused.value.message and '{"value": 2}' in refused.value.message
    assert len(store.rows("SELECT id FROM runs")) == 1


def test_a_key_that_conflicts_under_a_race_is_refused_to_all_but_one_input(store: Store) -> None:
    barrier = Barrier(PRODUCERS)

    def produce(value: int) -> str:
        barrier.wait()
        try:
            return store.submit(value % 2, key="k").run_id
        except KeyConflict:
            return "refused"

    with ThreadPoolExecutor(PRODUCERS) as pool:
        answers = list(pool.map(produce, range(PRODUCERS)))
    assert answers.count("refused") == PRODUCERS // 2
    assert len(set(answers)) == 2


def test_a_key_is_an_agents_own(store: Store) -> None:
    assert store.submit(key="k").run_id != store.submit(key="k", agent="other").run_id
    assert store.submit(key="k").run_id != store.submit(key="k", namespace="elsewhere").run_id


def test_runs_without_a_key_are_never_the_same(store: Store) -> None:
    assert store.submit().run_id != store.submit().run_id


def test_the_same_key_finds_a_run_that_has_ended(store: Store) -> None:
    run_id = store.submit(key="k").run_id
    store.advance(run_id, end=None)
    again = store.submit(key="k")
    assert again.run_id == run_id and not again.created


def test_an_alias_is_another_name_of_the_run(store: Store) -> None:
    run_id = store.submit(key="k", alias="task-1").run_id
    store.submit(key="k", alias="task-2")
    for name in (run_id, "task-1", "task-2"):
        assert store.read(resolve_run, NAMESPACE, name) == run_id


def test_a_name_nobody_gave_is_not_found(store: Store) -> None:
    run_id = store.submit(alias="task-1").run_id
    for namespace, name in ((NAMESPACE, "task-3"), ("elsewhere", "task-1"), ("elsewhere", run_id)):
        with pytest.raises(NotFound):
            store.read(resolve_run, namespace, name)


def test_a_submission_that_cannot_run_is_kept_with_its_error(store: Store) -> None:
    submitted = store.transact(submit_failed_run, new_run(alias="t"), {"type": "UnknownAgent", "message": "who?"})
    run = store.read(read_run, NAMESPACE, store.read(resolve_run, NAMESPACE, "t"))
    assert run.run_id == submitted.run_id
    assert (run.state, run.error) == ("failed", {"type": "UnknownAgent", "message": "who?"})
    assert run.finished_at is not None


def test_a_priority_out_of_range_writes_nothing(store: Store) -> None:
    with pytest.raises(InvalidInput, match="priority 10"):
        store.submit(priority=10)
    assert not store.rows("SELECT id FROM runs") and not store.rows("SELECT id FROM payloads")


def test_equal_values_are_stored_once(store: Store) -> None:
    for _ in range(3):
        store.submit({"same": "value"})
    assert len(store.rows("SELECT id FROM payloads")) == 1
    store.submit({"same": "value"}, namespace="elsewhere")
    assert len(store.rows("SELECT id FROM payloads")) == 2
