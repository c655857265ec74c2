"""Who holds which code: runs that nobody can carry on are blocked, and go on when somebody can."""

from __future__ import annotations

from paidonce_models.store.blocking.blocked_runs import block_run, block_unheld
from paidonce_models.store.blocking.run_limits import runs_below, signature_with_limit
from paidonce_models.store.messages import Message
from paidonce_models.store.queries import read_run, read_state
from paidonce_models.store.recovery.sweeping import take_due
from paidonce_models.store.recovery.workers import HeldAgent, Registration, register_worker, worker_seen, worker_stopped
from tests.models.stored_runs import NAMESPACE, QUEUE, SECOND_US, Store, failure

PATIENCE_US = 60 * SECOND_US


def _register(
    store: Store, worker: str = "w1", *, signature: str = "s1", queue: str = QUEUE, **held: object
) -> list[Message]:
    agents = held.get("agents", ["count"])
    steps = held.get("steps", ["module.work"])
    version = str(held.get("version", "1"))
    assert isinstance(agents, list) and isinstance(steps, list)
    registration = Registration(
        worker=worker,
        namespace=NAMESPACE,
        hostname="h",
        pid=1,
        python_minor="3.11",
        queues=[queue],
        agents=[HeldAgent(name=name, version=version, signature=signature, queue=queue) for name in agents],
        steps=steps,
        bounds=held.get("bounds", {}),  # type: ignore[arg-type]  # a test's own words
    )
    return store.transact(register_worker, registration)


def _block_unheld(store: Store) -> int:
    return store.transact(block_unheld, namespace=NAMESPACE, shard=0, patience_us=PATIENCE_US)


def _wait_too_long(store: Store) -> None:
    store.clock.move(PATIENCE_US + SECOND_US)


def test_a_step_nobody_holds_blocks_its_run_after_a_while(store: Store) -> None:
    run_id = store.running()
    store.clock.move(PATIENCE_US - SECOND_US)
    assert _block_unheld(store) == 0
    store.clock.move(2 * SECOND_US)
    assert _block_unheld(store) == 1
    assert _block_unheld(store) == 0
    assert store.read(read_state, NAMESPACE, run_id) == ("blocked", "no_worker")
    error = store.read(read_run, NAMESPACE, run_id).error
    assert error is not None and "module.work" in str(error["message"])


def test_an_agent_nobody_holds_blocks_its_run_after_a_while(store: Store) -> None:
    run_id = store.submit().run_id
    _wait_too_long(store)
    assert _block_unheld(store) == 1
    assert store.read(read_state, NAMESPACE, run_id) == ("blocked", "no_worker")


def test_a_live_worker_that_holds_the_code_keeps_its_backlog_running(store: Store) -> None:
    run_id = store.running()
    waiting = store.submit().run_id
    _wait_too_long(store)
    _register(store)
    assert _block_unheld(store) == 0
    assert store.read(read_state, NAMESPACE, run_id) == ("running", None)
    assert store.read(read_state, NAMESPACE, waiting) == ("pending", None)


def test_workers_that_stopped_vanished_or_listen_elsewhere_hold_nothing(store: Store) -> None:
    store.running()
    _register(store, "stopped")
    _register(store, "vanished")
    store.transact(worker_stopped, "stopped")
    _wait_too_long(store)
    _register(store, "elsewhere", queue="paidonce.other")
    _register(store, "other code", agents=["other"], steps=["module.other"])
    assert _block_unheld(store) == 1


def test_a_worker_that_was_seen_lately_is_alive(store: Store) -> None:
    store.running()
    _register(store)
    _wait_too_long(store)
    store.transact(worker_seen, "w1")
    assert _block_unheld(store) == 0


def test_a_blocked_run_goes_on_when_a_worker_registers_its_code(store: Store) -> None:
    waiting_for_step, waiting_for_agent = store.running(), store.submit().run_id
    _wait_too_long(store)
    assert _block_unheld(store) == 2
    assert _register(store, agents=["other"], steps=["module.other"]) == []
    messages = _register(store)
    assert {message.run_id for message in messages} == {waiting_for_step, waiting_for_agent}
    assert store.read(read_state, NAMESPACE, waiting_for_step) == ("running", None)
    assert store.read(read_state, NAMESPACE, waiting_for_agent)[0] == "running"
    store.clock.move(SECOND_US)
    due = store.transact(take_due, namespace=NAMESPACE, shard=0)
    assert waiting_for_step in [entry.message.run_id for entry in due], "its step's message is sent soon"


def test_a_run_that_met_a_limit_goes_on_with_a_larger_one_or_with_other_code(store: Store) -> None:
    blocked = [store.submit().run_id for _ in range(2)]
    for run_id in blocked:
        signature, error = signature_with_limit(9_999, "s1"), {"code": "too_many_steps"}
        act = {"run_id": run_id, "from_seq": 0, "reason": "too_many_steps", "error": error, "signature": signature}
        assert store.transact(block_run, **act)
    assert _register(store) == [], "a worker that says nothing of its limits changes nothing"
    assert _register(store, bounds={"too_many_steps": 9_999}) == []
    assert _register(store, bounds={"too_many_steps": 1_000, "too_many_runs": 10**9}) == []
    went_on = _register(store, bounds={"too_many_steps": 10_000})
    assert sorted(message.run_id for message in went_on) == sorted(blocked)
    assert store.transact(block_run, **{**act, "run_id": blocked[0]})
    assert [message.run_id for message in _register(store, signature="s2")] == [blocked[0]]


