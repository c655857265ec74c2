"""Messages to publish after a commit: hints with ids only, the store is the truth."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class StepMessage:
    """Requests a worker to execute a step."""

    run_id: str
    position: int
    name: str
    agent: str
    queue: str
    priority: int


@dataclass(frozen=True, kw_only=True, slots=True)
class AdvanceMessage:
    """Requests a worker that holds the run's agent to feed it the events it has not seen."""

    run_id: str
    agent: str
    queue: str
    priority: int


Message = StepMessage | AdvanceMessage
