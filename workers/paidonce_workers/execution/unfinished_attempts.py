"""Attempts that end without a completion: released, left unknown, or lost with a process.

Their spending is recorded in the same commit. Waits for a store that is away.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection

from paidonce.broker.publisher_protocol import MessagePublisher
from paidonce_models.database.transactions import Database
from paidonce_models.store.messages import Message, StepMessage
from paidonce_models.store.recovery.lost_steps import reclaim_step
from paidonce_models.store.steps.claims import Claim
from paidonce_models.store.steps.leases import mark_unknown, release_step
from paidonce_models.usage import CallRecord
from paidonce_workers.bodies.body_runner import BodyTimedOut
from paidonce_workers.execution.attempt import key_of
from paidonce_workers.execution.refused_completions import record_with_calls
from paidonce_workers.execution.store_waits import StoreWaits


class UnfinishedAttempts:
    """The unfinished attempts of one process."""

    def __init__(self, *, database: Database, publisher: MessagePublisher, store_waits: StoreWaits) -> None:
        self._database = database
        self._publisher = publisher
        self._store_waits = store_waits

    def release(self, claim: Claim, reason: str, calls: Sequence[CallRecord]) -> None:
        """Release the step for another worker; this attempt counts neither as failed nor as lost."""
        key = key_of(claim)

        def write(connection: Connection) -> StepMessage | None:
            return release_step(connection, key, reason=reason)

        message = self._store_waits.until_done(
            lambda: record_with_calls(self._database, claim, calls, write),
            f"the release of step {key.position} of run {key.run_id}",
        )
        if message is not None:
            self._publisher.publish([message])

    def leave_unknown(self, claim: Claim, error: BodyTimedOut, calls: Sequence[CallRecord]) -> None:
        """The step may have done its work and must not be repeated; a person decides its outcome."""

        def write(connection: Connection) -> bool:
            return mark_unknown(connection, key_of(claim), error=error.to_json())

        self._store_waits.until_done(
            lambda: record_with_calls(self._database, claim, calls, write),
            f"the timeout of step {claim.position} of run {claim.run_id}",
        )

    def lose(self, claim: Claim, why: str, calls: Sequence[CallRecord], *, alone: bool) -> None:
        """The process that ran the body has died; ``alone``: it ran nothing else."""

        def write(connection: Connection) -> Message | None:
            return reclaim_step(connection, key_of(claim), why=why, alone=alone, anyway=True)

        message = self._store_waits.until_done(
            lambda: record_with_calls(self._database, claim, calls, write),
            f"the loss of step {claim.position} of run {claim.run_id}",
        )
        if message is not None:
            self._publisher.publish([message])
