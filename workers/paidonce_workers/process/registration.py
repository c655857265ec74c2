"""Registers in the store what a worker holds, so that runs which waited for its code continue."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Sequence

from paidonce.broker.publisher import Publisher
from paidonce.declarations.registry import Registry
from paidonce.replay.bounds import bounds_of
from paidonce.settings import Settings
from paidonce_models.database.schema import ensure_schema
from paidonce_models.database.transactions import Database
from paidonce_models.queues import DEFAULT_NAMESPACE, SUBMIT_QUEUE, broker_queue_name, full_queue_name
from paidonce_models.store.recovery.workers import HeldAgent, Registration, live_workers, register_worker

log = logging.getLogger(__name__)

REGISTERED_WITHIN_US = 15_000_000
"""Seconds since its last heartbeat in which a worker counts as alive."""


class WorkerRegistration:
    """The row of one worker."""

    def __init__(
        self, *, database: Database, publisher: Publisher, settings: Settings, registry: Registry, worker: str
    ) -> None:
        self._database = database
        self._publisher = publisher
        self._settings = settings
        self._registry = registry
        self._worker = worker

    def register(self, queues: Sequence[str]) -> None:
        """Record what this worker holds, and unblock the runs that were blocked for want of it.

        Raises ``StoreUnreachable`` while the store is away.
        """
        ensure_schema(self._database)
        registration = Registration(
            worker=self._worker,
            namespace=self._settings.namespace,
            hostname=socket.gethostname(),
            pid=os.getpid(),
            python_minor=f"{sys.version_info.major}.{sys.version_info.minor}",
            queues=list(queues),
            agents=[
                HeldAgent(
                    name=held.name,
                    version=held.version,
                    signature=held.signature,
                    queue=full_queue_name(held.queue),
                    limits=held.limits,
                )
                for held in self._registry.agents
            ],
            steps=[held.name for held in self._registry.steps],
            bounds=bounds_of(self._settings).by_reason,
        )
        messages = self._database.transact(lambda connection: register_worker(connection, registration))
        self._publisher.publish(messages)

    def warn_of_submissions_left_behind(self) -> None:
        """Warn of submissions in the queue that all namespaces shared before queue names included the namespace.

        If no worker consumes that queue any more, its messages, the only copies, would wait silently.
        """
        namespace = self._settings.namespace
        if namespace == DEFAULT_NAMESPACE:
            return
        with self._database.read() as connection:
            if live_workers(connection, DEFAULT_NAMESPACE, within_us=REGISTERED_WITHIN_US):
                return
        waiting = self._publisher.depth_on_broker([SUBMIT_QUEUE]).get(SUBMIT_QUEUE, 0)
        if waiting:
            log.warning(
                "%d submission(s) wait in the queue %s, which workers of the namespace %s consume, and none of them is "
                "alive in this store; those for namespace %s are sent to %s. If they are yours, move them there and "
                "let their producers send there",
                waiting,
                SUBMIT_QUEUE,
                DEFAULT_NAMESPACE,
                namespace,
                broker_queue_name(namespace, SUBMIT_QUEUE),
                extra={"event": "submissions_left_behind"},
            )
