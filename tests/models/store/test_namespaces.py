"""Every statement that takes an id from a message or a person, played with the id of another namespace's run."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import TextClause

from paidonce_models import store as statements
from paidonce_models.budgets import Budget, Period, Source, Unit
from paidonce_models.errors import CircuitOpen, NotFound
from paidonce_models.payloads.payload_parts import split
from paidonce_models.states import StepState
from paidonce_models.store.budgets.budget_rules import set_budget
from paidonce_models.store.budgets.budgeted_claims import claim_within_budgets
from paidonce_models.store.circuits.parked_steps import Parking, park_step, refuse_step
from paidonce_models.store.queries import read_run, read_state, read_steps, resolve_run
from paidonce_models.store.recovery.lost_steps import expired_leases
from paidonce_models.store.recovery.sweeping import due_timers, lead, take_due
from paidonce_models.store.recovery.witnesses import hasten_messages
from paidonce_models.store.recovery.workers import HeldAgent, Registration, register_worker
from paidonce_models.store.runs.cancel_run import cancel_run
from paidonce_models.store.runs.ending_runs import fail_run
from paidonce_models.store.runs.run_log import read_log
from paidonce_models.store.runs.runs_head import namespace_of, read_head
from paidonce_models.store.steps.claims import claim_step, find_suspect, take_lease
from paidonce_models.store.steps.ending_steps import end_step
from paidonce_models.store.steps.leases import defer_step, mark_unknown
from paidonce_models.store.steps.resolving import resolve_as_failed, resolve_as_succeeded, resolve_by_retry
from tests.models.stored_runs import LEASE_US, NAMESPACE, SECOND_US, Store, key_of

OTHER = "others"
OPEN = CircuitOpen.of("search", since=None, retry_at=None, reason="5 failures in a row")
PARKING = Parking(circuit="search", retry_in_us=SECOND_US, most_us=SECOND_US)
TABLES = ("runs", "steps", "attempts", "run_events", "parked_steps", "held_steps", "reservations", "avoided")


def everything(store: Store) -> dict[str, list[Any]]:
    """All that a run consists of."""
    return {table: sorted(map(str, store.rows(f"SELECT * FROM {table}"))) for table in TABLES}


def acts(store: Store, namespace: str, run_id: str) -> dict[str, Callable[[], object]]:
    """What workers and people do to a run's first step or to the run, by name; each answers with nothing."""
    step: dict[str, Any] = {"namespace": namespace, "run_id": run_id, "position": 1}
    lease: dict[str, Any] = {"worker": "w9", "lease_us": LEASE_US}
    error = OPEN.to_json()
    return {
        "claim": lambda: store.transact(claim_step, **step, **lease),
        "claim, no suspects": lambda: store.transact(claim_step, **step, **lease, suspects=False),
        "lease": lambda: store.transact(take_lease, **step, **lease),
        "lease, reserved": lambda: store.transact(take_lease, **step, **lease, has_reserved=True),
        "claim within budgets": lambda: store.transact(
            claim_within_budgets, **step, **lease, expectations=store.expectations
        ),
        "suspect": lambda: store.read(find_suspect, **step),
        "defer": lambda: store.transact(defer_step, **step, redeliver_us=1),
        "park": lambda: store.transact(park_step, **step, parking=PARKING),
        "refuse": lambda: store.transact(refuse_step, **step, error=error),
        "end from outside": lambda: store.transact(end_step, **step, only_if=tuple(StepState), error=error),
        "fail the run": lambda: store.transact(fail_run, namespace, run_id, error, grace_seconds=0),
        "cancel the run": lambda: store.transact(cancel_run, namespace, run_id, grace_seconds=0),
        "read to advance": lambda: store.read(read_head, namespace, run_id),
        "read on to advance": lambda: store.read(read_log, namespace, run_id, after=0, first=0, most=100),
        "read its steps": lambda: store.read(read_steps, namespace, run_id),
    }


def refused_acts(store: Store, namespace: str, run_id: str) -> dict[str, Callable[[], object]]:
    """What people do, who are told that there is nothing."""
    step: dict[str, Any] = {"namespace": namespace, "run_id": run_id, "position": 1}
    return {
        "succeeded": lambda: store.transact(resolve_as_succeeded, **step, result=split(b"1")),
        "failed": lambda: store.transact(resolve_as_failed, **step, message="no"),
        "again": lambda: store.transact(resolve_by_retry, **step),
        "find": lambda: store.read(resolve_run, namespace, run_id),
        "read": lambda: store.read(read_run, namespace, run_id),
        "look": lambda: store.read(read_state, namespace, run_id),
    }


def waiting(store: Store) -> str:
    return store.running()


def suspicious(store: Store) -> str:
    run_id = store.running()
    with store.database.write() as connection:
        connection.exec_driver_sql("UPDATE steps SET lost = 3, blamed = 2")
    return run_id


def unknown(store: Store) -> str:
    run_id = store.running(delivery="at_most_once")
    store.transact(mark_unknown, key_of(store.claimed(run_id)), error={"type": "StepTimedOut"})
    return run_id


def budgeted(store: Store) -> str:
    run_id = store.running()
    budget = Budget(subject="agent:count", period=Period.RUN, unit=Unit.STEPS, amount=1, source=Source.SET)
    store.transact(set_budget, NAMESPACE, budget)
    return run_id


