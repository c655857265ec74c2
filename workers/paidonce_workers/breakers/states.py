"""pybreaker's states, one object for each call: it carries the epoch and the token that the call was admitted with.

pybreaker keeps one state object for each breaker and guards the whole call with
the breaker's lock. A state of its own for each call needs no lock, and a late
outcome still knows to which epoch it belongs.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import pybreaker

from paidonce_models.errors import CircuitOpen
from paidonce_workers.breakers.admission import Admission, CircuitChange
from paidonce_workers.breakers.circuit import CircuitState
from paidonce_workers.breakers.outcome import NEUTRAL, SUCCESS, Effect

if TYPE_CHECKING:
    from paidonce_workers.breakers.breaker import SharedCircuitBreaker

T = TypeVar("T")


class SharedState(pybreaker.CircuitBreakerState):
    """A circuit as one call found it. Also stands for a move: then it has a ``change`` and no admission."""

    circuit_state: CircuitState

    def __init__(
        self,
        breaker: SharedCircuitBreaker,
        *,
        admission: Admission | None = None,
        target: str = "",
        change: CircuitChange | None = None,
    ) -> None:
        super().__init__(breaker, self.circuit_state.value)
        self.breaker = breaker
        self.admission = admission
        self.target = target
        self.change = change

    @property
    def is_probe(self) -> bool:
        """Whether this call holds the place of a probe."""
        return self.admission is not None and self.admission.is_probe

    def call(self, func: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """pybreaker's way of making the call; a probe holds its place meanwhile."""
        admission = self.admission
        if admission is None or not admission.is_probe:
            return super().call(func, *args, **kwargs)
        try:
            self.breaker.probes.begin(admission.token, admission.circuit, owner=self)
            return super().call(func, *args, **kwargs)
        finally:
            self.breaker.probes.end(admission.token)

    def begin(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Before the call. Raises ``CircuitOpen`` if it may not be made."""
        self.before_call(func, *args, **kwargs)
        for listener in self.breaker.listeners:
            listener.before_call(self.breaker, func, *args, **kwargs)

    def end(self, error: BaseException | None) -> None:
        """After the call, with what it raised."""
        if error is None:
            self._handle_success()
        else:
            self._handle_error(error, reraise=False)

    def give_up(self) -> None:
        """The call was admitted and will not be made."""
        self._report(NEUTRAL)

    def _handle_success(self) -> None:
        self._report(SUCCESS)
        self.on_success()
        for listener in self.breaker.listeners:
            listener.success(self.breaker)

    # pybreaker declares two overloads that say whether it returns; a caller of ours has no use for them.
    def _handle_error(self, exc: BaseException, reraise: bool = True) -> None:  # type: ignore[override]
        outcome = self.breaker.outcome_of(exc)
        self._report(outcome)
        if outcome.effect is Effect.FAILURE:
            for listener in self.breaker.listeners:
                listener.failure(self.breaker, exc)
            self.on_failure(exc)
        if reraise:
            raise exc

    def generator_call(self, wrapped_generator: Generator[Any, Any, Any]) -> NoReturn:
        """A generator may be left unfinished or never be begun, and then nobody would hear how it ended."""
        self.give_up()
        wrapped_generator.close()
        raise TypeError(
            f"circuit {self.breaker.name}: a generator cannot be guarded; guard the code that iterates over it"
        )

    def _report(self, outcome: Any) -> None:
        if self.admission is not None:
            self.breaker.report(self.admission, outcome)


class SharedClosedState(SharedState):
    """Calls are made."""

    circuit_state = CircuitState.CLOSED


class SharedHalfOpenState(SharedState):
    """This call is a probe."""

    circuit_state = CircuitState.HALF_OPEN


class SharedOpenState(SharedState):
    """This call is not made: the circuit is open, or half-open with its probes under way."""

    circuit_state = CircuitState.OPEN

    def before_call(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> NoReturn:
        """Raise ``CircuitOpen``."""
        del func, args, kwargs
        admission = self.admission
        raise CircuitOpen.of(
            self.target,
            since=None if admission is None else admission.since,
            retry_at=None if admission is None else admission.retry_at,
            reason="opened by hand" if admission is None else admission.reason,
        )
