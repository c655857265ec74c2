"""Completions: one is accepted, whatever else is reported is refused and its spend recorded."""

from __future__ import annotations

from dataclasses import replace

import pytest

from paidonce_models.states import AttemptOutcome, RunState
from paidonce_models.store.blocking.blocked_steps import Blocking
from paidonce_models.store.circuits.parked_steps import Parking
from paidonce_models.store.ledger.call_rows import insert_calls
from paidonce_models.store.messages import StepMessage
from paidonce_models.store.queries import read_attempts, read_run
from paidonce_models.store.recovery.lost_steps import reclaim_step
from paidonce_models.store.runs.advancing import Progress, write_progress
from paidonce_models.store.steps.claims import Claimant
from paidonce_models.store.steps.completion import (
    Acceptance,
    Completion,
    LogGap,
    complete_alone,
    complete_with_progress,
)
from paidonce_models.store.steps.leases import release_step
from tests.models.stored_runs import (
    NAMESPACE,
    PRICE_NANOUSD,
    SECOND_US,
    Store,
    failure,
    key_of,
    new_step,
    paid_call,
    succeeded,
    success,
)


def _events(store: Store, run_id: str) -> list[tuple[int, str]]:
    rows = store.rows("SELECT seq, kind FROM run_events WHERE run_id = :r ORDER BY seq", r=run_id)
    return [(row.seq, row.kind) for row in rows]


def _attempts(store: Store, run_id: str) -> list[tuple[str | None, int | None]]:
    return [(attempt.outcome, attempt.cost_nanousd) for attempt in store.read(read_attempts, run_id, 1)]


def _next_progress(store: Store, run_id: str, **options: object) -> Progress:
    head = store.head(run_id)
    return Progress(
        **{  # type: ignore[arg-type]
            "from_seq": head.consumed_seq,
            "to_seq": head.consumed_seq + 1,
            "state": RunState.RUNNING,
            "state_reason": None,
            "wake_at_us": None,
            "agent_version": "1",
            "python_minor": "3.11",
            **options,
        }
    )


def test_a_completion_writes_outcome_money_and_event_together(store: Store) -> None:
    run_id = store.running()
    assert store.complete(success(store.claimed(run_id), 42)) is Acceptance.ACCEPTED
    assert _events(store, run_id) == [(1, "started"), (2, "step_succeeded")]
    assert _attempts(store, run_id) == [("accepted", PRICE_NANOUSD)]
    step = store.row("SELECT state, lease_owner, lease_expires_at_us FROM steps")
    assert tuple(step) == ("succeeded", None, None)


def test_a_second_delivery_of_a_completion_does_not_pay_again(store: Store) -> None:
    run_id = store.running()
    completion = success(store.claimed(run_id))
    assert [store.complete(completion) for _ in range(3)] == [Acceptance.ACCEPTED] * 3
    assert _events(store, run_id) == [(1, "started"), (2, "step_succeeded")]
    assert _attempts(store, run_id) == [("accepted", PRICE_NANOUSD)]
    assert store.head(run_id).last_seq == 2


def test_a_second_delivery_of_a_failure_does_not_retry_twice(store: Store) -> None:
    run_id = store.running()
    completion = failure(store.claimed(run_id), retry_after_us=SECOND_US)
    assert [store.complete(completion) for _ in range(2)] == [Acceptance.ACCEPTED] * 2
    assert tuple(store.row("SELECT state, failed FROM steps")) == ("retrying", 1)
    assert _attempts(store, run_id) == [("failed", PRICE_NANOUSD)]
    assert _events(store, run_id) == [(1, "started")]


@pytest.mark.parametrize("finished_first", [True, False], ids=["after the next was accepted", "while the next runs"])
def test_a_zombie_is_fenced_and_its_spend_recorded(store: Store, *, finished_first: bool) -> None:
    run_id = store.running()
    zombie = success(store.claimed(run_id), "stale")
    store.transact(reclaim_step, key_of(zombie.claim), why="dead", alone=True, anyway=True)
    second = success(store.claimed(run_id, worker="w2"), "fresh")
    if finished_first:
        store.complete(second)
    assert store.complete(zombie) is Acceptance.FENCED
    assert store.complete(second) is Acceptance.ACCEPTED
    assert _attempts(store, run_id) == [("fenced", PRICE_NANOUSD), ("accepted", PRICE_NANOUSD)]
    assert _events(store, run_id) == [(1, "started"), (2, "step_succeeded")]
    assert store.head(run_id).last_seq == 2
    calls = store.row("SELECT count(*) AS calls, sum(cost_nanousd) AS cost FROM calls")
    assert (calls.calls, calls.cost) == (2, 2 * PRICE_NANOUSD)


