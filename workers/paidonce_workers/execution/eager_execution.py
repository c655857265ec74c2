"""Eager execution: a pool thread continues a run after the step that it was given, without the broker.

    step 1's message -> step 1 -> commit (step 2 is scheduled) -> step 2 in the same thread -> commit -> …

The messages that follow a commit are hints for whoever is free, and the thread that has
just committed is: it holds the run's coroutine, so the next step needs neither a
message nor a read of the event history, and the commit that schedules it can also claim
it. It still is a separate Celery task, with its request, events, signals and limits
(``pools.thread_pool``, ``delivery.consumer``); only the way through the broker is saved.

It ends after some seconds (``PAIDONCE_TURN_SECONDS``): then the next step goes to
the broker, where priorities and idle workers count. Short steps spend most of their
time on that way; a step of many seconds need not save a millisecond. The broker's
message that started it is acknowledged at its end, so that a process never takes
more messages than it has threads.

No step may depend on it: if the process dies, the step is still scheduled in the
store, and the sweeper publishes it.
"""

from __future__ import annotations

import contextvars
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from paidonce.broker.publisher import task_name
from paidonce_models.store.messages import Message, StepMessage
from paidonce_models.store.steps.claims import Claim

Settle = Callable[..., object]
J = TypeVar("J")


def settle_nothing(*_: object) -> None:
    """For a message that is settled elsewhere, or never came from a broker."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EagerMessage:
    """The message that a thread executes next, its claim if it has one, and what settles the broker's message."""

    message: Message
    claim: Claim | None = None
    acknowledge: Settle = settle_nothing
    reject: Settle = settle_nothing


class EagerExecution(Generic[J]):
    """One thread's work on one message of the broker and on what follows. Belongs to that thread."""

    def __init__(self, *, may_take: Callable[[str, str], bool], seconds: float) -> None:
        """``may_take(queue, task)``: whether the broker could deliver such a task to this worker."""
        self._may_take = may_take
        self._ends_at = time.monotonic() + seconds
        self._kept: Message | None = None
        self._claim: Claim | None = None
        self._settles: tuple[Settle, Settle] = (settle_nothing, settle_nothing)
        self.following: J | None = None
        """The pool's job for the kept message, from its delivery to its start."""

    def may_go_on_with(self, queue: str, task: str) -> bool:
        """Whether the thread may execute this after its current task."""
        return self._kept is None and time.monotonic() < self._ends_at and self._may_take(queue, task)

    def keep(self, messages: Sequence[Message]) -> Sequence[Message]:
        """Keep the first message that this thread may execute; returns the others, which must be published."""
        for place, message in enumerate(messages):
            if self._kept is not None:
                break
            if self.may_go_on_with(message.queue, task_name(message)):
                self._kept = message
                return [*messages[:place], *messages[place + 1 :]]
        return messages

    def keep_claim(self, claim: Claim) -> None:
        """Keep a step that ``may_go_on_with`` allowed and that is already claimed."""
        self._claim = claim
        self._kept = StepMessage(
            run_id=claim.run_id,
            position=claim.position,
            name=claim.name,
            agent=claim.agent,
            queue=claim.queue,
            priority=claim.priority,
        )

    def take_claim(self, run_id: str, position: int) -> Claim | None:
        """The claim that the step comes with; may be called once."""
        claim = self._claim
        if claim is None or (claim.run_id, claim.position) != (run_id, position):
            return None
        self._claim = None
        return claim

    def hold_acknowledgement(self, request: Any) -> None:
        """If something is kept, the broker's message is not finished: let its task end without settling it.

        The callbacks are a pool's only way to Celery's request, and these two attributes are the only place where the
        request holds what settles its message.
        """
        if self._kept is None or request is None or getattr(request, "acknowledged", True):
            return
        self._settles = (request._on_ack, request._on_reject)
        request._on_ack = request._on_reject = settle_nothing

    def take(self) -> EagerMessage | None:
        """The kept message, once; ``None`` if eager execution is over. Its claim stays until the step takes it."""
        message, (acknowledge, reject) = self._kept, self._settles
        self._kept, self._settles = None, (settle_nothing, settle_nothing)
        if message is None:
            return None
        return EagerMessage(message=message, claim=self._claim, acknowledge=acknowledge, reject=reject)


current_eager_execution: contextvars.ContextVar[EagerExecution[Any] | None] = contextvars.ContextVar(
    "paidonce_eager_execution", default=None
)


def left_to_publish(messages: Sequence[Message]) -> Sequence[Message]:
    """The messages that the calling thread does not execute itself."""
    eager = current_eager_execution.get()
    return messages if eager is None else eager.keep(messages)
