"""Claims a step for execution: directly if no budget applies, else with a reservation.

Owns the order of the two: the ordinary claim is one statement that leaves steps with budgets alone, and only if it
found nothing is the store asked again. The maximum cost of a step is known to this process's declarations.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from sqlalchemy import Connection

from paidonce.declarations.registry import Registry
from paidonce_models.budgets import Maxima, Refusal, Unit
from paidonce_models.database.transactions import Database
from paidonce_models.payloads.payload_memory import PayloadMemory
from paidonce_models.privacy.log_texts import loggable
from paidonce_models.store.budgets.budgeted_claims import Expectations, claim_within_budgets
from paidonce_models.store.steps.claims import Claim, Claimant, claim_step, find_suspect
from paidonce_models.store.steps.suspicion import Suspect

log = logging.getLogger(__name__)


class Claimer:
    """Claims steps for one process. Thread-safe."""

    def __init__(
        self,
        database: Database,
        registry: Registry,
        claimant: Claimant,
        guesses: Mapping[Unit, int],
        memory: PayloadMemory | None = None,
    ) -> None:
        """``guesses``: the expected cost of an attempt whose step declares nothing and has no history."""
        self._database = database
        self._registry = registry
        self._claimant = claimant
        self._expectations = Expectations(maxima=self._maxima, guesses=guesses)
        self._memory = memory

    def claim(self, run_id: str, position: int) -> Claim | None:
        """The step, or ``None`` if it is finished, running, not yet due, or held by a budget from now on.

        Also ``None`` if it is not in the claimant's namespace.
        """
        found = self._claim(run_id, position, suspects=True)
        return None if isinstance(found, Suspect) else found

    def claim_unless_suspect(self, run_id: str, position: int) -> Claim | Suspect | None:
        """The same, except for a step that may kill whoever runs it: that is left as it is."""
        return self._claim(run_id, position, suspects=False)

    def _claim(self, run_id: str, position: int, *, suspects: bool) -> Claim | Suspect | None:
        claim = self._database.transact(
            lambda connection: claim_step(
                connection,
                namespace=self._claimant.namespace,
                run_id=run_id,
                position=position,
                worker=self._claimant.worker,
                lease_us=self._claimant.lease_us,
                suspects=suspects,
                memory=self._memory,
            ),
            single=True,
        )
        if claim is not None:
            return claim

        def claim_otherwise(connection: Connection) -> Claim | Refusal | Suspect | None:
            suspect = (
                None
                if suspects
                else find_suspect(connection, namespace=self._claimant.namespace, run_id=run_id, position=position)
            )
            if suspect is not None:
                return suspect
            return claim_within_budgets(
                connection,
                namespace=self._claimant.namespace,
                run_id=run_id,
                position=position,
                worker=self._claimant.worker,
                lease_us=self._claimant.lease_us,
                expectations=self._expectations,
                memory=self._memory,
            )

        answer = self._database.transact(claim_otherwise)
        if isinstance(answer, Refusal):
            log.info(
                "step %d of run %s is held: %s",
                position,
                run_id,
                loggable(answer.message),
                extra={"event": "step_held", "run_id": run_id, "step": position},
            )
            return None
        return answer

    def _maxima(self, step: str) -> Maxima:
        declaration = self._registry.step(step)
        return Maxima() if declaration is None else declaration.maxima
