"""``current_step()``: the step that a body runs as, for idempotency keys and request headers."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

from paidonce_models.errors import InvalidInput


@dataclass(frozen=True, kw_only=True, slots=True)
class CurrentStep:
    """The attempt that a body runs as. ``attempt`` counts from 1."""

    run_id: str
    step: int
    attempt: int
    agent: str
    name: str

    @property
    def idempotency_key(self) -> str:
        """The same for every attempt of the step, for providers that accept one."""
        return f"{self.run_id}-{self.step}"


executing: ContextVar[CurrentStep | None] = ContextVar("paidonce_current_step", default=None)


def current_step() -> CurrentStep:
    """The step whose body calls this. Raises ``InvalidInput`` outside a step."""
    step = executing.get()
    if step is None:
        raise InvalidInput("current_step() was called outside the body of a step or tool")
    return step
