"""How much one run may request: steps, wake-ups, tasks, and runs below one root.

Owns the limits that stop an endless agent, and the messages of their errors. A run that meets one is blocked with
nothing lost: what it has finished stays recorded, and a worker that registers a larger limit, or other code, unblocks
it (``signature_when_blocked`` is what the store compares). Pure: the caller supplies events and steps.
"""

from __future__ import annotations

from dataclasses import dataclass

from paidonce.settings import Settings
from paidonce_models.errors import (
    BoundReached,
    CodeDoesNotFit,
    PaidonceError,
    TooManyRuns,
    TooManySteps,
    TooManyTimers,
    TooMuchData,
)
from paidonce_models.payloads.payload_parts import MAX_PAYLOAD_BYTES
from paidonce_models.store.blocking.run_limits import signature_with_limit

TASKS_PER_STEP = 10
"""A step is awaited in one or two asyncio tasks, seldom in more; so many leave room for tasks without a step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunBounds:
    """The limits of one run, from the settings ``PAIDONCE_MAX_STEPS`` and the like."""

    max_steps: int = 10_000
    """Steps, tools and child runs that a run may request."""
    warn_steps: int = 1_000
    max_timers: int = 50_000
    """How often a timer may wake a run."""
    max_runs: int = 10_000
    """Runs below one root, all generations together."""
    max_payload_bytes: int = MAX_PAYLOAD_BYTES
    """Bytes of one value: arguments of a call, the run's result."""

    @property
    def by_reason(self) -> dict[str, int]:
        """Each limit by the reason with which it blocks."""
        return {
            TooManySteps.code: self.max_steps,
            TooManyTimers.code: self.max_timers,
            TooManyRuns.code: self.max_runs,
            TooMuchData.code: self.max_payload_bytes,
        }

    @property
    def max_tasks(self) -> int:
        """Tasks that have not ended, at any one time."""
        return self.max_steps * TASKS_PER_STEP


def bounds_of(settings: Settings) -> RunBounds:
    """The limits by the settings."""
    return RunBounds(
        max_steps=settings.max_steps,
        warn_steps=settings.warn_steps,
        max_timers=settings.max_timers,
        max_runs=settings.max_runs,
        max_payload_bytes=settings.max_payload_bytes,
    )


def too_many_steps(run_id: str, agent: str, *, asked: int, limit: int) -> TooManySteps:
    """The run requests one step more than it may."""
    return TooManySteps(
        f"run {run_id}: agent {agent!r} requests step {asked:,}, at most {limit:,} are allowed; its finished steps are "
        "kept. If it is not endless, raise PAIDONCE_MAX_STEPS and restart the workers: the run then continues. If "
        "it is, correct its code, or end it with `paidonce cancel`",
        limit=limit,
    )


def too_many_tasks(run_id: str, agent: str, *, limit: int, max_steps: int) -> TooManySteps:
    """The run has more unfinished tasks than its steps can need."""
    return TooManySteps(
        f"run {run_id}: agent {agent!r} has {limit:,} unfinished asyncio tasks, {TASKS_PER_STEP} for each of the "
        f"{max_steps:,} steps that are allowed; its finished steps are kept. Make fewer tasks at a time, or raise "
        "PAIDONCE_MAX_STEPS and restart the workers: the run then continues",
        limit=max_steps,
    )


def too_many_timers(run_id: str, agent: str, *, limit: int) -> TooManyTimers:
    """A timer is due once more than allowed."""
    return TooManyTimers(
        f"run {run_id}: agent {agent!r} was woken by a timer {limit:,} times, which is the limit; its finished steps "
        "are kept. Sleep longer between checks, or raise PAIDONCE_MAX_TIMERS and restart the workers: the run then "
        "continues",
        limit=limit,
    )


def too_many_runs(run_id: str, root_run_id: str, *, limit: int) -> TooManyRuns:
    """The run requests child runs for which its root has no room."""
    return TooManyRuns(
        f"run {run_id}: with the child runs that it requests, more than {limit:,} runs would stand below run "
        f"{root_run_id}; its finished steps are kept. If its agents do not call each other endlessly, raise "
        "PAIDONCE_MAX_RUNS and restart the workers: the run then continues",
        limit=limit,
    )


def signature_when_blocked(error: PaidonceError, signature: str) -> str:
    """The ``runs.blocked_signature`` for this error: the code, after the limit if it was a limit.

    Empty if a type does not fit, which may be defined anywhere: each worker that starts is worth a try.
    """
    if isinstance(error, CodeDoesNotFit) or error.details.get("in_types"):
        return ""
    if isinstance(error, BoundReached):
        return signature_with_limit(error.limit, signature)
    return signature
