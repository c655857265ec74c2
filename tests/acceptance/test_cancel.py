"""Cancelling: an event, delivered once; it reaches a running step within a heartbeat, and children."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from paidonce import RunCancelled
from tests.acceptance.agents.cancelling import (
    endless_async,
    never_tidy,
    parent_of_endless,
    parent_of_never_tidy,
    sleeps_for_days,
    survives,
    waits_for_async,
    waits_for_sync,
)
from tests.acceptance.site import RUN_SECONDS, Site

CANCELLING = "tests.acceptance.agents.cancelling"
ONE_HEARTBEAT = 1.0
SLACK = 60.0
"""A busy machine schedules late; a step that nobody stops goes on for twice as long."""


@pytest.mark.parametrize("agent", [waits_for_async, waits_for_sync], ids=["async", "sync"])
def test_a_running_step_is_stopped_within_a_heartbeat(shared: Site, agent: Callable[..., object]) -> None:
    name = f"stopped {agent.name}"  # type: ignore[attr-defined]
    run = shared.client.submit(agent, {"name": name})  # type: ignore[arg-type]
    shared.wait_noted(f"{name} began")
    asked = time.time()
    run.cancel()
    with pytest.raises(RunCancelled, match="cancelled on request"):
        run.result(RUN_SECONDS)
    stopped = float(shared.wait_noted(f"{name} was stopped at").rpartition(" ")[2])
    assert stopped - asked < ONE_HEARTBEAT + SLACK
    assert run.steps()[0].state == "cancelled"


def test_finally_may_await_steps(shared: Site) -> None:
    run = shared.client.submit(waits_for_async, {"name": "with finally"})
    shared.wait_noted("with finally began")
    run.cancel()
    assert shared.wait_state(run, "cancelled") == "cancelled"
    shared.wait_noted("with finally tidied up", 1)
    assert [step.state for step in run.steps()] == ["cancelled", "succeeded"]


def test_a_cancellation_is_delivered_once(shared: Site) -> None:
    run = shared.client.submit(survives, {"name": "survivor"})
    shared.wait_noted("survivor began")
    run.cancel()
    run.cancel()
    assert run.result(RUN_SECONDS) == "survivor"
    run.cancel()
    assert run.state == "succeeded"


def test_children_are_cancelled_with_their_parent(shared: Site) -> None:
    run = shared.client.submit(parent_of_endless, {"name": "parent"})
    for child in (1, 2):
        shared.wait_noted(f"parent child {child} began")
    run.cancel()
    with pytest.raises(RunCancelled):
        run.result(RUN_SECONDS)
    for child in (1, 2):
        shared.wait_noted(f"parent child {child} was stopped")
        shared.wait_noted(f"parent child {child} tidied up")
    for step in run.steps():
        assert step.child_run_id is not None
        assert shared.wait_state(shared.client.run(step.child_run_id), "cancelled")


def test_a_run_that_sleeps_for_days_is_cancelled_at_once(shared: Site) -> None:
    run = shared.client.submit(sleeps_for_days, {"name": "sleeper"})
    shared.wait_state(run, "waiting")
    run.cancel()
    shared.wait_state(run, "cancelled")
    shared.wait_noted("sleeper tidied up", 1)


def test_what_a_cancelled_step_spent_stays_recorded(shared: Site) -> None:
    run = shared.client.submit(waits_for_async, {"name": "spender"})
    shared.wait_noted("spender began")
    run.cancel()
    shared.wait_state(run, "cancelled")
    from paidonce_models.store.queries import read_attempts
    from tests.services.waiting import wait_until

    def spent() -> int | None:
        with shared.client.database.read() as connection:
            attempt = read_attempts(connection, run.id, 1)[0]
        return attempt.cost_nanousd if attempt.outcome == "cancelled" else None

    assert endless_async.name == run.steps()[0].name
    cost = wait_until(spent, "the cancelled attempt has its money", 10)
    assert cost == 1_000 * 150 + 100 * 600  # gpt-4o-mini: $0.15 and $0.60 per million tokens


@pytest.mark.slow
def test_a_finally_that_takes_too_long_is_ended_after_its_grace(make_site: Callable[..., Site]) -> None:
    site = make_site(cancel_grace_seconds="1")
    site.worker(CANCELLING)
    alone = site.client.submit(never_tidy, {"name": "slow"})
    parent = site.client.submit(parent_of_never_tidy, {"name": "slow child"})
    site.wait_noted("slow began")
    site.wait_noted("slow child began")
    asked = time.monotonic()
    alone.cancel()
    parent.cancel()
    with pytest.raises(RunCancelled, match="longer than its grace"):
        alone.result(RUN_SECONDS)
    shared_child = parent.steps()[0].child_run_id
    assert shared_child is not None
    with pytest.raises(RunCancelled, match="longer than its grace"):
        site.client.run(shared_child).result(RUN_SECONDS)
    assert time.monotonic() - asked < 90, "nobody waits for the 120 s of its cleaning up"


def test_cancel_has_an_async_form(shared: Site) -> None:
    async def handler() -> str:
        run = await shared.client.submit_async(waits_for_async, {"name": "web handler"})
        await asyncio.to_thread(shared.wait_noted, "web handler began")
        await run.cancel_async()
        with pytest.raises(RunCancelled):
            await run.result_async(RUN_SECONDS)
        return run.state

    assert asyncio.run(handler()) == "cancelled"


def test_a_run_that_has_not_begun_is_cancelled_without_a_worker(site: Site) -> None:
    run = site.client.submit("nobody holds this", {})
    run.cancel()
    assert run.state == "cancelled"
