"""asyncio as its documentation shows it, durably: everything an agent's author may write."""

from __future__ import annotations

import time

import pytest

from paidonce import RunFailed
from tests.acceptance.agents.flow import (
    branches,
    does_not_handle,
    draws,
    draws_around_a_kill,
    failing_family,
    family,
    gathers,
    group_fails,
    groups,
    handles_failures,
    leaves_tasks,
    limits,
    naps,
    nested,
    races,
    research,
)
from tests.acceptance.site import RUN_SECONDS, Site
from tests.services.waiting import wait_until

FLOW = "tests.acceptance.agents.flow"


def test_gather(shared: Site) -> None:
    assert shared.client.submit(gathers, {"count": 12}).result(RUN_SECONDS) == [2 * n for n in range(12)]


def test_task_group(shared: Site) -> None:
    assert shared.client.submit(groups, {"count": 5}).result(RUN_SECONDS) == [0, 2, 4, 6, 8]


def test_a_failure_in_a_task_group_cancels_the_siblings(shared: Site) -> None:
    run = shared.client.submit(group_fails)
    (failure,) = run.result(RUN_SECONDS)
    assert "ValueError: in a group" in failure
    assert [step.state for step in run.steps()] == ["cancelled", "failed"]


def test_timeout_gives_up_and_goes_on(shared: Site) -> None:
    run = shared.client.submit(limits, {"seconds": 0.5})
    assert run.result(RUN_SECONDS) == "gave up after 2"
    assert [step.state for step in run.steps()] == ["cancelled", "succeeded"]


def test_wait_for_the_first_to_complete(shared: Site) -> None:
    assert shared.client.submit(races).result(RUN_SECONDS) == ["racer 2"]


def test_loops_and_branches(shared: Site) -> None:
    run = shared.client.submit(branches, {"limit": 50})
    assert run.result(RUN_SECONDS) == [2, 4, 8, 16, 32, 64]
    assert [step.name for step in run.steps()] == [f"{FLOW}.double"] * 6


def test_failures_are_caught_as_what_they_are(shared: Site) -> None:
    assert shared.client.submit(handles_failures).result(RUN_SECONDS) == {
        "type": "ValueError",
        "message": "on purpose",
        "attempts": 1,
        "timed_out": True,
        "as_timeout_error": "StepTimedOut",
    }


def test_an_uncaught_failure_fails_the_run_and_names_the_step(shared: Site) -> None:
    run = shared.client.submit(does_not_handle)
    with pytest.raises(RunFailed, match=r"step 1 \(tests.acceptance.agents.flow.explode\) failed after 1 attempt"):
        run.result(RUN_SECONDS)
    error = run.view().error
    assert error is not None and error["type"] == "StepFailed"


def test_agents_awaited_in_agents_are_child_runs(shared: Site) -> None:
    run = shared.client.submit(family, {"count": 4}, tags={"user": "u7"})
    assert run.result(RUN_SECONDS) == 12
    children = [shared.client.run(str(step.child_run_id)).view() for step in run.steps()]
    assert {child.parent_run_id for child in children} == {run.id}
    assert {child.root_run_id for child in children} == {run.id}
    assert {child.tags["user"] for child in children} == {"u7"}
    assert {step.kind for step in run.steps()} == {"agent"}


def test_a_childs_failure_reaches_the_parent_as_a_failed_step(shared: Site) -> None:
    assert "nobody catches this" in shared.client.submit(failing_family).result(RUN_SECONDS)


def test_agents_nest_ten_deep_and_no_deeper(shared: Site) -> None:
    assert shared.client.submit(nested, {"levels": 10}).result(RUN_SECONDS * 2) == 10
    with pytest.raises(RunFailed, match=r"nested 11 deep, at most 10 is allowed; raise PAIDONCE_MAX_DEPTH"):
        shared.client.submit(nested, {"levels": 11}).result(RUN_SECONDS * 2)


def test_dataclasses_come_back_as_themselves(shared: Site) -> None:
    plan = shared.client.submit(research, {"question": "why not", "depth": 3}).result(RUN_SECONDS)
    assert plan.queries == ["why", "not"]
    assert plan.notes == {"words": 2, "depth": 3}


def test_tasks_left_at_the_end_are_cancelled(shared: Site) -> None:
    run = shared.client.submit(leaves_tasks)
    assert run.result(RUN_SECONDS) == "8"
    assert sorted(step.state for step in run.steps()) == ["cancelled", "succeeded"]


def test_clock_and_chance_are_the_same_on_replay(site: Site) -> None:
    """Each run is replayed from its log by a worker that keeps one run only."""
    site.worker(FLOW, cache_size="1")
    runs = [site.client.submit(draws) for _ in range(3)]
    several = [run.result(RUN_SECONDS) for run in runs]
    assert len({uuid for drawn in several for _, uuid, _ in drawn}) == 9
    for drawn in several:
        assert [moment for moment, _, _ in drawn] == sorted(moment for moment, _, _ in drawn)
        assert all(0 <= number < 1 for _, _, number in drawn)


@pytest.mark.slow
def test_a_sleep_survives_the_restart_of_its_worker_and_holds_none(site: Site) -> None:
    first = site.worker(FLOW, arguments=["--concurrency", "1"])
    asleep = site.client.submit(naps, {"seconds": 3 * 86_400.0})
    site.wait_state(asleep, "waiting")
    assert site.client.submit(gathers, {"count": 3}).result(RUN_SECONDS) == [0, 2, 4]
    assert asleep.state == "waiting"
    asleep.cancel()
    run = site.client.submit(naps, {"seconds": 6.0})
    began = time.monotonic()
    site.wait_state(run, "waiting")
    first.kill()
    site.worker(FLOW)
    after, slept = run.result(RUN_SECONDS)
    assert after == 4
    assert 6.0 <= slept < 120
    assert time.monotonic() - began >= 5
    assert [step.attempts for step in run.steps()] == [1, 1]


def test_a_worker_killed_in_a_step_leaves_the_run_to_another(site: Site) -> None:
    first = site.worker(FLOW)
    run = site.client.submit(draws_around_a_kill)
    site.wait_noted("began between the draws")
    first.kill()
    site.worker(FLOW)
    first_draw, second_draw = run.result(RUN_SECONDS)
    assert first_draw != second_draw
    (step,) = run.steps()
    assert (step.attempts, step.lost, step.state) == (2, 1, "succeeded")


def test_three_days_are_a_row_in_the_store(shared: Site) -> None:
    run = shared.client.submit(naps, {"seconds": 3 * 86_400.0})
    wait_until(lambda: run.state == "waiting", "the run sleeps", RUN_SECONDS)
    run.cancel()
    shared.wait_state(run, "cancelled")
