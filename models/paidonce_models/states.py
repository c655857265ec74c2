"""The states of runs, steps and attempts, each with one table of legal moves.

The tables are binding: the guards of the store's statements are derived from them (``store/state_guards.py``), the
diagrams in docs/architecture.md are compared with them, and a test plays every statement that writes a state against
them. ``waiting``, ``parked``, ``paused`` and ``blocked`` are runs that cannot proceed now: the run's earliest open
await decides which. Terminal states have no moves.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class RunState(StrEnum):
    """The state of a run."""

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
    """The state of a step."""

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
    """How an attempt ended; a running attempt has no outcome."""

    ACCEPTED = "accepted"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    LOST = "lost"
    FENCED = "fenced"
    SHORT_CIRCUITED = "short_circuited"
    BLOCKED = "blocked"
    """Its body returned what the code cannot store, or its arguments did not fit; its result is kept."""


_RUN_BEGUN = (RunState.RUNNING, RunState.WAITING, RunState.PARKED, RunState.PAUSED, RunState.BLOCKED)
_RUN_ENDS = (RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED)

RUN_MOVES: Mapping[RunState, frozenset[RunState]] = {
    # No step can be parked, or held by a budget, before the agent has requested one.
    RunState.PENDING: frozenset({RunState.RUNNING, RunState.WAITING, RunState.BLOCKED, *_RUN_ENDS}),
    **{state: frozenset({*_RUN_BEGUN, *_RUN_ENDS} - {state}) for state in _RUN_BEGUN},
    **{state: frozenset() for state in _RUN_ENDS},
}

STEP_MOVES: Mapping[StepState, frozenset[StepState]] = {
    StepState.SCHEDULED: frozenset(
        {StepState.RUNNING, StepState.PARKED, StepState.HELD, StepState.FAILED, StepState.CANCELLED}
    ),
    StepState.RUNNING: frozenset(set(StepState) - {StepState.RUNNING, StepState.HELD}),
    StepState.RETRYING: frozenset(
        {StepState.RUNNING, StepState.PARKED, StepState.HELD, StepState.FAILED, StepState.CANCELLED}
    ),
    StepState.PARKED: frozenset({StepState.SCHEDULED, StepState.FAILED, StepState.CANCELLED}),
    StepState.HELD: frozenset({StepState.SCHEDULED, StepState.CANCELLED}),
    # A person decides, or its attempt reports after all: there was no other attempt.
    StepState.UNKNOWN: frozenset(set(StepState) - {StepState.UNKNOWN, StepState.RUNNING, StepState.HELD}),
    StepState.BLOCKED: frozenset({StepState.SCHEDULED, StepState.SUCCEEDED, StepState.FAILED, StepState.CANCELLED}),
    StepState.SUCCEEDED: frozenset(),
    StepState.FAILED: frozenset(),
    StepState.CANCELLED: frozenset(),
}

_LATE_REPORTS = frozenset(
    {AttemptOutcome.ACCEPTED, AttemptOutcome.FAILED, AttemptOutcome.SHORT_CIRCUITED, AttemptOutcome.BLOCKED}
)
"""The outcomes that an at-most-once attempt may still report after it was given up as unknown."""

ATTEMPT_MOVES: Mapping[AttemptOutcome | None, frozenset[AttemptOutcome]] = {
    None: frozenset(AttemptOutcome),
    # `fenced` when a zombie reports.
    AttemptOutcome.LOST: _LATE_REPORTS | {AttemptOutcome.FENCED},
    AttemptOutcome.TIMED_OUT: _LATE_REPORTS,
    # Its result was kept, and other code could read it.
    AttemptOutcome.BLOCKED: frozenset({AttemptOutcome.ACCEPTED}),
    **{
        outcome: frozenset()
        for outcome in AttemptOutcome
        if outcome not in (AttemptOutcome.LOST, AttemptOutcome.TIMED_OUT, AttemptOutcome.BLOCKED)
    },
}

RUN_TERMINAL = frozenset(state for state, moves in RUN_MOVES.items() if not moves)
STEP_TERMINAL = frozenset(state for state, moves in STEP_MOVES.items() if not moves)
CLAIMABLE = tuple(state for state, moves in STEP_MOVES.items() if StepState.RUNNING in moves)
"""The states of a step that waits to be claimed."""
