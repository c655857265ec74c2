"""The result of advancing a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from paidonce_models.store.messages import Message
from paidonce_models.store.steps.claims import Claim
from paidonce_models.store.steps.completion import Acceptance


class Advanced(StrEnum):
    """What an advance achieved."""

    DONE = "done"
    NOT_HELD = "not_held"
    NO_RUN = "no_run"
    """The namespace has no such run."""
    BUSY = "busy"
    """Another thread of this process is advancing the run and will see the same events."""


@dataclass(kw_only=True, slots=True)
class AdvanceResult:
    """The messages to publish, and the run's earliest timer if this advance set one."""

    outcome: Advanced = Advanced.DONE
    messages: list[Message] = field(default_factory=list)
    wake_at_us: int | None = None
    acceptance: Acceptance | None = None
    was_known: bool = False
    """Whether an earlier try had been accepted, whose response was lost."""
    claim: Claim | None = None
    """The next step, if the commit also claimed it; it is not among the messages."""
