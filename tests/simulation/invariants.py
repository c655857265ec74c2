"""What holds in the store once nothing is left to do, whatever happened on the way."""

from __future__ import annotations

from collections import Counter
from typing import Any

from sqlalchemy import Connection, text

from paidonce_models.states import RUN_TERMINAL, STEP_TERMINAL
from paidonce_models.store.steps.leases import LeaseKey
from tests.simulation.fleet import Fleet
from tests.simulation.programs import PRICE_NANOUSD, RETRY_AFTER_SECONDS

CLOCK_SLACK_US = 500_000
"""On PostgreSQL an injected clock goes on within a transaction."""
BESIDE_ACCEPTED = {"failed", "timed_out", "cancelled", "lost", "fenced"}


def check_store(connection: Connection, fleet: Fleet) -> None:
    """Every promise that can be read from the rows."""
    runs = _rows(connection, "SELECT * FROM runs")
    steps = _rows(connection, "SELECT * FROM steps")
    attempts = _rows(connection, "SELECT * FROM attempts ORDER BY run_id, position, number")
    events = _rows(connection, "SELECT * FROM run_events ORDER BY run_id, seq")
    calls = _rows(connection, "SELECT * FROM calls")
    _check_runs(runs, events)
    _check_steps(steps, attempts)
    _check_families(runs, steps)
    _check_executions(fleet, attempts)
    _check_money(fleet, attempts, calls)
    _check_budgets(
        _rows(connection, "SELECT * FROM budget_accounts"), _rows(connection, "SELECT * FROM reservations"), calls
    )


def _rows(connection: Connection, query: str) -> list[Any]:
    return list(connection.execute(text(query)).all())


def _check_runs(runs: list[Any], events: list[Any]) -> None:
    log: dict[str, list[Any]] = {run.id: [] for run in runs}
    for event in events:
        log[event.run_id].append(event)
    for run in runs:
        assert run.state in RUN_TERMINAL, f"run {run.id} is left {run.state} ({run.state_reason}): {run.error}"
        assert run.publish_at_us is None and run.wake_at_us is None, f"run {run.id} ended, and is still to be woken"
        numbers = [event.seq for event in log[run.id]]
        assert numbers == list(range(1, run.last_seq + 1)), f"run {run.id} has events {numbers} up to {run.last_seq}"
        assert run.consumed_seq <= run.last_seq
        outcomes = Counter(event.position for event in log[run.id] if event.position is not None)
        twice = [position for position, count in outcomes.items() if count > 1]
        assert not twice, f"steps {twice} of run {run.id} have more than one outcome in its log"


def _check_steps(steps: list[Any], attempts: list[Any]) -> None:
    of_step: dict[tuple[str, int], list[Any]] = {(step.run_id, step.position): [] for step in steps}
    for attempt in attempts:
        of_step[attempt.run_id, attempt.position].append(attempt)
    for step in steps:
        where = f"step {step.position} of run {step.run_id}"
        assert step.state in STEP_TERMINAL, f"{where} is left {step.state}"
        assert step.lease_owner is None and step.lease_expires_at_us is None, f"{where} ended, its lease is open"
        assert step.publish_at_us is None, f"{where} ended, and is still to be published"
        own = of_step[step.run_id, step.position]
        assert [attempt.number for attempt in own] == list(range(1, step.attempt + 1)), where
        outcomes = [attempt.outcome for attempt in own]
        accepted = outcomes.count("accepted")
        assert accepted <= 1, f"{where} has {accepted} accepted attempts"
        if step.kind != "agent":
            assert accepted == (step.state == "succeeded"), f"{where} is {step.state}: {outcomes}"
        if accepted:
            assert outcomes[-1] == "accepted", f"{where} was tried again after it was accepted: {outcomes}"
        beside = set(outcomes) - {"accepted"}
        assert beside <= BESIDE_ACCEPTED, f"{where}: {outcomes}"
        assert step.failed == sum(outcome in {"failed", "timed_out"} for outcome in outcomes), f"{where}: {outcomes}"
        for attempt in own[:-1]:
            if attempt.outcome == "failed":
                waited_us = own[attempt.number].claimed_at_us - attempt.ended_at_us
                assert waited_us >= RETRY_AFTER_SECONDS * 1e6 - CLOCK_SLACK_US, f"{where} waited {waited_us} us"
        assert step.blamed <= step.lost <= sum(outcome in {"lost", "fenced"} for outcome in outcomes), (
            f"{where}: {outcomes}"
        )