def test_runs_below_a_root_are_counted_no_further_than_asked(store: Store) -> None:
    root = store.submit().run_id
    assert store.read(runs_below, root, most=10) == 0
    for _ in range(3):
        store.submit(parent_run_id=root, parent_position=1, root_run_id=root, depth=1)
    assert store.read(runs_below, root, most=10) == 3
    assert store.read(runs_below, root, most=2) == 2


def test_runs_submitted_to_the_default_queue_just_after_their_agents_worker_registered_move_there(store: Store) -> None:
    """A producer may know the old queue for a moment longer."""
    _register(store, queue="paidonce.brains")
    late, begun = store.submit().run_id, store.running()
    _wait_too_long(store)
    store.transact(worker_seen, "w1")
    assert _block_unheld(store) == 1, "one that has begun elsewhere stays, and nobody takes its queue"
    assert store.read(read_run, NAMESPACE, late).queue == "paidonce.brains"
    assert store.read(read_state, NAMESPACE, late) == ("pending", None)
    assert store.read(read_state, NAMESPACE, begun) == ("blocked", "no_worker")


def test_runs_submitted_before_their_agents_queue_was_known_move_there(store: Store) -> None:
    """Nobody who takes the default queue may hold the agent."""
    waiting, blocked, begun = store.submit().run_id, store.submit().run_id, store.running()
    chosen = store.submit(queue="paidonce.chosen").run_id
    other = store.submit(agent="other").run_id
    store.transact(
        lambda c: c.exec_driver_sql(
            f"UPDATE runs SET state = 'blocked', state_reason = 'no_worker', "
            f"blocked_signature = 'count' WHERE id = '{blocked}'"
        )
    )
    messages = _register(store, queue="paidonce.brains")
    assert [(message.run_id, message.queue) for message in messages] == [(blocked, "paidonce.brains")]
    queues = {
        run_id: store.read(read_run, NAMESPACE, run_id).queue for run_id in (waiting, blocked, begun, chosen, other)
    }
    moved = "paidonce.brains"
    assert queues == {waiting: moved, blocked: moved, begun: QUEUE, chosen: "paidonce.chosen", other: QUEUE}
    store.clock.move(SECOND_US)
    due = store.transact(take_due, namespace=NAMESPACE, shard=0)
    assert (waiting, moved) in [(entry.message.run_id, entry.message.queue) for entry in due], "it is sent soon"


def test_a_run_that_differs_from_its_history_goes_on_with_other_code_only(store: Store) -> None:
    run_id = store.running()
    store.transact(
        block_run, run_id=run_id, from_seq=1, reason="history_mismatch", error={"message": "m"}, signature="s1"
    )
    assert _register(store, signature="s1") == []
    assert store.read(read_state, NAMESPACE, run_id) == ("blocked", "history_mismatch")
    assert [message.run_id for message in _register(store, signature="s2")] == [run_id]
    assert store.read(read_state, NAMESPACE, run_id) == ("running", None)
    assert store.read(read_run, NAMESPACE, run_id).error is None


def test_blocking_is_refused_once_the_run_has_been_advanced(store: Store) -> None:
    run_id = store.running()
    blocked = store.transact(block_run, run_id=run_id, from_seq=0, reason="r", error={}, signature="s")
    assert not blocked
    assert store.read(read_state, NAMESPACE, run_id) == ("running", None)


def test_a_deadlocked_run_is_not_called_running_because_a_worker_starts(store: Store) -> None:
    run_id = store.running(steps=0)
    store.transact(lambda c: c.exec_driver_sql("UPDATE runs SET state = 'blocked', state_reason = 'deadlock'"))
    _register(store, signature="s2")
    assert store.read(read_state, NAMESPACE, run_id) == ("blocked", "deadlock")


def test_another_version_of_an_agent_sets_no_blocked_run_going(store: Store) -> None:
    run_id = store.running()
    reason = {"reason": "history_mismatch", "error": {"message": "m"}, "signature": "s1"}
    assert store.transact(block_run, run_id=run_id, from_seq=1, **reason)
    assert _register(store, signature="s2", version="2") == []
    assert store.read(read_state, NAMESPACE, run_id) == ("blocked", "history_mismatch")
    assert len(_register(store, signature="s2")) == 1


def test_a_worker_that_starts_sends_no_retry_before_it_is_due(store: Store) -> None:
    store.complete(failure(store.claimed(store.running()), retry_after_us=60 * SECOND_US))
    _register(store)
    assert store.transact(take_due, namespace=NAMESPACE, shard=0) == []
