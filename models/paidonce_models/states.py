"""The states of runs, steps and attempts, each with one table of legal moves.

``waiting``, ``parked``, ``paused`` and ``blocked`` are kinds of standing still:
the run's earliest open await decides which. Terminal states have no moves.
"""

from __future__ import annotations

from enum import StrEnum

from paidonce_models.errors import IllegalTransition


class RunState(StrEnum):
    """Where a run is in its life."""

    PENDING = "pending"
    RUNNING = "running"
    WAITING = "waiting"
    PARKED = "parked"
    PAUSED = "paused"
    BLOCKED = "blocked"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        """Whether nothing can happen to the run any more."""
        return self in RUN_TERMINAL


class StepState(StrEnum):
    """Where a step is in its life."""

    SCHEDULED = "scheduled"
    RUNNING = "running"
    RETRYING = "retrying"
    PARKED = "parked"
    HELD = "held"
    UNKNOWN = "unknown"
    BLOCKED = "blocked"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        """Whether the step has its outcome."""
        return self in STEP_TERMINAL


class AttemptOutcome(StrEnum):
    """How an attempt ended; an attempt under way has none."""

    ACCEPTED = "accepted"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    LOST = "lost"
    FENCED = "fenced"
    SHORT_CIRCUITED = "short_circuited"
    BLOCKED = "blocked"
    """Its body returned what the code cannot store, or its arguments did not fit; what it returned is kept."""


RUN_TERMINAL = frozenset({RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED})
STEP_TERMINAL = frozenset({StepState.SUCCEEDED, StepState.FAILED, StepState.CANCELLED})

_RUN_OPEN = frozenset(set(RunState) - RUN_TERMINAL)

RUN_MOVES: dict[RunState, frozenset[RunState]] = {
    **{state: frozenset(set(RunState) - {RunState.PENDING}) for state in _RUN_OPEN},
    **{state: frozenset() for state in RUN_TERMINAL},
}

STEP_MOVES: dict[StepState, frozenset[StepState]] = {
    StepState.SCHEDULED: frozenset(
        {
            StepState.RUNNING,
            StepState.PARKED,
            StepState.HELD,
            StepState.CANCELLED,
            StepState.SUCCEEDED,
            StepState.FAILED,
        }
    ),
    StepState.RUNNING: frozenset(set(StepState) - {StepState.HELD}),
    StepState.RETRYING: frozenset(
        {StepState.RUNNING, StepState.PARKED, StepState.HELD, StepState.CANCELLED, StepState.FAILED}
    ),
    StepState.PARKED: frozenset({StepState.SCHEDULED, StepState.RUNNING, StepState.CANCELLED, StepState.FAILED}),
    StepState.HELD: frozenset({StepState.SCHEDULED, StepState.RUNNING, StepState.CANCELLED, StepState.FAILED}),
    StepState.UNKNOWN: frozenset(
        {
            *(StepState.SCHEDULED, StepState.SUCCEEDED, StepState.FAILED, StepState.RETRYING, StepState.CANCELLED),
            StepState.BLOCKED,
        }
    ),
    StepState.BLOCKED: frozenset({StepState.SCHEDULED, StepState.SUCCEEDED, StepState.FAILED, StepState.CANCELLED}),
    StepState.SUCCEEDED: frozenset(),
    StepState.FAILED: frozenset(),
    StepState.CANCELLED: frozenset(),
}

ATTEMPT_MOVES: dict[AttemptOutcome | None, frozenset[AttemptOutcome]] = {
    None: frozenset(AttemptOutcome),
    # `fenced` when a zombie reports; the others when an at-most-once attempt does that was given up as unknown.
    AttemptOutcome.LOST: frozenset(
        {AttemptOutcome.FENCED, AttemptOutcome.ACCEPTED, AttemptOutcome.FAILED, AttemptOutcome.BLOCKED}
    ),
    AttemptOutcome.TIMED_OUT: frozenset({AttemptOutcome.ACCEPTED, AttemptOutcome.FAILED, AttemptOutcome.BLOCKED}),
    # What it returned was kept, and other code could read it.
    AttemptOutcome.BLOCKED: frozenset({AttemptOutcome.ACCEPTED}),
    **{
        outcome: frozenset()
        for outcome in AttemptOutcome
        if outcome not in (AttemptOutcome.LOST, AttemptOutcome.TIMED_OUT, AttemptOutcome.BLOCKED)
    },
}


def check_run_move(current: RunState, target: RunState) -> None:
    """Raise ``IllegalTransition`` unless a run may go from ``current`` to ``target`` (staying is allowed)."""
    if target is not current and target not in RUN_MOVES[current]:
        raise IllegalTransition(f"a run cannot go from {current} to {target}")


def check_step_move(current: StepState, target: StepState) -> None:
    """Raise ``IllegalTransition`` unless a step may go from ``current`` to ``target``."""
    if target not in STEP_MOVES[current]:
        raise IllegalTransition(f"a step cannot go from {current} to {target}")
