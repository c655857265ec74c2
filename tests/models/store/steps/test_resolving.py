"""A person says what came of a step whose outcome nobody knows."""

from __future__ import annotations

import json

import pytest

from paidonce_models.errors import InvalidInput, NotFound
from paidonce_models.payloads.payload_parts import split
from paidonce_models.store.runs.events import EventKind, read_events
from paidonce_models.store.steps.completion import Acceptance
from paidonce_models.store.steps.leases import mark_unknown
from paidonce_models.store.steps.resolving import resolve_as_failed, resolve_as_succeeded, resolve_by_retry
from tests.models.stored_runs import NAMESPACE, Store, key_of, succeeded, success


def unknown(store: Store) -> str:
    """A run whose first step may have done its work."""
    run_id = store.running(delivery="at_most_once")
    assert store.transact(mark_unknown, key_of(store.claimed(run_id)), error={"type": "StepTimedOut"})
    return run_id


def state(store: Store, run_id: str) -> tuple[str, str | None, str]:
    run = store.row("SELECT state, state_reason FROM runs WHERE id = :id", id=run_id)
    step = store.row("SELECT state FROM steps WHERE run_id = :id AND position = 1", id=run_id)
    return run.state, run.state_reason, step.state


def test_it_succeeded_with_what_the_person_says(store: Store) -> None:
    run_id = unknown(store)
    assert state(store, run_id) == ("waiting", "unknown_outcome", "unknown")
    store.transact(
        resolve_as_succeeded, namespace=NAMESPACE, run_id=run_id, position=1, result=split(b'{"paid": true}')
    )
    assert state(store, run_id) == ("running", None, "succeeded")
    event = store.read(read_events, NAMESPACE, run_id, 1)[0]
    assert (event.kind, event.position, event.attempts) == (EventKind.STEP_SUCCEEDED, 1, 1)
    assert json.loads(bytes(event.payload or b"")) == {"paid": True}


def test_it_failed_and_the_agent_is_told(store: Store) -> None:
    run_id = unknown(store)
    store.transact(resolve_as_failed, namespace=NAMESPACE, run_id=run_id, position=1, message="the bank says no")
    assert state(store, run_id) == ("running", None, "failed")
    event = store.read(read_events, NAMESPACE, run_id, 1)[0]
    assert event.data is not None
    assert event.data["error"] == {
        "type": "ResolvedAsFailed",
        "code": "resolved_as_failed",
        "message": "the bank says no",
    }


def test_it_is_tried_once_more_and_the_old_attempt_is_fenced(store: Store) -> None:
    run_id = store.running(delivery="at_most_once")
    old = store.claimed(run_id)
    store.transact(mark_unknown, key_of(old), error={"type": "StepTimedOut"})
    store.transact(resolve_by_retry, namespace=NAMESPACE, run_id=run_id, position=1)
    assert state(store, run_id) == ("running", None, "scheduled")
    assert store.complete(success(old)) is Acceptance.FENCED
    again = store.claimed(run_id)
    assert again.attempt == 2
    assert store.complete(success(again)) is Acceptance.ACCEPTED


def test_only_what_is_unknown_is_for_a_person_to_say(store: Store) -> None:
    run_id = store.running()
    with pytest.raises(InvalidInput, match="is scheduled, neither unknown"):
        store.transact(resolve_by_retry, namespace=NAMESPACE, run_id=run_id, position=1)
    with pytest.raises(NotFound, match="has no step 7"):
        store.transact(resolve_as_failed, namespace=NAMESPACE, run_id=run_id, position=7, message="no")
    assert store.row("SELECT last_seq FROM runs WHERE id = :id", id=run_id).last_seq == 1


def test_an_ended_run_is_not_told_anything(store: Store) -> None:
    run_id = unknown(store)
    store.advance(run_id, end=succeeded())
    with pytest.raises(InvalidInput, match="is cancelled, neither unknown"):
        store.transact(resolve_by_retry, namespace=NAMESPACE, run_id=run_id, position=1)
