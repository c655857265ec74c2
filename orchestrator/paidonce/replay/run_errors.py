"""The errors that end or block a run, and what its agent sees of a failed step."""

from __future__ import annotations

from typing import Any

from paidonce.declarations.declaration import Declaration
from paidonce_models.errors import CircuitOpen, CodeDoesNotFit, PaidonceError, StepFailed, StepTimedOut, TooMuchData
from paidonce_models.store.runs.events import Event


def too_much_data(run_id: str, what: str, *, limit: int) -> TooMuchData:
    """A value of the run is larger than a payload may be, ``limit`` bytes."""
    return TooMuchData(
        f"run {run_id}: {what}, the limit is {limit:,}; its finished steps are kept. Raise "
        "PAIDONCE_MAX_PAYLOAD_BYTES and restart the workers: the run then continues. Or store the value "
        "elsewhere and pass its address",
        limit=limit,
    )


def code_does_not_fit(run_id: str, agent: Declaration[..., Any], what: str, error: Exception) -> CodeDoesNotFit:
    """The run cannot continue in this code; ``what`` of it does not fit."""
    why = error.message if isinstance(error, PaidonceError) else f"{type(error).__name__} while it was encoded"
    return CodeDoesNotFit(
        f"run {run_id}: agent {agent.name!r} ({agent.place}) cannot continue in this code: "
        f"{what}: {why}. Its finished steps are kept; correct the code and restart the workers, and it "
        "continues"
    )


def cancelled_error(message: str) -> dict[str, object]:
    """The error of a cancelled run."""
    return {"type": "CancelledError", "code": "cancelled", "message": message}


def failure_of(declaration: Declaration[..., Any], position: int, event: Event) -> StepFailed:
    """What the agent sees of a failed step: always ``StepFailed``, never the original object."""
    data = event.data or {}
    recorded = data.get("error")
    error: dict[str, Any] = recorded if isinstance(recorded, dict) else {}
    attempts = event.attempts or 0
    times = "1 attempt" if attempts == 1 else f"{attempts} attempts"
    kind = StepTimedOut if data.get("timed_out") else StepFailed
    details: dict[str, object] = {}
    if error.get("code") == CircuitOpen.code:
        kind = CircuitOpen
        recorded_details = error.get("details")
        details = dict(recorded_details) if isinstance(recorded_details, dict) else {}
    return kind(
        f"step {position} ({declaration.name}) failed after {times}: "
        f"{error.get('type', 'Error')}: {error.get('message', '')}",
        step=position,
        name=declaration.name,
        error_type=str(error.get("type", "")),
        error_message=str(error.get("message", "")),
        attempts=attempts,
        **{name: details[name] for name in ("target", "since", "retry_at", "reason") if name in details},
    )
