"""Limits of a run that need the store: the number of runs below one root, and what unblocks a run that met a limit.

Owns the form of ``runs.blocked_signature`` for such a run: the limit it met, then the code it ran. The limit has a
fixed width, so that SQL can compare it as text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from sqlalchemy import Connection, text

from paidonce_models.errors import TooManyRuns, TooManySteps, TooManyTimers, TooMuchData
from paidonce_models.store.runs.run_states import BLOCKED_STEP_REASONS

LIMIT_REASONS: Final = (TooManySteps.code, TooManyTimers.code, TooManyRuns.code, TooMuchData.code)
"""The values of ``runs.state_reason`` for a limit."""
_LIMIT_DIGITS: Final = 12
_REASONS: Final = ", ".join(f"'{reason}'" for reason in LIMIT_REASONS)
_STEPS: Final = BLOCKED_STEP_REASONS.strip("()")

IS_UNBLOCKED: Final = (
    f"(state_reason NOT IN ('no_worker', 'deadlock', {_STEPS}, {_REASONS}) "
    "AND (blocked_signature IS NULL OR blocked_signature <> :signature) "
    f"OR state_reason IN ({_REASONS}) AND (substr(blocked_signature, {_LIMIT_DIGITS + 2}) <> :signature "
    f"OR substr(blocked_signature, 1, {_LIMIT_DIGITS}) < CASE state_reason "
    + " ".join(f"WHEN '{reason}' THEN CAST(:{reason} AS VARCHAR)" for reason in LIMIT_REASONS)
    + " END))"
)
"""Whether a worker that registers ``signature`` and its limits unblocks a blocked run of that agent."""

_BELOW_ROOT = text(
    "SELECT count(*) FROM (SELECT 1 FROM runs WHERE root_run_id = :root AND id <> :root LIMIT :most) AS below"
)


def signature_with_limit(limit: int, signature: str) -> str:
    """The ``blocked_signature`` of a run that met a limit."""
    return f"{_limit_text(limit)}:{signature}"


def limit_parameters(limits: Mapping[str, int]) -> dict[str, str]:
    """The parameters of ``IS_UNBLOCKED``; a limit that is not given unblocks nothing."""
    return {reason: _limit_text(limits[reason]) if reason in limits else "" for reason in LIMIT_REASONS}


def runs_below(connection: Connection, root_run_id: str, *, most: int) -> int:
    """How many runs are below a root, counted up to ``most``."""
    return int(connection.execute(_BELOW_ROOT, {"root": root_run_id, "most": most}).scalar_one())


def _limit_text(limit: int) -> str:
    return f"{min(limit, 10**_LIMIT_DIGITS - 1):0{_LIMIT_DIGITS}d}"
