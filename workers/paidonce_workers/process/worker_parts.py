"""The parts of one worker process that Celery's pool and consumer use.

Owns nothing but references: the runner of bodies, the time limits of a shutdown, and
the hooks by which the Celery-facing parts (``pools``, ``delivery``) reach the store
without knowing it. Set up once per app by ``paidonce_workers``, before the worker
starts; never changed afterwards.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from paidonce_models.queues import DEFAULT_NAMESPACE, broker_queue_name
from paidonce_workers.bodies.body_runner import BodyRunner
from paidonce_workers.execution.eager_execution import EagerMessage
from paidonce_workers.execution.local_delivery import LocalDelivery

ATTRIBUTE = "paidonce_worker_parts"

UnknownStepHook = Callable[[str, Sequence[Any], Mapping[str, Any], Any], bool]
RefusedSubmissionHook = Callable[[str, Any, str], object]
DrainIsolatedHook = Callable[[float], Callable[[], object]]
DrainExpiredHook = Callable[[list[Hashable]], None]


@dataclass(kw_only=True)
class WorkerParts:
    """The parts and hooks of one worker process."""

    bodies: BodyRunner = field(default_factory=BodyRunner)

    namespace: str = DEFAULT_NAMESPACE
    """Whose queues this process consumes; queue names on the broker are derived from it."""

    drain_seconds: float = 20.0
    """How long a stopping worker waits for its running steps before it releases the rest.

    Less than the 30 s that Kubernetes and ``docker stop -t 30`` leave between SIGTERM and SIGKILL.
    """

    interrupt_seconds: float = 4.0
    """How long interrupted bodies then have to end."""

    hand_back_seconds: float = 3.0
    """How long ``on_drain_expired`` may take; a store that is down must not keep the process alive."""

    before_start: Callable[[], object] | None = None
    """Called by the worker program before it consumes anything; returns when the store responds.

    Raises ``PaidonceError`` if the worker cannot work with this store at all.
    """

    hurry: threading.Event = field(default_factory=threading.Event)
    """Set by a second signal: a drain releases running steps instead of waiting for them."""

    on_drain_expired: DrainExpiredHook | None = None
    """Called once with the keys of bodies that did not end even when interrupted: release them in the store."""

    drain_isolated: DrainIsolatedHook | None = None
    """Called with the seconds of a drain when it starts, and with 0 when it is to end at once, to end the processes
    that hold isolated steps. Returns a function that waits for them, in bounded time."""

    on_unknown_step: UnknownStepHook | None = None
    """``(name, args, kwargs, message)`` of a task that this worker does not hold; runs in a separate thread.

    True: requeued through the store, the message is acknowledged. False: no step waits
    for it, the message is acknowledged with an error. Raising (the store is down)
    retries it, after ``requeue_seconds`` at first.
    """

    on_refused_submission: RefusedSubmissionHook | None = None
    """``(task id, body, what is wrong)`` of an unreadable ``paidonce.submit`` message; in the same thread.

    Returning acknowledges the message, raising retries it as above.
    """

    requeue_seconds: float = 2.0
    """The first pause before such a message is retried; it doubles each time."""

    requeue_tries: int = 6
    """How often a message for a step is tried before it is dropped: the store has the step, and the sweeper sends
    another message. A submission is tried for as long as it takes, finally once a minute."""

    pinned_settings: Mapping[str, object] = field(default_factory=dict)
    """Celery's settings that a worker relies on (``worker_options``); a worker with other values is refused."""

    is_step: Callable[[str], bool] | None = None
    """Whether a step of that name is held here. ``None``: an app of other tasks, for which Celery's own rules apply."""

    largest_submission_bytes: int = 150 * 1024 * 1024
    """The largest body of a ``paidonce.submit`` message that is read, in bytes."""

    eager_seconds: float = 5.0
    """How long a thread executes eagerly before the next step goes through the broker."""

    local_delivery: LocalDelivery | None = None
    """The way around the broker; set by the consumer. Without it every message goes to the broker."""

    release_kept: Callable[[EagerMessage], object] | None = None
    """Called with what a thread was to execute eagerly and could not: others must get it."""

    def on_broker(self, queue: str) -> str:
        """The queue's name on the broker."""
        return broker_queue_name(self.namespace, queue)


def worker_parts_of(app: Any) -> WorkerParts:
    """The worker parts of a Celery app; creates parts without hooks for an app that has none."""
    parts = getattr(app, ATTRIBUTE, None)
    if not isinstance(parts, WorkerParts):
        parts = WorkerParts()
        setattr(app, ATTRIBUTE, parts)
    return parts
