"""Releases steps that a stopping worker does not finish, so that others get them at once."""

from __future__ import annotations

import functools
import logging
from collections.abc import Hashable, Iterable

from paidonce.broker.publisher import Publisher
from paidonce_models.database.transactions import Database
from paidonce_models.errors import StatementRefused, StoreError
from paidonce_models.store.messages import Message
from paidonce_models.store.steps.leases import LeaseKey, release_step
from paidonce_workers.execution.eager_execution import EagerMessage
from paidonce_workers.execution.executor import Executor
from paidonce_workers.execution.store_waits import StoreWaits

log = logging.getLogger(__name__)


class ReleasedSteps:
    """The releases of one process."""

    def __init__(
        self, *, database: Database, publisher: Publisher, executor: Executor, store_waits: StoreWaits
    ) -> None:
        self._database = database
        self._publisher = publisher
        self._executor = executor
        self._store_waits = store_waits

    def release_held(self, keys: Iterable[Hashable]) -> None:
        """Release steps whose bodies could not be ended in time. Waits for a store that is away."""
        for key in keys:
            if not isinstance(key, LeaseKey):
                continue
            try:
                message = self._store_waits.until_done(
                    functools.partial(
                        self._database.transact,
                        functools.partial(release_step, key=key, reason="the worker stopped"),
                    ),
                    f"the release of step {key.position} of run {key.run_id}",
                )
            except StatementRefused as error:  # of this one; the others must be released even so
                log.error("%s", error.message, extra={"event": "hand_back_refused", "run_id": key.run_id})
                continue
            if message is not None:
                self._publisher.publish([message])

    def release_kept(self, kept: EagerMessage) -> None:
        """Release the step that a thread was to execute eagerly; while the store is away, leave it to the sweeper."""
        message: Message | None = kept.message
        claim = kept.claim
        try:
            if claim is not None:
                self._executor.release_claim(claim)
                key = LeaseKey(claim.run_id, claim.position, claim.attempt)
                message = self._database.transact(
                    lambda connection: release_step(connection, key, reason="the worker stopped before it began")
                )
        except StoreError as error:
            log.warning("%s", error.message, extra={"event": "store_away"})
            return
        finally:
            if claim is not None:
                self._executor.own.release(claim)
        if message is not None:
            self._publisher.publish([message])
