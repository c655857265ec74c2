"""Why money was spent, and whether it bought something: derived from outcomes, never stored with a call.

The same definition as in the view ``ledger_calls`` (a test compares them), for attempts without calls: those that were
lost before anything was recorded.
"""

from __future__ import annotations

from enum import StrEnum

from paidonce_models.states import RUN_TERMINAL, AttemptOutcome, RunState


class Cause(StrEnum):
    """Each call has exactly one. The values after ``abandoned`` are the outcomes of attempts that were not accepted."""

    OPEN = "open"
    """The root run or the attempt has not ended."""
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
    """The returned result was kept and never used: the run was cancelled, or a person had the step repeated."""
    UNKNOWN = "unknown"
    """The row of the run or the attempt was deleted."""


def cause_of(outcome: AttemptOutcome | None, root_state: RunState) -> Cause:
    """The cause of an attempt's spend; ``outcome`` is ``None`` while the attempt is running."""
    if root_state not in RUN_TERMINAL or outcome is None:
        return Cause.OPEN
    if outcome is AttemptOutcome.ACCEPTED:
        return Cause.USEFUL if root_state is RunState.SUCCEEDED else Cause.ABANDONED
    return Cause(outcome.value)