def test_a_zombie_that_reports_twice_is_recorded_once(store: Store) -> None:
    run_id = store.running()
    zombie = success(store.claimed(run_id))
    store.transact(reclaim_step, key_of(zombie.claim), why="dead", alone=True, anyway=True)
    assert [store.complete(zombie) for _ in range(2)] == [Acceptance.FENCED] * 2
    assert _attempts(store, run_id) == [("fenced", PRICE_NANOUSD)]


def test_a_zombies_failure_does_not_put_off_the_next_attempt(store: Store) -> None:
    run_id = store.running()
    zombie = failure(store.claimed(run_id), retry_after_us=SECOND_US)
    store.transact(reclaim_step, key_of(zombie.claim), why="dead", alone=True, anyway=True)
    store.claimed(run_id, worker="w2")
    assert store.complete(zombie) is Acceptance.FENCED
    assert tuple(store.row("SELECT state, attempt, failed FROM steps")) == ("running", 2, 0)


@pytest.mark.parametrize("end", ["parked", "blocked"])
def test_a_zombie_does_not_stop_the_next_attempt(store: Store, end: str) -> None:
    run_id = store.running()
    zombie = failure(store.claimed(run_id))
    store.transact(reclaim_step, key_of(zombie.claim), why="dead", alone=True, anyway=True)
    store.claimed(run_id, worker="w2")
    if end == "parked":
        parking = Parking(circuit="search", retry_in_us=SECOND_US, most_us=60 * SECOND_US)
        stopped = replace(zombie, outcome=AttemptOutcome.SHORT_CIRCUITED, parking=parking)
    else:
        stopped = replace(zombie, outcome=AttemptOutcome.BLOCKED, blocking=Blocking(reason="step_does_not_fit"))
    assert store.complete(stopped) is Acceptance.FENCED
    assert tuple(store.row("SELECT state, attempt, lease_owner FROM steps")) == ("running", 2, "w2")


def test_a_zombie_leaves_the_lease_of_an_attempt_whose_body_is_being_stopped(store: Store) -> None:
    run_id = store.running()
    zombie = success(store.claimed(run_id))
    store.transact(reclaim_step, key_of(zombie.claim), why="dead", alone=True, anyway=True)
    store.claimed(run_id, worker="w2")
    store.advance(run_id, cancelled=(1,))
    assert store.complete(zombie) is Acceptance.FENCED
    assert tuple(store.row("SELECT state, lease_owner FROM steps")) == ("cancelled", "w2")


def test_what_a_cancelled_step_spent_is_recorded(store: Store) -> None:
    run_id = store.running()
    claim = store.claimed(run_id)
    store.advance(run_id, cancelled=(1,))
    assert store.complete(success(claim)) is Acceptance.CANCELLED
    assert _attempts(store, run_id) == [("cancelled", PRICE_NANOUSD)]
    assert _events(store, run_id) == [(1, "started")]
    step = store.row("SELECT state, lease_owner, result_id FROM steps")
    assert tuple(step) == ("cancelled", None, None)


def test_a_completion_after_its_runs_end_is_recorded_as_cancelled(store: Store) -> None:
    run_id = store.running()
    claim = store.claimed(run_id)
    store.advance(run_id, end=succeeded())
    assert store.complete(success(claim)) is Acceptance.CANCELLED
    assert _attempts(store, run_id) == [("cancelled", PRICE_NANOUSD)]
    assert store.read(read_run, NAMESPACE, run_id).state is RunState.SUCCEEDED
    assert store.head(run_id).last_seq == 1


def test_a_step_that_was_handed_back_is_not_completed_by_who_gave_it_up(store: Store) -> None:
    run_id = store.running()
    completion = success(store.claimed(run_id))
    store.transact(release_step, key_of(completion.claim), reason="stopping")
    assert store.complete(completion) is Acceptance.FENCED
    assert store.row("SELECT state FROM steps").state == "scheduled"


def test_a_refused_completion_leaves_no_gap_in_the_log(store: Store) -> None:
    run_id = store.running(steps=2)
    zombie = success(store.claimed(run_id, 1))
    store.transact(reclaim_step, key_of(zombie.claim), why="dead", alone=True, anyway=True)
    with pytest.raises(LogGap):
        store.transact(complete_alone, zombie)
    store.complete(zombie)
    store.complete(success(store.claimed(run_id, 2)))
    assert _events(store, run_id) == [(1, "started"), (2, "step_succeeded")]


def test_completion_and_advance_go_in_one_transaction(store: Store) -> None:
    run_id = store.running()
    completion = success(store.claimed(run_id))
    progress = _next_progress(store, run_id, new_steps=[new_step(2, "step", 2)])
    head = store.head(run_id)
    acceptance, messages = store.transact(complete_with_progress, completion, head, progress, store.clock.now_us)
    assert acceptance is Acceptance.ACCEPTED
    assert len(messages) == 1
    head = store.head(run_id)
    assert (head.consumed_seq, head.last_seq) == (2, 2)
    assert [row.state for row in store.rows("SELECT state FROM steps ORDER BY position")] == ["succeeded", "scheduled"]


