"""What an agent requests during replay, and how it ends: the interface between a machine and its recorder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from paidonce.declarations.declaration import Declaration
from paidonce_models.payloads.documents import Encoded
from paidonce_models.states import RunState


@dataclass(frozen=True, slots=True)
class Schedule:
    """The agent requested a step, tool or child run."""

    seq: int
    position: int
    declaration: Declaration[..., Any]
    arguments: Encoded


@dataclass(frozen=True, slots=True)
class CancelStep:
    """The agent no longer waits for a step."""

    seq: int
    position: int


Command = Schedule | CancelStep


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the agent's coroutine ended; ``result`` is JSON."""

    state: RunState
    result: bytes | None = None
    error: dict[str, object] | None = None
