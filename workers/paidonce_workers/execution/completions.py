"""Writes a completion or an advance and, in the same commit, claims the next step for the same thread.

Owns the gates of steps that are claimed this way: their circuits were asked before the commit, and the gates are
registered or released with the claim.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from paidonce.runs.advance_result import AdvanceResult
from paidonce.runs.advancer import Advancer
from paidonce.runs.eager_claims import EagerClaim
from paidonce_models.database.transactions import Database
from paidonce_models.store.runs.advancing import NewStep
from paidonce_models.store.steps.claims import Claim, Claimant
from paidonce_models.store.steps.completion import Acceptance, Completion
from paidonce_models.store.steps.leases import LeaseKey
from paidonce_workers.execution.attempt import key_of
from paidonce_workers.execution.eager_execution import EagerExecution
from paidonce_workers.execution.own_claims import OwnClaims
from paidonce_workers.execution.refused_completions import record_in_some_form
from paidonce_workers.execution.store_waits import StoreWaits
from paidonce_workers.resilience import Gate, StepCircuits


class Completions:
    """The completions and advances of one process. Thread-safe."""

    def __init__(
        self,
        *,
        database: Database,
        advancer: Advancer,
        own: OwnClaims,
        claimant: Claimant,
        circuits: StepCircuits,
        store_waits: StoreWaits,
    ) -> None:
        self._database = database
        self._advancer = advancer
        self._own = own
        self._claimant = claimant
        self._circuits = circuits
        self._store_waits = store_waits
        self._gates: dict[LeaseKey, Gate] = {}

    def write(
        self, completion: Completion, recorded_at_us: Callable[[], int], eager: EagerExecution[Any] | None
    ) -> AdvanceResult:
        """Write the completion and, with ``eager``, claim the step that this thread executes next.

        ``recorded_at_us`` estimates the store's clock. Waits for a store that is away.
        """
        claim = completion.claim
        asked: list[tuple[int, Gate]] = []
        eager_claim = None if eager is None else self._eager_claim(eager, asked)
        tries = itertools.count(1)

        def act() -> AdvanceResult:
            again = next(tries) > 1
            result = record_in_some_form(
                lambda form: self._advancer.complete(form, recorded_at_us=recorded_at_us, eager_claim=eager_claim),
                completion,
                self._database,
            )
            result.claim = self._own.take(result.claim)
            is_in_doubt = result.acceptance is Acceptance.ACCEPTED and (again or result.was_known)
            if is_in_doubt and eager_claim is not None and result.claim is None:
                # As with a claim: the commit whose response was lost may have claimed the next step.
                result.claim = self._own.take_in_doubt(claim.run_id)
            return result

        return self._until_done(act, f"the completion of step {claim.position} of run {claim.run_id}", asked)

    def advance(self, run_id: str, eager: EagerExecution[Any] | None) -> AdvanceResult:
        """Advance the run and, with ``eager``, claim the step that this thread executes next.

        Waits for a store that is away.
        """
        asked: list[tuple[int, Gate]] = []
        eager_claim = None if eager is None else self._eager_claim(eager, asked)
        tries = itertools.count(1)

        def act() -> AdvanceResult:
            again = next(tries) > 1
            # Another claim would hide the one that may be committed.
            result = self._advancer.advance(run_id, None if again else eager_claim)
            result.claim = self._own.take(result.claim)
            if again and eager_claim is not None and result.claim is None:
                result.claim = self._own.take_in_doubt(run_id)
            return result

        return self._until_done(act, f"run {run_id}", asked)

    def _until_done(self, act: Callable[[], AdvanceResult], what: str, asked: list[tuple[int, Gate]]) -> AdvanceResult:
        taken: Claim | None = None
        try:
            result = self._store_waits.until_done(act, what)
            taken = result.claim
            return result
        finally:
            for position, gate in reversed(asked):
                if taken is not None and position == taken.position and key_of(taken) not in self._gates:
                    self._gates[key_of(taken)] = gate
                else:
                    gate.release()

    def _eager_claim(self, eager: EagerExecution[Any], asked: list[tuple[int, Gate]]) -> EagerClaim:
        """Request the claim of the next step in the commit, if this thread may execute it and no circuit is open.

        The gates that permitted a step are added to ``asked`` with its position.
        """

        def may_take(step: NewStep, agent: str) -> bool:
            if not eager.may_go_on_with(step.queue, step.name):
                return False
            gate = self._circuits.ask(step.name, agent)
            if gate.refused is not None:
                return False
            asked.append((step.position, gate))
            return True

        return EagerClaim(
            claimant=self._claimant,
            may_take=may_take,
        )

    def gate_of(self, claim: Claim) -> Gate:
        """The gate of a step that was claimed by the previous commit; may be called once."""
        return self._gates.pop(key_of(claim), self._circuits.no_gate)

    def release_claim(self, claim: Claim) -> None:
        """A step that was claimed here is executed by other workers: release the place of its probe, if any."""
        gate = self._gates.pop(key_of(claim), None)
        if gate is not None:
            gate.release()
