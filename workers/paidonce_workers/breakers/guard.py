"""``Guard``: one inline call under its circuit, as a context manager for ``with`` and for ``async with``.

``async with`` asks Redis from a thread, so that the event loop never waits for
it. A cancellation that strikes while it asks gives the place of a probe back.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from types import TracebackType
from typing import TYPE_CHECKING, Self

from paidonce_workers.breakers.admission import Admission
from paidonce_workers.breakers.outcome import NEUTRAL, Effect
from paidonce_workers.breakers.states import SharedState
from paidonce_workers.breakers.tokens import new_token

if TYPE_CHECKING:
    from paidonce_workers.breakers.breaker import SharedCircuitBreaker


class Guard:
    """For one call; make another one for the next."""

    def __init__(self, breaker: SharedCircuitBreaker, target: str | None = None) -> None:
        self._breaker = breaker
        self._target = target
        self._token = new_token()
        self._state: SharedState | None = None

    def __enter__(self) -> Self:
        """Raises ``CircuitOpen`` if the call may not be made. Waits for Redis in this thread."""
        self._begin(self._breaker.admit(self._token))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Report how it went."""
        self._take_state().end(error)

    async def __aenter__(self) -> Self:
        """Raises ``CircuitOpen`` if the call may not be made."""
        asking = self._breaker.threads.submit(self._breaker.admit, self._token)
        try:
            admission = await asyncio.wrap_future(asking)
        except BaseException:
            asking.add_done_callback(self._give_up)
            raise
        self._begin(admission)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Report how it went, even if the task is cancelled meanwhile."""
        state = self._take_state()
        if error is not None and not state.is_probe and self._breaker.outcome_of(error).effect is Effect.NEUTRAL:
            state.end(error)  # nobody is told of it
            return
        reporting = self._breaker.threads.submit(state.end, error)
        if not isinstance(error, GeneratorExit):  # a coroutine that is being closed may not wait
            await asyncio.shield(asyncio.wrap_future(reporting))

    def _begin(self, admission: Admission) -> None:
        if self._state is not None:
            raise RuntimeError(f"circuit {admission.circuit}: a guard is for one call; make another one for the next")
        state = self._breaker.state_for(admission, self._target)
        state.begin(_the_block)
        self._state = state
        if admission.is_probe:
            self._breaker.probes.begin(self._token, admission.circuit, owner=self)

    def _take_state(self) -> SharedState:
        self._breaker.probes.end(self._token)
        state, self._state = self._state, None
        if state is None:
            raise RuntimeError("the guard was not entered")
        return state

    def _give_up(self, asking: Future[Admission]) -> None:
        """The task was cancelled while it asked: a place that it got is for the next one."""
        if asking.cancelled() or asking.exception() is not None:
            return
        admission = asking.result()
        if admission.is_probe:
            self._breaker.threads.submit(self._breaker.report, admission, NEUTRAL)


def _the_block() -> None:
    """What pybreaker's listeners are told will be called: the block under ``with``."""
