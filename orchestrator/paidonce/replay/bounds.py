"""How much one run may ask for: steps, wake-ups, tasks, and runs below one root.

Owns the limits that stop an agent without an end, and the words of their errors. A run that meets one is blocked with
nothing lost: what it has finished stays recorded, and a worker that registers a larger limit, or other code, sets it
going again (``signature_when_blocked`` is what the store compares). Pure: which events and steps there are, others say.
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
from paidonce_models.payloads import MAX_PAYLOAD_BYTES
from paidonce_models.store.bounds import bounded_signature

TASKS_PER_STEP = 10
"""A step is awaited in a task or two of asyncio's, seldom in more; so many make room for all that is no step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunBounds:
    """The limits of one run, as the settings ``PAIDONCE_MAX_STEPS`` and its neighbours."""

    max_steps: int = 10_000
    """Steps, tools and child runs that a run may ask for."""
    warn_steps: int = 1_000
    max_timers: int = 50_000
    """How often a timer may wake a run."""
    max_runs: int = 10_000
    """Runs below one root, all generations together."""
    max_payload_bytes: int = MAX_PAYLOAD_BYTES
    """Of one value: arguments of a call, the run's result."""

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
        """Tasks that have not ended, at one time."""
        return self.max_steps * TASKS_PER_STEP


def bounds_of(settings: Settings) -> RunBounds:
    """The limits that an operator has set."""
    return RunBounds(
        max_steps=settings.max_steps,
        warn_steps=settings.warn_steps,
        max_timers=settings.max_timers,
        max_runs=settings.max_runs,
        max_payload_bytes=settings.max_payload_bytes,
    )


def too_many_steps(run_id: str, agent: str, *, asked: int, limit: int) -> TooManySteps:
    """The run asks for one step more than it may."""
    return TooManySteps(
        f"run {run_id}: agent {agent!r} asks for step {asked:,}, at most {limit:,} are allowed; its finished steps are "
        "kept. If it is not endless, raise PAIDONCE_MAX_STEPS and restart the workers: the run goes on by itself. If "
        "it is, mend its code, or end it with `paidonce cancel`",
        limit=limit,
    )


def too_many_tasks(run_id: str, agent: str, *, limit: int, max_steps: int) -> TooManySteps:
    """The run has more tasks under way than its steps can need."""
    return TooManySteps(
        f"run {run_id}: agent {agent!r} has {limit:,} asyncio tasks under way, {TASKS_PER_STEP} for each of the "
        f"{max_steps:,} steps that are allowed; its finished steps are kept. Make fewer tasks at a time, or raise "
        "PAIDONCE_MAX_STEPS and restart the workers: the run goes on by itself",
        limit=max_steps,
    )


def too_many_timers(run_id: str, agent: str, *, limit: int) -> TooManyTimers:
    """A timer is due once more than allowed."""
    return TooManyTimers(
        f"run {run_id}: agent {agent!r} was woken by a timer {limit:,} times, more are not allowed; its finished steps "
        "are kept. Sleep longer between looks, or raise PAIDONCE_MAX_TIMERS and restart the workers: the run goes on "
        "by itself",
        limit=limit,
    )


def too_many_runs(run_id: str, root_run_id: str, *, limit: int) -> TooManyRuns:
    """The run asks for child runs for which its root has no room."""
    return TooManyRuns(
        f"run {run_id}: with the child runs that it asks for, more than {limit:,} runs would stand below run "
        f"{root_run_id}; its finished steps are kept. If its agents do not call each other without an end, raise "
        "PAIDONCE_MAX_RUNS and restart the workers: the run goes on by itself",
        limit=limit,
    )


def signature_when_blocked(error: PaidonceError, signature: str) -> str:
    """What ``runs.blocked_signature`` holds: the code, behind the limit where it was a limit.

    None at all where a type does not fit, which may be defined anywhere: each worker that starts is worth a try.
    """
    if isinstance(error, CodeDoesNotFit) or error.details.get("in_types"):
        return ""
    if isinstance(error, BoundReached):
        return bounded_signature(error.limit, signature)
    return signature
