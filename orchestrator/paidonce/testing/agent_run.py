"""``AgentRun``: the result of a run in a simulation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from paidonce_models.errors import RunBlocked, RunCancelled, RunFailed
from paidonce_models.states import RunState
from paidonce_models.store.queries import StepView


@dataclass(frozen=True, kw_only=True)
class AgentRun:
    """A run that came to rest: it has ended, is ``blocked`` for good, or waits for a person.

    ``executions`` counts how often each step's body ran, by name; ``repeated``
    names the steps whose body ran again after an attempt had been accepted,
    which must never happen. ``completions`` counts the accepted outcomes, after
    any of which ``crash_after`` can crash. ``elapsed`` is time of the fake clock.
    """

    run_id: str
    agent: str
    state: RunState
    value: Any
    error: dict[str, object] | None
    steps: Sequence[StepView]
    executions: Counter[str]
    attempts: int
    completions: int
    crashes: int
    repeated: Sequence[str]
    elapsed: timedelta

    @property
    def result(self) -> Any:
        """What the agent returned. Raises ``RunFailed``, ``RunCancelled`` or ``RunBlocked`` if it did not."""
        if self.state is RunState.SUCCEEDED:
            return self.value
        error = self.error or {}
        described = f"{error.get('type', 'no error')}: {error.get('message', '')}"
        kind = {RunState.CANCELLED: RunCancelled, RunState.FAILED: RunFailed}.get(self.state, RunBlocked)
        raise kind(
            f"run {self.run_id} of agent {self.agent!r} {self.state}: {described}", run_id=self.run_id, error=error
        )