def _check_families(runs: list[Any], steps: list[Any]) -> None:
    by_id = {run.id: run for run in runs}
    children = {step.child_run_id: step for step in steps if step.kind == "agent"}
    for run in runs:
        if run.parent_run_id is None:
            continue
        step = children.pop(run.id)
        assert (run.parent_run_id, run.parent_position) == (step.run_id, step.position)
        assert run.depth == by_id[run.parent_run_id].depth + 1
        if step.state == "cancelled":
            told = run.cancel_requested_at_us is not None or run.finished_at_us <= step.finished_at_us
            assert told, f"run {run.id} went on although its parent had cancelled it"
        elif step.state == "succeeded":
            assert run.state == "succeeded" and run.result_id == step.result_id, f"parent and child {run.id} disagree"
        elif step.state == "failed":
            assert run.state == "failed" and run.error == step.error, f"parent and child {run.id} disagree"
    assert not children, f"steps without their child runs: {children}"


def _check_executions(fleet: Fleet, attempts: list[Any]) -> None:
    claimed = {LeaseKey(attempt.run_id, attempt.position, attempt.number) for attempt in attempts}
    executed = Counter(fleet.executed)
    assert executed.keys() <= claimed, "a body ran without an attempt"
    twice = [key for key, count in executed.items() if count > 1]
    assert not twice, f"one attempt ran its body twice: {twice}"
    for attempt in attempts:
        if attempt.outcome in {"accepted", "failed", "timed_out"}:
            assert LeaseKey(attempt.run_id, attempt.position, attempt.number) in executed


def _check_money(fleet: Fleet, attempts: list[Any], calls: list[Any]) -> None:
    written = Counter(LeaseKey(call.run_id, call.position, call.attempt) for call in calls)
    lost = fleet.reported & fleet.spent - written.keys()
    assert not lost, f"spent, reported and not in the ledger: {sorted(lost)}"
    assert written.keys() <= fleet.spent, f"in the ledger and never spent: {sorted(written.keys() - fleet.spent)}"
    twice = [key for key, count in written.items() if count > 1]
    assert not twice, f"spent once and in the ledger twice: {twice}"
    assert all(call.cost_nanousd == PRICE_NANOUSD for call in calls)
    spent = Counter({(call.run_id, call.position, call.attempt): call.cost_nanousd for call in calls})
    for attempt in attempts:
        cost = spent.pop((attempt.run_id, attempt.position, attempt.number), None)
        assert attempt.cost_nanousd == cost, f"an attempt's sum {attempt.cost_nanousd} is not its calls' {cost}"
    assert not spent


def _check_budgets(accounts: list[Any], reservations: list[Any], calls: list[Any]) -> None:
    """Nothing stays reserved, and each account has been charged what the attempts that drew on it have spent."""
    spent = Counter[tuple[str, int, int]]()
    for call in calls:
        spent[call.run_id, call.position, call.attempt] += call.cost_nanousd
    charged = Counter[str]()
    for reservation in reservations:
        attempt = (reservation.run_id, reservation.position, reservation.attempt)
        assert reservation.remaining == 0 and reservation.ended_at_us is not None, f"{attempt} ended, and holds money"
        assert reservation.spent == spent[attempt]
        charged[reservation.account] += reservation.spent
    for account in accounts:
        assert account.reserved == 0, f"{account.key} has {account.reserved} reserved by nobody"
        if account.unit == "usd":
            assert account.spent == charged[account.key]