@pytest.mark.parametrize("make", [waiting, suspicious, unknown, budgeted])
def test_no_statement_touches_or_shows_a_run_of_another_namespace(store: Store, make: Callable[[Store], str]) -> None:
    run_id = make(store)
    before = everything(store)
    for name, act in acts(store, OTHER, run_id).items():
        assert not act(), name
        assert everything(store) == before, name
    for name, act in refused_acts(store, OTHER, run_id).items():
        with pytest.raises(NotFound):
            act()
        assert everything(store) == before, name
    assert store.read(namespace_of, run_id) == NAMESPACE


def test_the_same_acts_do_what_they_say_in_their_own_namespace(store: Store) -> None:
    for name in acts(store, NAMESPACE, ""):
        run_id = suspicious(store) if name == "suspect" else waiting(store)
        before = everything(store)
        assert acts(store, NAMESPACE, run_id)[name]() or everything(store) != before, name
        store.clear()
    for name in refused_acts(store, NAMESPACE, ""):
        refused_acts(store, NAMESPACE, unknown(store))[name]()


def test_a_sweeper_of_another_namespace_finds_nothing(store: Store) -> None:
    run_id = store.running(steps=2)
    store.claimed(run_id)
    with store.database.write() as connection:
        connection.exec_driver_sql("UPDATE runs SET wake_at_us = 1")
    store.clock.move(100 * SECOND_US)
    before = everything(store)
    place: dict[str, Any] = {"namespace": OTHER, "shard": 0}
    assert store.transact(lead, **place, leader="w9", lease_us=LEASE_US)
    assert store.transact(take_due, **place) == []
    assert list(store.read(due_timers, **place)) == []
    assert list(store.read(expired_leases, **place)) == []
    store.transact(hasten_messages, OTHER)
    registration = Registration(
        worker="w9",
        namespace=OTHER,
        hostname="h",
        pid=1,
        python_minor="3.11",
        queues=["paidonce.default"],
        agents=[HeldAgent(name="count", version="1", signature="s", queue="paidonce.elsewhere")],
        steps=["module.work"],
    )
    assert store.transact(register_worker, registration) == []
    assert everything(store) == before
    mine = {**place, "namespace": NAMESPACE}
    assert store.read(expired_leases, **mine) and store.read(due_timers, **mine) and store.transact(take_due, **mine)


UNGUARDED = {
    # of a run that the same transaction has read by its namespace (`read_head`, `read_log`, `lock_step`, a child's row)
    "advancing": {"_CONSUME_STATEMENTS", "_CANCEL_STEPS", "_CANCEL_REST", "_END_PARENT_STEP"},
    "blocked_runs": {"_BLOCK"},
    "cancel_events": {"_REQUEST", "_FORCE"},
    "ending_runs": {"_FAIL"},
    "events": {"_ALLOCATE"},
    "ending_steps": {"_END"},
    "run_states": {"_UPDATE_RUN_STATE"},
    # of a step that was claimed by its namespace: guarded by the attempt's number or the lease's owner
    "completion": {
        "_BLOCK_STEP",
        "_END_STEP",
        "_KNOWN_AGAIN",
        "_PARK_STEP",
        "_RETRY_STEP",
        "_END_ATTEMPT",
        "_OVERRULE_ATTEMPT",
        "_FORGET_LEASE",
    },
    "leases": {
        "_RENEW_STATEMENTS",
        "_HAND_BACK_STEP",
        "_HAND_BACK_ATTEMPT",
        "_UNKNOWN_STEP",
        "_UNKNOWN_ATTEMPT",
        "_WAIT_FOR_PERSON",
    },
    # of attempts that this process executes, or that the sweeper has found by their namespace
    "awaited_calls": {"_FORGET_WRITTEN", "_KEEP", "_TAKE_OF_ATTEMPT"},
    "call_rows": {"_ADD_SUMS"},
    # of a step that the same transaction has read by its namespace (`find_blocked`, `_known`), or has claimed
    "blocked_steps": {"_ACCEPT", "_BLOCK", "_SCHEDULE"},
    # of marks that this process or a dead one has set, by its own id
    "slice_marks": {"_BLAME", "_DELETE", "_FORGET"},
    "spending": {"_TAKE", "_END"},
    # of rows that the sweeper or the death watch has found by their namespace
    "held_steps": {"_HOLD", "_INSERT", "_LET_GO"},
    "parked_steps": {"_INSERT", "_REFUSED", "_UNPARK"},
    "lost_steps": {"_GRANT", "_TAKE_BACK", "_LOSE", "_FAIL_STEP", "_WAIT_FOR_PERSON"},
    "sweeping": {"_LEAD", "_FIRE"},
    # of the process itself, or of one that it has found by its namespace; no two processes have one id
    "witnesses": {"_RECORD", "_MARK_DEAD", "_FORGET"},
    "workers": {"_REGISTER", "_SEEN", "_STOPPED"},
}
"""Statements that change rows and do not ask for the namespace, with where they get their ids instead."""
GUARDS = ("namespace = :namespace", "namespace = CAST(:namespace")


def test_a_statement_that_asks_for_no_namespace_is_known_to_get_its_ids_from_one_that_does() -> None:
    found: dict[str, set[str]] = {}
    for entry in pkgutil.walk_packages(statements.__path__, f"{statements.__name__}."):
        module = importlib.import_module(entry.name)
        for name, value in vars(module).items():
            sources = [str(each) for each in (value.values() if isinstance(value, dict) else [value])]
            is_text = isinstance(next(iter(value.values()), None) if isinstance(value, dict) else value, TextClause)
            changes = any("UPDATE " in source or "DELETE " in source for source in sources)
            if is_text and changes and not all(any(guard in source for guard in GUARDS) for source in sources):
                found.setdefault(entry.name.rpartition(".")[2], set()).add(name)
    assert found == UNGUARDED
