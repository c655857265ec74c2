"""What is due in this process within moments: retries, timers, messages to requeue.

Only for speed: each due time is in the store too, and the sweeper acts on it if
this process dies.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable

from paidonce.broker.publisher_protocol import MessagePublisher
from paidonce_models.database.transactions import Database
from paidonce_models.errors import StoreError
from paidonce_models.store.messages import AdvanceMessage, Message, StepMessage
from paidonce_models.store.recovery.sweeping import fire_timer
from paidonce_models.store.recovery.workers import live_workers
from paidonce_models.store.runs.runs_head import read_head
from paidonce_models.store.steps.claims import Claim
from paidonce_workers.bodies.deadlines import Deadlines

log = logging.getLogger(__name__)

HORIZON_SECONDS = 30.0
"""Whatever is due later than this is left to the sweeper, so that memory stays bounded."""
MOST_PENDING = 20_000
LIVE_WITHIN_US = 15_000_000


class LocalSchedule:
    """Due times of this process, served by one thread."""

    def __init__(
        self, *, database: Database, publisher: MessagePublisher, namespace: str, deadlines: Deadlines
    ) -> None:
        self._database = database
        self._publisher = publisher
        self._namespace = namespace
        self._deadlines = deadlines

    def retry_step(self, claim: Claim, seconds: float) -> None:
        """Publish a step when its retry is due; the sweeper does it if this process is gone by then."""
        message = StepMessage(
            run_id=claim.run_id,
            position=claim.position,
            name=claim.name,
            agent=claim.agent,
            queue=claim.queue,
            priority=claim.priority,
        )
        self._add(seconds + 0.002, lambda: self._publisher.publish([message]))

    def wake_run(self, run_id: str, wake_at_us: int | None) -> None:
        """Fire the run's earliest timer when it is due by the store's clock."""
        if wake_at_us is not None:
            self._add(wake_at_us / 1e6 - time.time() + 0.002, lambda: self._fire(run_id))

    def hand_on_advance(self, run_id: str) -> None:
        """Publish an advance for workers that hold the run's agent; while the store is away, the sweeper does it."""
        try:
            with self._database.read() as connection:
                head = read_head(connection, self._namespace, run_id)
        except StoreError as error:
            log.debug("left to the sweeper: %s", error)
            return
        if head is not None:
            message = AdvanceMessage(run_id=run_id, agent=head.agent, queue=head.queue, priority=head.priority)
            self._publisher.publish([message])

    def pass_on(self, message: Message, bounces: int) -> None:
        """Requeue a message that reached the wrong worker, if a live worker holds its code."""
        pause = random.uniform(0.05, 0.3) * min(2.0 ** max(bounces - 3, 0), 16.0)
        self._add(pause, lambda: self._pass_on(message))

    def _pass_on(self, message: Message) -> None:
        with self._database.read() as connection:
            live = live_workers(connection, self._namespace, within_us=LIVE_WITHIN_US)
        if isinstance(message, StepMessage):
            held = any(message.name in worker.steps and message.queue in worker.queues for worker in live)
        else:
            held = any(
                message.queue in worker.queues and any(name == message.agent for name, _ in worker.agents)
                for worker in live
            )
        if held:
            self._publisher.publish([message])

    def _fire(self, run_id: str) -> None:
        message = self._database.transact(lambda connection: fire_timer(connection, run_id))
        if message is not None:
            self._publisher.publish([message])

    def _add(self, seconds: float, act: Callable[[], object]) -> None:
        if seconds > HORIZON_SECONDS or len(self._deadlines) > MOST_PENDING:
            return

        def quietly() -> None:
            try:
                act()
            except StoreError as error:
                log.debug("left to the sweeper: %s", error)

        self._deadlines.add(max(seconds, 0.0), quietly)
