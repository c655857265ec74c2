"""The layer between an attempt's body and what it calls: inline tools and requests to providers.

The workers act on policies, and imports point from there to here: around each body, a worker sets this context variable
to its implementation. It follows ``async`` code, ``asyncio.to_thread`` and the threads that a step starts. Without it,
for example in unit tests, calls are made directly.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class GuardedRequest(Protocol):
    """One request to a provider with a watched circuit."""

    def begin(self) -> None:
        """Call before sending. Raises ``CircuitOpen`` if it may not be sent."""

    async def begin_async(self) -> None:
        """The same from an event loop."""

    def answered(self, status: int, headers: Mapping[str, str]) -> None:
        """The response's head has arrived."""

    def failed(self, error: BaseException) -> None:
        """There was no response."""


class AttemptPolicies(Protocol):
    """The policies of one running attempt."""

    def call(self, declaration: Any, body: Callable[[], T]) -> T:
        """Call a tool inline, in the calling thread. Raises what the tool raises, or ``CircuitOpen``."""

    async def call_async(self, declaration: Any, body: Callable[[], Awaitable[T]]) -> T:
        """Await a tool inline. Raises as above."""

    def request(self, provider: str) -> GuardedRequest | None:
        """A request to a provider is about to be sent; ``None`` if its circuit is not watched."""


attempt_policies: ContextVar[AttemptPolicies | None] = ContextVar("paidonce_attempt_policies", default=None)


@contextmanager
def under_policies(policies: AttemptPolicies | None) -> Iterator[None]:
    """Assign the block's inline tools and provider requests to this attempt."""
    token = attempt_policies.set(policies)
    try:
        yield
    finally:
        attempt_policies.reset(token)
