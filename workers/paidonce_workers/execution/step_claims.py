"""Claims the step of a message, or sends a suspect to a process where it can do no harm."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Protocol, TypeVar

from paidonce.runs.claiming import Claimer
from paidonce_models.store.messages import StepMessage
from paidonce_models.store.steps.claims import Claim
from paidonce_models.store.steps.suspicion import Suspect
from paidonce_workers.execution.own_claims import OwnClaims
from paidonce_workers.execution.store_waits import StoreWaits

C = TypeVar("C")


class Isolation(Protocol):
    """Where steps go that may kill the process which runs them."""

    def send(self, message: StepMessage, suspect: Suspect) -> bool:
        """Let another process claim and execute the step; False if none can."""


class StepClaims:
    """The claims of one process. Waits for a store that is away."""

    def __init__(
        self, *, claimer: Claimer, own: OwnClaims, store_waits: StoreWaits, isolation: Isolation | None
    ) -> None:
        """``isolation`` ``None``: suspects are claimed like any other step."""
        self._claimer = claimer
        self._own = own
        self._store_waits = store_waits
        self._isolation = isolation

    def claim_or_send(self, run_id: str, position: int, name: str, agent: str) -> Claim | None:
        """The claim; ``None`` also if the step is a suspect and was sent elsewhere.

        A suspect is not claimed here: this process may die before it forwards the step, and would lose it once more.
        """
        if self._isolation is None:
            return self._claim(run_id, position, self._claimer.claim)
        found = self._claim(run_id, position, self._claimer.claim_unless_suspect)
        if not isinstance(found, Suspect):
            return found
        message = StepMessage(run_id=run_id, position=position, name=name, agent=agent, queue="", priority=0)
        if self._isolation.send(message, found):
            return None
        return self._claim(run_id, position, self._claimer.claim)

    def _claim(self, run_id: str, position: int, claim: Callable[[str, int], C]) -> C | Claim | None:
        tries = itertools.count(1)

        def act() -> C | Claim | None:
            if next(tries) > 1:  # the store went away, perhaps after the commit and before its response
                lost = self._own.take_in_doubt(run_id, position)
                if lost is not None:
                    return lost
            found = claim(run_id, position)
            return self._own.take(found) if isinstance(found, Claim) else found

        return self._store_waits.until_done(act, f"step {position} of run {run_id}")
