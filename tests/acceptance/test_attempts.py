"""Retries that hold no worker, time limits that work, steps that kill their process."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest

from paidonce_models.store.queries import AttemptView, read_attempts
from tests.acceptance.agents.stepping import not_retried, poisoned, retried, retried_in_vain, timed_out, waits_long
from tests.acceptance.site import RUN_SECONDS, Site

pytestmark = pytest.mark.slow

STEPPING = "tests.acceptance.agents.stepping"


def attempts_of(site: Site, run_id: str, position: int = 1) -> list[AttemptView]:
    with site.client.database.read() as connection:
        return read_attempts(connection, run_id, position)


def test_a_failing_step_is_tried_again_after_a_pause(shared: Site) -> None:
    run = shared.client.submit(retried, {"attempt": 4})
    assert run.result(RUN_SECONDS) == 4
    attempts = attempts_of(shared, run.id)
    assert [attempt.outcome for attempt in attempts] == ["failed", "failed", "failed", "accepted"]
    for earlier, later in pairwise(attempts):
        assert earlier.ended_at is not None and later.claimed_at is not None
        assert earlier.ended_at <= later.claimed_at
    assert attempts[0].error is not None and attempts[0].error["message"] == "attempt 1"
    assert "ConnectionError: attempt 1" in (attempts[0].traceback or "")


def test_after_the_last_attempt_the_agent_is_told(shared: Site) -> None:
    assert shared.client.submit(retried_in_vain).result(RUN_SECONDS) == {
        "attempts": 2,
        "type": "ConnectionError",
        "message": "still away",
    }


def test_only_the_named_errors_are_tried_again(shared: Site) -> None:
    assert shared.client.submit(not_retried, {"message": "another"}).result(RUN_SECONDS) == 1
    assert shared.journal().count("tried another") == 1


def test_a_waiting_retry_holds_no_worker(site: Site) -> None:
    site.worker(STEPPING, arguments=["--concurrency", "1"])
    waiting = site.client.submit(waits_long)
    site.wait_noted("failed once")
    assert site.client.submit(retried, {"attempt": 1}).result(RUN_SECONDS) == 1
    assert [step.state for step in waiting.steps()] == ["retrying"]
    waiting.cancel()
    site.wait_state(waiting, "cancelled")


def test_time_limits_strike_sync_and_async_steps(shared: Site) -> None:
    run = shared.client.submit(timed_out)
    assert run.result(RUN_SECONDS) == [
        f"StepTimedOut of {STEPPING}.spins_on",
        f"StepTimedOut of {STEPPING}.sleeps_on",
        "2",
    ]
    first, second = attempts_of(shared, run.id, 3)
    assert (first.outcome, second.outcome) == ("timed_out", "accepted")
    assert first.error is not None and first.error["type"] == "StepTimedOut"


def test_a_step_that_kills_its_process_condemns_only_itself(make_site: Callable[..., Site]) -> None:
    """Two workers die of it; the third isolates it and lives on."""
    site = make_site(lease_seconds="3")
    first = site.worker(STEPPING)
    run = site.client.submit(poisoned)
    first.process.wait(RUN_SECONDS)
    second = site.worker(STEPPING)
    second.process.wait(RUN_SECONDS)
    last = site.worker(STEPPING)
    told = run.result(RUN_SECONDS)
    assert (
        "AttemptsLost" in told
        and "lost 3 workers that ran nothing else" in told
        and "SIGKILL" in told
        and "max_lost=" in told
    )
    assert last.process.poll() is None
    assert [attempt.outcome for attempt in attempts_of(site, run.id)] == ["lost"] * 3
    assert "runs alone in a child process" in last.log
    assert site.client.submit(retried, {"attempt": 1}).result(RUN_SECONDS) == 1


def test_a_stopping_worker_hands_back_what_it_holds(site: Site) -> None:
    """A hand-back counts neither as failed nor as lost."""
    first = site.worker("tests.acceptance.agents.cancelling")
    run = site.stranger.submit("waits_for_async", {"name": "handed"})
    site.wait_noted("handed began")
    assert first.stop() == 0
    (step,) = run.steps()
    assert (step.state, step.lost) == ("scheduled", 0)
    (attempt,) = attempts_of(site, run.id)
    assert attempt.outcome == "cancelled" and attempt.error is not None and attempt.error["code"] == "handed_back"
    site.worker("tests.acceptance.agents.cancelling")
    site.wait_state(run, "running")
    run.cancel()
    site.wait_state(run, "cancelled")
