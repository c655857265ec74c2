"""Why money was spent, and whether it bought something: derived from how things ended, never stored with a call.

The same definition as the view ``ledger_calls`` (a test compares them), for what has no call: an attempt that was
lost before anything was recorded.
"""

from __future__ import annotations

from enum import StrEnum

from paidonce_models.states import RUN_TERMINAL, AttemptOutcome, RunState


class Cause(StrEnum):
    """Each call has exactly one. The values after ``abandoned`` are the outcomes of attempts that were not accepted."""

    OPEN = "open"
    """The root run, or the attempt itself, is under way."""
    USEFUL = "useful"
    """Accepted, and the root run succeeded."""
    ABANDONED = "abandoned"
    """Accepted, but the root run failed or was cancelled."""
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    LOST = "lost"
    FENCED = "fenced"
    SHORT_CIRCUITED = "short_circuited"
    BLOCKED = "blocked"
    """What it returned was kept and never taken: the run was cancelled, or a person had it done once more."""
    UNKNOWN = "unknown"
    """The run's or the attempt's row is gone."""


def cause_of(outcome: AttemptOutcome | None, root_state: RunState) -> Cause:
    """The cause of what an attempt spent; an ``outcome`` of ``None`` is an attempt under way."""
    if root_state not in RUN_TERMINAL or outcome is None:
        return Cause.OPEN
    if outcome is AttemptOutcome.ACCEPTED:
        return Cause.USEFUL if root_state is RunState.SUCCEEDED else Cause.ABANDONED
    return Cause(outcome.value)
