"""Steps that wait for an open circuit, and those that are told of it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from paidonce_models.errors import CircuitOpen, PaidonceError, error_from_json
from paidonce_models.states import AttemptOutcome
from paidonce_models.store.circuits.breaker_transitions import read_transitions, record_transition
from paidonce_models.store.circuits.parked_reasons import why_parked
from paidonce_models.store.circuits.parked_steps import (
    KnownOpen,
    Parking,
    circuits_with_parked_steps,
    give_up_parked,
    oldest_parked,
    park_step,
    postpone_parked,
    refuse_step,
    tidy_parked_steps,
    unpark_step,
)
from paidonce_models.store.runs.ending_runs import fail_run
from paidonce_models.store.runs.events import EventKind, read_events
from paidonce_models.store.steps.completion import Acceptance
from tests.models.stored_runs import NAMESPACE, PRICE_NANOUSD, SECOND_US, Store, failure, succeeded, success

PLACE = {"namespace": NAMESPACE, "shard": 0}
PARKING = Parking(circuit="search", retry_in_us=15 * SECOND_US, most_us=3600 * SECOND_US)
OPEN = CircuitOpen.of("search", since=None, retry_at=None, reason="5 failures in a row")


def park(store: Store, run_id: str, position: int = 1, parking: Parking = PARKING) -> bool:
    return store.transact(park_step, namespace=NAMESPACE, run_id=run_id, position=position, parking=parking)


def wake(store: Store, *, most: int = 1, due_only: bool = True) -> list[str]:
    """Let go the oldest; the runs they belong to."""
    keys = store.read(oldest_parked, **PLACE, circuit="search", most=most, due_only=due_only)
    messages = [store.transact(unpark_step, key) for key in keys]
    return [message.run_id for message in messages if message is not None]


def state(store: Store, run_id: str) -> tuple[str, str | None, str]:
    run = store.row("SELECT state, state_reason FROM runs WHERE id = :id", id=run_id)
    step = store.row("SELECT state FROM steps WHERE run_id = :id AND position = 1", id=run_id)
    return run.state, run.state_reason, step.state


def test_a_refused_step_waits_without_an_attempt_and_is_counted(store: Store) -> None:
    run_id = store.running()
    assert park(store, run_id)
    assert state(store, run_id) == ("parked", "circuit_open", "parked")
    assert store.rows("SELECT 1 FROM attempts") == []
    assert store.claim(run_id) is None
    assert not park(store, run_id)
    row = store.row("SELECT agent, step, steps, refused_calls FROM refused_calls")
    assert tuple(row) == ("count", "module.work", 1, 1)
    avoided = store.row("SELECT reason, cost_nanousd FROM avoided")
    assert tuple(avoided) == ("circuit_open", None)


def test_it_wakes_when_it_is_due_whatever_anybody_remembers(store: Store) -> None:
    run_id = store.running()
    park(store, run_id)
    assert wake(store) == []
    (at,) = store.read(circuits_with_parked_steps, **PLACE)
    assert (at.circuit, at.steps) == ("search", 1) and 0 < at.due_in_us <= 16 * SECOND_US
    store.clock.move(16 * SECOND_US)
    assert wake(store) == [run_id]
    assert state(store, run_id) == ("running", None, "scheduled")
    assert store.complete(success(store.claimed(run_id))) is Acceptance.ACCEPTED


def test_the_oldest_goes_first_and_a_probe_in_vain_keeps_its_place(store: Store) -> None:
    runs = [store.running() for _ in range(3)]
    for run_id in runs:
        park(store, run_id)
        store.clock.move(SECOND_US)
    store.clock.move(20 * SECOND_US)
    assert wake(store) == [runs[0]]
    assert park(store, runs[0])  # refused again
    store.transact(postpone_parked, **PLACE, circuit="search", retry_in_us=30 * SECOND_US)
    store.clock.move(20 * SECOND_US)
    assert wake(store, most=3) == []
    store.clock.move(20 * SECOND_US)
    assert wake(store, most=3) == runs


def test_a_closed_circuit_lets_them_go_before_they_are_due(store: Store) -> None:
    runs = [store.running() for _ in range(3)]
    for run_id in runs:
        park(store, run_id)
        store.clock.move(SECOND_US)
    assert wake(store, most=2, due_only=False) == runs[:2]


@pytest.mark.parametrize("counts", [True, False])
def test_an_attempt_that_found_the_circuit_open_is_parked_with_what_it_spent(store: Store, counts: bool) -> None:
    run_id = store.running()
    claim = store.claimed(run_id)
    completion = replace(
        failure(claim),
        parking=PARKING,
        counts_as_failure=counts,
        outcome=AttemptOutcome.SHORT_CIRCUITED,
        refused_calls=2,
    )
    assert store.complete(completion) is Acceptance.ACCEPTED
    assert state(store, run_id) == ("parked", "circuit_open", "parked")
    assert store.row("SELECT failed FROM steps").failed == int(counts)
    attempt = store.row("SELECT outcome, cost_nanousd FROM attempts")
    assert tuple(attempt) == ("short_circuited", PRICE_NANOUSD)
    assert store.row("SELECT refused_calls FROM refused_calls").refused_calls == 2
    store.clock.move(16 * SECOND_US)
    assert wake(store) == [run_id]
    assert store.claimed(run_id).attempt == 2


def test_the_agent_is_told_when_it_has_waited_too_long(store: Store) -> None:
    run_id = store.running()
    park(store, run_id, parking=replace(PARKING, most_us=60 * SECOND_US))
    assert store.transact(give_up_parked, **PLACE, known={}) == []
    store.clock.move(61 * SECOND_US)
    (message,) = store.transact(give_up_parked, **PLACE, known={})
    assert message.run_id == run_id
    assert state(store, run_id) == ("running", None, "failed")
    event = store.read(read_events, NAMESPACE, run_id, 1)[0]
    assert event.kind is EventKind.STEP_FAILED and event.data is not None
    error = told(event.data)
    assert isinstance(error, CircuitOpen) and error.target == "module.work"  # the step, not the circuit it shares
    assert error.since is not None and error.retry_at is not None
    assert error.retry_at - error.since == pytest.approx(timedelta(seconds=15), abs=timedelta(seconds=1))
    assert "closed by hand" not in error.message
    assert store.transact(tidy_parked_steps, **PLACE) == 1


def test_a_probe_in_vain_keeps_its_deadline(store: Store) -> None:
    run_id = store.running()
    parking = replace(PARKING, most_us=60 * SECOND_US)
    park(store, run_id, parking=parking)
    for _ in range(2):
        store.clock.move(25 * SECOND_US)
        assert wake(store) == [run_id]
        assert park(store, run_id, parking=parking)
    assert store.transact(give_up_parked, **PLACE, known={}) == []
    store.clock.move(11 * SECOND_US)
    (message,) = store.transact(give_up_parked, **PLACE, known={})
    assert message.run_id == run_id


def test_a_run_with_a_retry_ahead_can_proceed_while_another_step_is_parked(store: Store) -> None:
    run_id = store.running(steps=2)
    store.complete(failure(store.claimed(run_id, 2), retry_after_us=60 * SECOND_US))
    park(store, run_id)
    assert state(store, run_id) == ("running", None, "parked")


def test_what_it_is_told_is_since_when_the_circuit_is_open_and_not_the_step_asleep(store: Store) -> None:
    run_id = store.running()
    park(store, run_id, parking=replace(PARKING, circuit="provider:openai", most_us=60 * SECOND_US))
    store.clock.move(61 * SECOND_US)
    opened = datetime(2026, 1, 1, tzinfo=UTC)
    known = {"provider:openai": KnownOpen(since=opened, retry_at=None)}
    store.transact(give_up_parked, **PLACE, known=known)
    error = told(store.read(read_events, NAMESPACE, run_id, 1)[0].data)
    assert isinstance(error, CircuitOpen) and error.retry_at is None  # it was opened by hand
    assert (error.target, error.since) == ("provider:openai", opened)


def told(data: dict[str, object] | None) -> PaidonceError:
    """The error that an event brings to an agent."""
    assert data is not None and isinstance(data["error"], dict)
    return error_from_json(data["error"])


def test_the_agent_is_told_at_once_where_its_policy_says_so(store: Store) -> None:
    run_id = store.running()
    assert store.transact(refuse_step, namespace=NAMESPACE, run_id=run_id, position=1, error=OPEN.to_json()) is not None
    assert state(store, run_id)[2] == "failed"
    assert store.transact(refuse_step, namespace=NAMESPACE, run_id=run_id, position=1, error=OPEN.to_json()) is None
    assert store.row("SELECT refused_calls FROM refused_calls").refused_calls == 1


def test_the_run_ends_where_its_policy_says_so(store: Store) -> None:
    parent = store.submit().run_id
    store.advance(parent, children=1)
    child = store.row("SELECT id FROM runs WHERE parent_run_id = :id", id=parent).id
    store.advance(child, steps=2)
    store.transact(fail_run, NAMESPACE, child, OPEN.to_json(), grace_seconds=0)
    row = store.row("SELECT state, error FROM runs WHERE id = :id", id=child)
    assert row.state == "failed" and "circuit_open" in row.error
    assert {step.state for step in store.rows("SELECT state FROM steps WHERE run_id = :id", id=child)} == {"cancelled"}
    event = store.read(read_events, NAMESPACE, parent, 1)[0]
    assert event.kind is EventKind.STEP_FAILED
    assert store.transact(fail_run, NAMESPACE, child, OPEN.to_json(), grace_seconds=0) == []


def test_a_parked_step_can_be_cancelled(store: Store) -> None:
    run_id = store.running()
    park(store, run_id)
    assert store.read(why_parked, run_id)[1].startswith(
        "circuit search is open; it waits since 2023-11-14 22:13:20 UTC"
    )
    store.advance(run_id, end=succeeded())
    assert state(store, run_id)[2] == "cancelled"
    store.clock.move(60 * SECOND_US)
    assert wake(store) == []
    assert store.transact(tidy_parked_steps, **PLACE) == 1


def test_every_change_of_a_circuit_is_kept(store: Store) -> None:
    for change in (("closed", "open"), ("open", "half-open"), ("half-open", "closed")):
        store.transact(
            record_transition,
            namespace=NAMESPACE,
            circuit="search",
            from_state=change[0],
            to_state=change[1],
            reason="5 failures in a row",
            worker="w1",
        )
        store.clock.move(SECOND_US)
    found = store.read(read_transitions, NAMESPACE, most=2)
    assert [(view.from_state, view.to_state) for view in found] == [("half-open", "closed"), ("open", "half-open")]
