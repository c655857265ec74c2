"""A turn: how long a thread of the pool goes on with a run after the step it was given, without the broker.

    step 1's message -> step 1 -> commit (step 2 is scheduled) -> step 2 in the same thread -> commit -> …

What follows from a commit is a hint to whoever is free, and the thread that has
just committed is: it holds the run's coroutine, so the next step needs neither a
message nor a read of the log, and the commit that schedules it can claim it, too.
It still is a Celery task of its own, with its
request, events, signals and limits (``pool``, ``consumer``); only the way over
the broker is saved.

A turn ends after some seconds (``PAIDONCE_TURN_SECONDS``): then the next step goes
to the broker, where priorities and idle workers have their say. Steps that do
little spend most of their time on the way; a step of many seconds need not spare
a millisecond. The message that began the turn is
acknowledged at its end, so that a process never takes more than it has threads.

Must never be what a step depends on: if the process dies, the store still says
that the step is scheduled, and the sweeper publishes it.
"""

from __future__ import annotations

import contextvars
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from paidonce.publishing import task_name
from paidonce_models.store.claims import Claim
from paidonce_models.store.messages import Message, StepMessage

Settle = Callable[..., object]
J = TypeVar("J")


def settle_nothing(*_: object) -> None:
    """Of a message that is settled elsewhere, or never came from a broker."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """What a thread goes on with, its claim if it has one, and what settles the message that began the turn."""

    message: Message
    claim: Claim | None = None
    acknowledge: Settle = settle_nothing
    reject: Settle = settle_nothing


class Turn(Generic[J]):
    """One thread's work on one message of the broker and on what follows from it. Belongs to that thread."""

    def __init__(self, *, may_take: Callable[[str, str], bool], seconds: float) -> None:
        """``may_take`` says of a queue and a task's name whether the broker could bring it here."""
        self._may_take = may_take
        self._ends_at = time.monotonic() + seconds
        self._kept: Message | None = None
        self._claim: Claim | None = None
        self._settles: tuple[Settle, Settle] = (settle_nothing, settle_nothing)
        self.following: J | None = None
        """The pool's job for what was kept, from its delivery to its start."""

    def may_go_on_with(self, queue: str, task: str) -> bool:
        """Whether the thread may go on with this, once what it does now is done."""
        return self._kept is None and time.monotonic() < self._ends_at and self._may_take(queue, task)

    def keep(self, messages: Sequence[Message]) -> Sequence[Message]:
        """Keep the first message that this thread may go on with; returns the others, which must be published."""
        for place, message in enumerate(messages):
            if self._kept is not None:
                break
            if self.may_go_on_with(message.queue, task_name(message)):
                self._kept = message
                return [*messages[:place], *messages[place + 1 :]]
        return messages

    def keep_claim(self, claim: Claim) -> None:
        """Go on with a step that ``may_go_on_with`` allowed and that is claimed already."""
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
        """The claim with which the step comes, once."""
        claim = self._claim
        if claim is None or (claim.run_id, claim.position) != (run_id, position):
            return None
        self._claim = None
        return claim

    def hold_acknowledgement(self, request: Any) -> None:
        """Where something is kept, the broker's message is not done with yet: its task may end without settling it.

        Celery gives a pool no other way to its request than the callbacks', and a request no other place for what
        settles its message than these two attributes.
        """
        if self._kept is None or request is None or getattr(request, "acknowledged", True):
            return
        self._settles = (request._on_ack, request._on_reject)
        request._on_ack = request._on_reject = settle_nothing

    def take(self) -> Kept | None:
        """What is kept, once; ``None`` where the turn is over. Its claim stays until the step takes it."""
        message, (acknowledge, reject) = self._kept, self._settles
        self._kept, self._settles = None, (settle_nothing, settle_nothing)
        if message is None:
            return None
        return Kept(message=message, claim=self._claim, acknowledge=acknowledge, reject=reject)


current_turn: contextvars.ContextVar[Turn[Any] | None] = contextvars.ContextVar("paidonce_turn", default=None)


def keep_here(messages: Sequence[Message]) -> Sequence[Message]:
    """The messages that the calling thread does not go on with itself."""
    turn = current_turn.get()
    return messages if turn is None else turn.keep(messages)