def test_the_next_step_is_claimed_in_the_commit_that_schedules_it(store: Store) -> None:
    run_id = store.running()
    completion = success(store.claimed(run_id))
    following, other = new_step(2, "step", 2), new_step(3, "step", 2)
    progress = _next_progress(store, run_id, new_steps=[following, other])
    acceptance, messages = store.transact(
        complete_with_progress,
        completion,
        store.head(run_id),
        progress,
        store.clock.now_us,
        taken=following,
        claimant=Claimant(namespace=NAMESPACE, worker="w2", lease_us=10 * SECOND_US),
    )
    assert acceptance is Acceptance.ACCEPTED
    assert [message.position for message in messages if isinstance(message, StepMessage)] == [3]
    steps = store.rows(
        "SELECT state, attempt, lease_owner, publish_at_us FROM steps WHERE position > 1 ORDER BY position"
    )
    assert tuple(steps[0]) == ("running", 1, "w2", None)
    assert (steps[1].state, steps[1].attempt, steps[1].lease_owner) == ("scheduled", 0, None)
    [attempt] = store.read(read_attempts, run_id, 2)
    assert (attempt.number, attempt.worker, attempt.outcome) == (1, "w2", None)
    assert store.claim(run_id, 2) is None


def test_a_completion_whose_log_moved_on_writes_nothing(store: Store) -> None:
    run_id = store.running(steps=2)
    first, second = (success(store.claimed(run_id, position)) for position in (1, 2))
    progress = _next_progress(store, run_id)
    head = store.head(run_id)
    store.complete(second)
    assert store.transact(complete_with_progress, first, head, progress, store.clock.now_us) == (
        Acceptance.OVERTAKEN,
        [],
    )
    assert store.row("SELECT state FROM steps WHERE position = 1").state == "running"
    assert store.complete(first) is Acceptance.ACCEPTED
    assert _events(store, run_id) == [(1, "started"), (2, "step_succeeded"), (3, "step_succeeded")]


def test_a_zombie_whose_runs_log_has_not_moved_is_fenced(store: Store) -> None:
    run_id = store.running()
    zombie = success(store.claimed(run_id))
    store.transact(reclaim_step, key_of(zombie.claim), why="dead", alone=True, anyway=True)
    store.claimed(run_id, worker="w2")
    progress, head = _next_progress(store, run_id), store.head(run_id)
    assert store.transact(complete_with_progress, zombie, head, progress, store.clock.now_us) == (Acceptance.FENCED, [])


def test_what_a_stopped_body_spent_is_recorded_although_its_attempt_is_cancelled_already(store: Store) -> None:
    run_id = store.running()
    claim = store.claimed(run_id)
    store.transact(release_step, key_of(claim), reason="stopping")
    stopped = Completion(claim=claim, worker="w1", outcome=AttemptOutcome.CANCELLED, calls=[paid_call(claim)])
    assert store.complete(stopped) is Acceptance.FENCED
    assert _attempts(store, run_id) == [("cancelled", PRICE_NANOUSD)]


def test_what_an_attempt_spends_after_it_was_handed_back_is_recorded(store: Store) -> None:
    """Its body was blocked where nothing could stop it, and another attempt has begun."""
    run_id = store.running()
    first = store.claimed(run_id)
    late = success(first)
    store.transact(release_step, key_of(first), reason="stopping")
    second = store.claimed(run_id, worker="w2")
    assert store.complete(late) is Acceptance.FENCED
    assert store.complete(success(second)) is Acceptance.ACCEPTED
    assert _attempts(store, run_id) == [("cancelled", PRICE_NANOUSD), ("accepted", PRICE_NANOUSD)]


def test_of_two_advances_of_the_same_log_one_is_written(store: Store) -> None:
    run_id = store.submit().run_id
    head = store.head(run_id)
    assert store.advance(run_id, steps=1) is not None
    progress = _next_progress(store, run_id, from_seq=head.consumed_seq, to_seq=1, new_steps=[new_step(1, "step", 1)])
    assert store.transact(write_progress, head, progress) is None
    assert len(store.rows("SELECT position FROM steps")) == 1


def test_calls_that_a_heartbeat_wrote_are_not_written_again(store: Store) -> None:
    run_id = store.running()
    claim = store.claimed(run_id)
    early, late = paid_call(claim), paid_call(claim)
    for _ in range(2):
        store.transact(insert_calls, claim=claim, records=[early])
    completion = Completion(
        claim=claim, worker="w1", outcome=AttemptOutcome.ACCEPTED, result=success(claim).result, calls=[early, late]
    )
    store.complete(completion)
    assert _attempts(store, run_id) == [("accepted", 2 * PRICE_NANOUSD)]
