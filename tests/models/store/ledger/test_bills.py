"""The bill of a run, from attempts and avoided rows written by hand."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, insert

from paidonce_models.database.schema import upgrade
from paidonce_models.database.transactions import Database
from paidonce_models.store.ledger.bills import Bill, read_bill
from paidonce_models.tables import Attempt, Avoided, Run

CALL_NANOUSD = 40_000
TOKENS = 100


@pytest.fixture
def connection(database_url: str) -> Iterator[Connection]:
    """An open transaction on an empty store, on each engine."""
    database = Database(database_url)
    upgrade(database)
    with database.write() as opened:
        yield opened
    database.close()


def _run(connection: Connection, run_id: str, parent: str | None = None) -> None:
    row = {
        "id": run_id,
        "namespace": "n",
        "shard": 0,
        "agent": "a",
        "state": "running",
        "priority": 5,
        "queue": "q",
        "tags": "{}",
        "parent_run_id": parent,
        "root_run_id": parent or run_id,
        "depth": 0 if parent is None else 1,
        "last_seq": 0,
        "consumed_seq": 0,
        "publish_count": 0,
        "created_at_us": 0,
    }
    connection.execute(insert(Run.__table__), row)  # type: ignore[attr-defined]  # SQLModel's table


def _attempt(
    connection: Connection,
    run_id: str,
    position: int,
    outcome: str | None,
    *,
    number: int = 1,
    worker: str = "w1",
    from_us: int = 0,
    to_us: int | None = 10,
    cost_nanousd: int | None = CALL_NANOUSD,
    calls: int = 1,
) -> None:
    row = {
        "run_id": run_id,
        "position": position,
        "number": number,
        "namespace": "n",
        "root_run_id": run_id,
        "agent": "a",
        "step": "s",
        "worker": worker,
        "claimed_at_us": from_us,
        "ended_at_us": to_us,
        "outcome": outcome,
        "calls": calls,
        "unpriced_calls": calls if cost_nanousd is None else 0,
        "input_tokens": TOKENS if calls else None,
        "output_tokens": TOKENS if calls else None,
        "cost_nanousd": cost_nanousd,
    }
    connection.execute(insert(Attempt.__table__), row)  # type: ignore[attr-defined]  # SQLModel's table


def _avoided(connection: Connection, run_id: str, position: int, *, attempt: int = 1, steps: int) -> None:
    row = {
        "run_id": run_id,
        "position": position,
        "attempt": attempt,
        "namespace": "n",
        "root_run_id": run_id,
        "agent": "a",
        "reason": "lost",
        "steps": steps,
        "calls": steps,
        "unpriced_calls": 0,
        "input_tokens": TOKENS * steps,
        "output_tokens": TOKENS * steps,
        "cost_nanousd": CALL_NANOUSD * steps,
        "recorded_at_us": 20,
    }
    connection.execute(insert(Avoided.__table__), row)  # type: ignore[attr-defined]  # SQLModel's table


def test_a_run_that_did_nothing_has_a_bill_of_unknown_money(connection: Connection) -> None:
    _run(connection, "r")
    assert read_bill(connection, "r") == Bill()
    assert read_bill(connection, "r").starting_over_cost_nanousd is None


def test_starting_over_costs_what_was_spent_and_what_was_not_paid_again(connection: Connection) -> None:
    _run(connection, "r")
    for position in (1, 2, 3):
        _attempt(connection, "r", position, "accepted")
    _attempt(connection, "r", 4, "lost", worker="w2", cost_nanousd=None)
    _avoided(connection, "r", 4, steps=3)
    _attempt(connection, "r", 4, "accepted", number=2)
    bill = read_bill(connection, "r")
    assert (bill.steps_paid, bill.steps_not_repeated, bill.attempts, bill.attempts_lost) == (4, 3, 5, 1)
    assert (bill.calls, bill.unpriced_calls) == (5, 1)
    assert (bill.input_tokens, bill.output_tokens) == (5 * TOKENS, 5 * TOKENS)
    assert (bill.cost_nanousd, bill.lost_cost_nanousd) == (4 * CALL_NANOUSD, None)
    assert bill.avoided_cost_nanousd == 3 * CALL_NANOUSD
    assert bill.starting_over_cost_nanousd == 7 * CALL_NANOUSD


def test_a_crash_that_cut_off_parallel_steps_is_one_crash(connection: Connection) -> None:
    _run(connection, "r")
    for position in (1, 2):
        _attempt(connection, "r", position, "accepted")
    for position in (3, 4, 5):
        _attempt(connection, "r", position, "lost", worker="w2", from_us=position, to_us=30)
        _avoided(connection, "r", position, steps=2)
    assert read_bill(connection, "r").steps_not_repeated == 2


def test_a_short_attempt_does_not_end_the_crash_that_took_a_long_one_too(connection: Connection) -> None:
    _run(connection, "r")
    for position, (from_us, to_us) in enumerate([(0, 100), (5, 10), (50, 60)], start=1):
        _attempt(connection, "r", position, "lost", from_us=from_us, to_us=to_us)
        _avoided(connection, "r", position, steps=2)
    assert read_bill(connection, "r").steps_not_repeated == 2


def test_a_crash_that_cut_off_a_run_and_its_child_is_one_of_each(connection: Connection) -> None:
    _run(connection, "r")
    _run(connection, "child", parent="r")
    for run_id, steps in (("r", 2), ("child", 3)):
        _attempt(connection, run_id, 1, "fenced")
        _avoided(connection, run_id, 1, steps=steps)
    bill = read_bill(connection, "r")
    assert bill.tree is not None
    assert (bill.steps_not_repeated, bill.tree.steps_not_repeated) == (2, 5)
    assert (bill.tree.avoided_cost_nanousd, bill.tree.lost_cost_nanousd) == (5 * CALL_NANOUSD, 2 * CALL_NANOUSD)


def test_two_crashes_one_after_the_other_count_twice_on_one_worker_or_two(connection: Connection) -> None:
    _run(connection, "r")
    _attempt(connection, "r", 1, "lost", number=1, worker="w2", from_us=0, to_us=10)
    _attempt(connection, "r", 1, "fenced", number=2, worker="w2", from_us=10, to_us=20)
    _attempt(connection, "r", 1, "lost", number=3, worker="w3", from_us=15, to_us=25)
    for number in (1, 2, 3):
        _avoided(connection, "r", 1, attempt=number, steps=5)
    bill = read_bill(connection, "r")
    assert (bill.steps_not_repeated, bill.attempts_lost) == (15, 3)
    assert bill.avoided_cost_nanousd == 15 * CALL_NANOUSD


def test_child_runs_stand_apart_in_the_tree(connection: Connection) -> None:
    _run(connection, "r")
    _run(connection, "child", parent="r")
    _run(connection, "grandchild", parent="child")
    _run(connection, "stranger")
    for run_id in ("r", "child", "grandchild", "stranger"):
        _attempt(connection, run_id, 1, "accepted")
    bill = read_bill(connection, "r")
    assert (bill.cost_nanousd, bill.child_runs) == (CALL_NANOUSD, 2)
    assert bill.tree is not None
    assert (bill.tree.cost_nanousd, bill.tree.steps_paid) == (3 * CALL_NANOUSD, 3)
    assert read_bill(connection, "grandchild").tree is None
