"""``MessagePublisher``: the protocol (interface) of whatever publishes messages after a commit.

In a worker that is ``publisher.Publisher``, which sends to the broker; in the test kit a list.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from paidonce_models.store.messages import Message


class MessagePublisher(Protocol):
    """A message is a hint: one that is not sent loses nothing, because the sweeper repeats it."""

    def publish(self, messages: Sequence[Message]) -> int:
        """Send what can be sent; returns how many were. Never raises."""
        raise NotImplementedError

    def depth(self, queues: Iterable[str]) -> Mapping[str, int]:
        """How many messages wait in each queue; a queue of unknown depth is left out."""
        raise NotImplementedError
