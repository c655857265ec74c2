"""Cancelling: an event, delivered once; runs whose agent cannot be asked end at once."""

from __future__ import annotations

import threading

from sqlalchemy import Connection, text

from paidonce_models.states import RunState
from paidonce_models.store.blocking.blocked_runs import block_run
from paidonce_models.store.messages import AdvanceMessage
from paidonce_models.store.queries import read_run, read_state
from paidonce_models.store.runs.cancel_run import cancel_run
from tests.models.stored_runs import NAMESPACE, Store, succeeded
from tests.services.waiting import wait_until

GRACE_SECONDS = 60.0
WAITING_FOR_A_LOCK = (
    "SELECT pid FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE NOT granted AND datname = current_database()"
)


def _kinds(store: Store, run_id: str) -> list[str]:
    return [row.kind for row in store.rows("SELECT kind FROM run_events WHERE run_id = :r ORDER BY seq", r=run_id)]


def _block(store: Store, run_id: str) -> None:
    blocked = store.transact(
        block_run,
        run_id=run_id,
        from_seq=store.head(run_id).consumed_seq,
        reason="history_mismatch",
        error={"message": "differs"},
        signature="old",
    )
    assert blocked


def _parent_and_child(store: Store) -> tuple[str, str]:
    parent = store.submit().run_id
    store.advance(parent, children=1)
    child = store.row("SELECT child_run_id FROM steps WHERE run_id = :r", r=parent).child_run_id
    return parent, child


def test_a_running_run_is_asked_once(store: Store) -> None:
    run_id = store.running()
    (message,) = store.transact(cancel_run, NAMESPACE, run_id, grace_seconds=GRACE_SECONDS)
    assert isinstance(message, AdvanceMessage) and message.run_id == run_id
    assert store.transact(cancel_run, NAMESPACE, run_id, grace_seconds=GRACE_SECONDS) == []
    assert _kinds(store, run_id) == ["started", "cancel"]
    assert store.read(read_state, NAMESPACE, run_id)[0] is RunState.RUNNING


def test_a_run_that_never_began_ends_at_once(store: Store) -> None:
    run_id = store.submit().run_id
    assert store.transact(cancel_run, NAMESPACE, run_id, grace_seconds=GRACE_SECONDS) == []
    run = store.read(read_run, NAMESPACE, run_id)
    assert run.state is RunState.CANCELLED and run.finished_at is not None
    assert store.advance(run_id, steps=1) is None, "an advance that was under way writes nothing"


def test_a_blocked_run_ends_with_all_it_has_open(store: Store) -> None:
    run_id = store.running(steps=2)
    _block(store, run_id)
    store.transact(cancel_run, NAMESPACE, run_id, grace_seconds=GRACE_SECONDS)
    assert store.read(read_state, NAMESPACE, run_id)[0] is RunState.CANCELLED
    assert {row.state for row in store.rows("SELECT state FROM steps")} == {"cancelled"}


def test_the_parent_of_a_blocked_child_is_told(store: Store) -> None:
    parent, child = _parent_and_child(store)
    store.advance(child, steps=1)
    _block(store, child)
    messages = store.transact(cancel_run, NAMESPACE, child, grace_seconds=GRACE_SECONDS)
    assert [message.run_id for message in messages] == [parent]
    assert _kinds(store, parent) == ["started", "step_failed"]
    assert store.row("SELECT state FROM steps WHERE run_id = :r", r=parent).state == "cancelled"


def test_an_ended_run_is_left_as_it_is(store: Store) -> None:
    run_id = store.running()
    store.advance(run_id, end=succeeded())
    assert store.transact(cancel_run, NAMESPACE, run_id, grace_seconds=GRACE_SECONDS) == []
    assert store.transact(cancel_run, NAMESPACE, "nobody", grace_seconds=GRACE_SECONDS) == []
    assert store.read(read_state, NAMESPACE, run_id)[0] is RunState.SUCCEEDED
    assert _kinds(store, run_id) == ["started"]


def test_the_end_of_a_parent_reaches_its_children(store: Store) -> None:
    parent, child = _parent_and_child(store)
    store.advance(child, steps=1)
    messages = store.advance(parent, end=succeeded())
    assert [message.run_id for message in messages or []] == [child]
    assert _kinds(store, child) == ["started", "cancel"]


def test_a_blocked_child_whose_parent_cancels_it_does_not_stay_blocked(store: Store) -> None:
    parent, child = _parent_and_child(store)
    store.advance(child, children=1)
    grandchild = store.row("SELECT child_run_id FROM steps WHERE run_id = :r", r=child).child_run_id
    store.advance(grandchild, steps=1)
    _block(store, child)
    store.advance(parent, cancelled=(1,))
    assert store.read(read_state, NAMESPACE, child)[0] is RunState.CANCELLED
    assert _kinds(store, grandchild) == ["started", "cancel"]


def test_a_child_that_ends_after_its_parent_tells_nobody(store: Store) -> None:
    parent, child = _parent_and_child(store)
    store.advance(child, steps=1)
    store.advance(parent, end=succeeded())
    store.advance(child, end=succeeded())
    assert store.read(read_state, NAMESPACE, child)[0] is RunState.SUCCEEDED
    assert _kinds(store, parent) == ["started"]


def test_cancelling_a_child_as_it_begins_leaves_no_gap_in_its_parents_log(store: Store) -> None:
    parent, child = _parent_and_child(store)
    cancelling = threading.Thread(
        target=store.transact, args=(cancel_run, NAMESPACE, child), kwargs={"grace_seconds": GRACE_SECONDS}
    )

    def begin(connection: Connection) -> None:
        connection.execute(
            text("UPDATE runs SET state = 'running', consumed_seq = 1, publish_at_us = NULL WHERE id = :r"),
            {"r": child},
        )
        cancelling.start()
        if connection.dialect.name == "postgresql":
            wait_until(lambda: store.rows(WAITING_FOR_A_LOCK), "the cancellation has read the child and waits for it")

    store.transact(begin)
    cancelling.join()
    assert _kinds(store, child) == ["started", "cancel"]
    assert _kinds(store, parent) == ["started"]
    assert store.head(parent).last_seq == 1, "no number was taken for an event that was not written"
