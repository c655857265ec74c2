"""``SharedCircuitBreaker``: pybreaker's ``CircuitBreaker`` for a whole fleet.

What differs from pybreaker 1.4.1, each a trap that was measured there: the lock
is not held during the call; a half-open circuit lets ``policy.probes`` through at
a time, in all processes together; ``async def`` is guarded while it runs and not
while its coroutine is made; interrupts and Celery's control exceptions count
neither as success nor as failure; an ignored error does not end a row of
failures; a call's own error comes out also when it trips the circuit; late
outcomes of a former epoch are ignored; listeners hear of a move in the one
process that made it, and in a thread that is nobody's but theirs.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import pybreaker

from paidonce.policies import BreakerPolicy
from paidonce_models.log_texts import failure_of, loggable
from paidonce_workers.breakers.admission import Admission, CircuitChange, change_of
from paidonce_workers.breakers.announcing import Announcer
from paidonce_workers.breakers.circuit import Answer, Verdict
from paidonce_workers.breakers.deciding import BY_HAND_SECONDS, Decided
from paidonce_workers.breakers.guard import Guard
from paidonce_workers.breakers.outcome import Classify, Effect, Outcome, outcome_of
from paidonce_workers.breakers.own_threads import OwnThreads
from paidonce_workers.breakers.probes import ProbesUnderWay
from paidonce_workers.breakers.rules_on_redis import RulesOnRedis
from paidonce_workers.breakers.states import SharedClosedState, SharedHalfOpenState, SharedOpenState, SharedState
from paidonce_workers.breakers.storage import SharedCircuitStorage
from paidonce_workers.breakers.tokens import new_token

log = logging.getLogger(__name__)

T = TypeVar("T")

STATE_OF_VERDICT: dict[Verdict, type[SharedState]] = {
    Verdict.ADMITTED: SharedClosedState,
    Verdict.PROBE: SharedHalfOpenState,
    Verdict.REFUSED: SharedOpenState,
}
STATE_OF_NAME: dict[str, type[SharedState]] = {
    kind.circuit_state.value: kind for kind in (SharedClosedState, SharedHalfOpenState, SharedOpenState)
}


class SharedCircuitBreaker(pybreaker.CircuitBreaker):
    """The breaker of one circuit under one policy, in one process. Safe to use from many threads."""

    def __init__(
        self,
        storage: SharedCircuitStorage,
        policy: BreakerPolicy,
        *,
        classify: Classify,
        threads: OwnThreads,
        probes: ProbesUnderWay,
        announcer: Announcer,
        listeners: Sequence[pybreaker.CircuitBreakerListener] = (),
    ) -> None:
        super().__init__(
            fail_max=policy.consecutive_failures,
            reset_timeout=policy.open_base_seconds,
            success_threshold=policy.probes,
            listeners=listeners,
            state_storage=storage,
            name=storage.name,
            throw_new_error_on_trip=False,
        )
        self.policy = policy
        self.threads = threads
        self.probes = probes
        self._announcer = announcer
        self._storage = storage
        self._classify = classify

    # -- one call, in two halves -------------------------------------------------------

    def admit(self, token: str) -> Admission:
        """Ask for one call; ``token`` is the call's own name and holds its place if it becomes a probe."""
        admission, decided = self._storage.decider.admit(self._storage.name, self.policy, token)
        self.hear(decided)
        return admission

    def report(self, admission: Admission, outcome: Outcome) -> None:
        """Say how an admitted call has ended. Raises nothing."""
        decided = self._storage.decider.report(admission, outcome)
        if decided is not None:
            self.hear(decided)

    def state_for(self, admission: Admission, target: str | None = None) -> SharedState:
        """pybreaker's state object of a call that was admitted or refused."""
        kind = STATE_OF_VERDICT[admission.verdict]
        return kind(self, admission=admission, target=self._storage.name if target is None else target)

    def outcome_of(self, error: BaseException) -> Outcome:
        """What an error of the call does to the circuit."""
        return outcome_of(error, self._classify).unless_ignored(self.policy)

    # -- pybreaker's interface -----------------------------------------------------------

    @property  # type: ignore[override]  # pybreaker names its own three classes
    def state(self) -> SharedState:
        """The circuit as it was at the last call of this process. Never asks Redis."""
        return STATE_OF_NAME[self._storage.state](self)

    @state.setter
    def state(self, state_str: str) -> None:
        raise AttributeError(f"the circuit {self._storage.name} is shared: use open(), close() or half_open()")

    def is_system_error(self, exception: BaseException) -> bool:
        """Whether the error counts as a failure."""
        return self.outcome_of(exception).effect is Effect.FAILURE

    def call(self, func: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call ``func``, or return the coroutine that does. Raises ``CircuitOpen`` if it may not be called."""
        if inspect.iscoroutinefunction(func):
            guarded: Any = self.call_async(func, *args, **kwargs)
            return guarded  # type: ignore[no-any-return]  # a coroutine, as `func` would have returned
        return self.state_for(self.admit(new_token())).call(func, *args, **kwargs)

    async def call_async(self, func: Callable[..., Awaitable[T]], *args: Any, **kwargs: Any) -> T:
        """Await ``func`` under the breaker."""
        async with self.calling():
            return await func(*args, **kwargs)

    def calling(self, target: str | None = None) -> Guard:  # type: ignore[override]  # theirs is a generator's
        """A context manager for ``with`` and ``async with``; ``target`` is what ``CircuitOpen`` names."""
        return Guard(self, target)

    def __call__(self, *call_args: Any, **call_kwargs: Any) -> Callable[..., Any]:
        """Decorate a function, ``async`` or not."""
        if call_kwargs:
            raise TypeError(f"expected a function, found {sorted(call_kwargs)}")
        return self._decorate(*call_args) if call_args else self._decorate

    def open(self, *, for_seconds: float | None = None, reason: str = "opened by hand") -> bool:
        """Open the circuit of the fleet, for a time or until it is closed by hand.

        Raises ``CircuitStoreUnreachable`` and waits until listeners know, as the others that are done by hand.
        Always ``False``: to pybreaker, that a call's own error comes out.
        """
        for_us = None if for_seconds is None else int(for_seconds * 1e6)
        self._by_hand(
            lambda shared: shared.open_by_hand(
                self._storage.name, for_us=for_us, reason=reason, limit_seconds=BY_HAND_SECONDS
            )
        )
        return False

    def close(self, *, reason: str = "closed by hand") -> None:
        """Close the circuit of the fleet; one that is closed is left alone."""
        self._by_hand(
            lambda shared: shared.close_by_hand(self._storage.name, reason=reason, limit_seconds=BY_HAND_SECONDS)
        )

    def half_open(self, *, reason: str = "half-opened by hand") -> None:
        """Let the next call through as a probe."""
        self.open(for_seconds=0, reason=reason)

    def reset(self, *, reason: str = "reset by hand") -> None:
        """Close the circuit of the fleet and forget its counts; calls under way will not be counted."""
        self._by_hand(lambda shared: shared.reset(self._storage.name, reason=reason, limit_seconds=BY_HAND_SECONDS))

    # -- inside --------------------------------------------------------------------------

    def _by_hand(self, act: Callable[[RulesOnRedis], Answer]) -> None:
        self.hear(Decided(self._storage.decider.by_hand(act), is_shared=True))
        self._announcer.wait_until_told(BY_HAND_SECONDS)

    def _decorate(self, func: Callable[..., Any]) -> Callable[..., Any]:
        if inspect.iscoroutinefunction(func):

            @functools.wraps(func)
            async def guarded_async(*args: Any, **kwargs: Any) -> Any:
                return await self.call_async(func, *args, **kwargs)

            return guarded_async

        @functools.wraps(func)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            return self.call(func, *args, **kwargs)

        return guarded

    def _create_new_state(  # type: ignore[override]  # pybreaker names its own three classes
        self, new_state: str, prev_state: pybreaker.CircuitBreakerState | None = None, notify: bool = False
    ) -> SharedState:
        """pybreaker asks for a state object when a breaker is made; nothing is counted or told here."""
        del prev_state, notify
        return STATE_OF_NAME[new_state](self)

    def hear(self, decided: Decided) -> None:
        """Remember how the circuit stands, and have listeners told of a move that this request made."""
        self._storage.last = decided.answer
        change = change_of(decided.answer, self._storage.name, is_shared=decided.is_shared)
        if change is not None:
            self._announcer.tell(functools.partial(self._tell, change))

    def _tell(self, change: CircuitChange) -> None:
        before = STATE_OF_NAME[change.source.value](self)
        after = STATE_OF_NAME[change.target.value](self, change=change)
        for listener in self.listeners:
            try:
                listener.state_change(self, before, after)
            except Exception as error:  # noqa: BLE001 - told by type and place
                log.error(
                    "a listener of circuit %s failed: %s",
                    loggable(str(self.name)),
                    failure_of(error),
                    extra={"event": "breaker_listener_failed"},
                )
