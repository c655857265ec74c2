"""What stands between an attempt's body and what it calls: inline tools and requests to providers.

Policies are acted on by the workers, and imports point from there to here: around each body a worker puts its way of
calling into this context variable. It follows ``async`` code, ``asyncio.to_thread`` and the threads that a step
starts. Without it, in unit tests say, calls are made plainly.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class GuardedRequest(Protocol):
    """One request to a provider whose circuit is watched."""

    def begin(self) -> None:
        """Before it is sent. Raises ``CircuitOpen`` if it may not be."""

    async def begin_async(self) -> None:
        """The same from an event loop."""

    def answered(self, status: int, headers: Mapping[str, str]) -> None:
        """The answer's head is here."""

    def failed(self, error: BaseException) -> None:
        """There was no answer."""


class AttemptPolicies(Protocol):
    """The policies of one attempt under way."""

    def call(self, declaration: Any, body: Callable[[], T]) -> T:
        """Call a tool inline, in the calling thread. Raises what the tool raises, or ``CircuitOpen``."""

    async def call_async(self, declaration: Any, body: Callable[[], Awaitable[T]]) -> T:
        """Await a tool inline. Raises as above."""

    def request(self, provider: str) -> GuardedRequest | None:
        """A request to a provider is about to be sent; ``None`` where nobody watches its circuit."""


attempt_policies: ContextVar[AttemptPolicies | None] = ContextVar("paidonce_attempt_policies", default=None)


@contextmanager
def under_policies(policies: AttemptPolicies | None) -> Iterator[None]:
    """Inline tools and provider requests of the block belong to this attempt."""
    token = attempt_policies.set(policies)
    try:
        yield
    finally:
        attempt_policies.reset(token)
