"""What one worker process holds and how it reports to the executor: the place where things are wired together.

Owns nothing but references: the runner of bodies, the times a shutdown may
take, and the hooks by which the Celery-facing parts (``pool``, ``consumer``)
reach the store without knowing it. Set up once per app by ``paidonce_workers``,
before the worker starts; never changed afterwards.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from paidonce_models.queues import DEFAULT_NAMESPACE, broker_queue_name
from paidonce_workers.body_runner import BodyRunner
from paidonce_workers.local_delivery import LocalDelivery
from paidonce_workers.turn import Kept

ATTRIBUTE = "paidonce_machinery"

UnknownStepHook = Callable[[str, Sequence[Any], Mapping[str, Any], Any], bool]
RefusedSubmissionHook = Callable[[str, Any, str], object]
DrainIsolatedHook = Callable[[float], Callable[[], object]]
DrainExpiredHook = Callable[[list[Hashable]], None]


@dataclass(kw_only=True)
class Machinery:
    """The parts and hooks of one worker process."""

    bodies: BodyRunner = field(default_factory=BodyRunner)

    namespace: str = DEFAULT_NAMESPACE
    """Whose queues this process takes; names of queues on the broker are made with it."""

    drain_seconds: float = 20.0
    """How long a stopping worker waits for what it runs before it hands the rest back.

    Below the 30 s that Kubernetes and ``docker stop -t 30`` leave between SIGTERM and SIGKILL.
    """

    interrupt_seconds: float = 4.0
    """How long interrupted bodies have to end after that."""

    hand_back_seconds: float = 3.0
    """How long ``on_drain_expired`` may take; a store that is down must not keep the process."""

    before_start: Callable[[], object] | None = None
    """Called by the worker program before it consumes anything; returns when the store answers.

    Raises ``PaidonceError``: the worker cannot work with this store at all.
    """

    hurry: threading.Event = field(default_factory=threading.Event)
    """Set by a second signal: a drain hands back what still runs instead of waiting for it."""

    on_drain_expired: DrainExpiredHook | None = None
    """Called once with the keys of bodies that did not even end when interrupted: hand them back in the store."""

    drain_isolated: DrainIsolatedHook | None = None
    """Called with the seconds of a drain when it begins, and with 0 when it is to end at once: the processes that hold
    isolated steps end, too. Returns what waits for them, in bounded time."""

    on_unknown_step: UnknownStepHook | None = None
    """``(name, args, kwargs, message)`` of a task this worker does not hold; runs in a thread of its own.

    True: handed back in the store, the message is acknowledged. False: it belongs to
    nobody, the message is acknowledged with an error. Raising (the store is down)
    offers it again, after ``requeue_seconds`` at first.
    """

    on_refused_submission: RefusedSubmissionHook | None = None
    """``(task id, body, what is wrong)`` of a ``paidonce.submit`` message that cannot be read; in the same thread.

    Returning acknowledges the message, raising offers it again as above.
    """

    requeue_seconds: float = 2.0
    """How long the first pause before such a message is offered again is; it doubles each time."""

    requeue_tries: int = 6
    """How often a message for a step is offered before it is dropped: the store has the step, and the sweeper sends it
    again. A submission is offered for as long as it takes, once a minute in the end."""

    pinned_settings: Mapping[str, object] = field(default_factory=dict)
    """Celery's settings that a worker rests on (``worker_options``); one that starts with others is refused."""

    is_step: Callable[[str], bool] | None = None
    """Whether a step of that name is held here. ``None``: an app of other tasks, which Celery's own rules hold for."""

    largest_submission_bytes: int = 150 * 1024 * 1024
    """Of the body of a ``paidonce.submit`` message that is read at all."""

    turn_seconds: float = 5.0
    """How long a thread goes on with a run before the next step goes over the broker."""

    local_delivery: LocalDelivery | None = None
    """The way past the broker; set by the consumer. Without one every message goes to the broker."""

    give_away: Callable[[Kept], object] | None = None
    """Called with what a thread was to go on with and could not: others must get it."""

    def on_broker(self, queue: str) -> str:
        """The broker's name of a queue."""
        return broker_queue_name(self.namespace, queue)


def machinery_of(app: Any) -> Machinery:
    """The machinery of a Celery app; one with no hooks is made for an app that was given none."""
    machinery = getattr(app, ATTRIBUTE, None)
    if not isinstance(machinery, Machinery):
        machinery = Machinery()
        setattr(app, ATTRIBUTE, machinery)
    return machinery
