"""``CircuitBreakers``: the interface of the breakers for workers and commands.

When a circuit opens, half-opens or closes is decided by ``circuit.lua`` on Redis, which ``circuit_scripts`` calls;
while Redis is away, by ``without_redis``. ``circuit_decisions`` chooses between the two. Nothing here decides.

A tool step calls ``admit`` before its attempt and ``report`` after it; an inline call runs under ``guard``; the
heartbeat calls ``renew``; ``subscribe`` registers a listener that records state changes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Final, Self, TypeVar

from paidonce.broker.broker_urls import redis_url
from paidonce.policies import BreakerPolicy, RetryBudgetPolicy
from paidonce.settings import Settings
from paidonce_models.errors import CircuitStoreUnreachable
from paidonce_workers.bodies.interrupt import interrupts_deferred
from paidonce_workers.breakers.circuit_decisions import SETTING, Decider
from paidonce_workers.breakers.circuit_scripts import CircuitScripts
from paidonce_workers.breakers.circuit_state import Answer, CircuitStatus
from paidonce_workers.breakers.guard import Guard
from paidonce_workers.breakers.outcome import Classify
from paidonce_workers.breakers.redis_link import StoreAway
from paidonce_workers.breakers.retry_budgets import RetryBudgets

T = TypeVar("T")

BY_HAND_SECONDS: Final = 2.0
"""For commands of a person, who can wait longer than a call."""


class CircuitBreakers(Decider):
    """All circuits and retry budgets of a namespace. Thread-safe and fork-safe."""

    def _begin_empty(self) -> None:
        super()._begin_empty()
        self._budgets = RetryBudgets(self._retry_put_off, self._clock)

    @classmethod
    def of(cls, settings: Settings, classify: Classify) -> Self:
        """Create it from the settings. Starts the embedded Valkey where neither a Redis nor a broker is configured."""
        setting = SETTING if settings.redis_url is not None else f"the broker's, because {SETTING} is not set"
        return cls(
            redis_url(settings),
            namespace=settings.namespace,
            classify=classify,
            probe_seconds=settings.lease_seconds,
            setting=setting,
        )

    def guard(self, circuit: str, policy: BreakerPolicy, *, target: str | None = None) -> Guard:
        """Wrap one inline call, with ``with`` or ``async with``. Raises ``CircuitOpen`` if the circuit refuses it.

        ``target`` is the name in the error; the circuit's name by default.
        """
        return Guard(self, circuit, policy, circuit if target is None else target)

    @interrupts_deferred
    def renew(self, tokens: Iterable[str] = ()) -> None:
        """Call with each heartbeat. Also deposits the calls counted for retry budgets. Never raises."""
        super().renew(tokens)
        self._budgets.deposit()

    # -- retries ---------------------------------------------------------------------

    @interrupts_deferred
    def count_call(self, target: str, budget: RetryBudgetPolicy) -> None:
        """Count a call of the target that is no retry: it deposits ``ratio`` of a token. Costs no round trip."""
        self._budgets.count_call(target, budget)

    @interrupts_deferred
    def retry_allowed(self, target: str, budget: RetryBudgetPolicy) -> float:
        """How many seconds to delay a retry, 0 for none. Call once per retry: the call takes the token."""
        return self._budgets.put_off_seconds(target, budget)

    # -- people ----------------------------------------------------------------------

    def states(self) -> tuple[CircuitStatus, ...]:
        """All circuits that Redis remembers, by name. Raises ``CircuitStoreUnreachable``."""
        if self._is_the_fleet:
            return tuple(alone.status(name) for name, alone in sorted(self._alone.items()))

        def look(shared: CircuitScripts) -> list[CircuitStatus | None]:
            names = sorted(set(shared.names(limit_seconds=BY_HAND_SECONDS)))
            return [shared.status(name, limit_seconds=BY_HAND_SECONDS) for name in names]

        return tuple(status for status in self._by_hand(look) if status is not None)

    def force_open(self, circuit: str, for_seconds: float | None = None, *, reason: str = "opened by hand") -> None:
        """Open a circuit, for some seconds or until someone closes it. Raises ``CircuitStoreUnreachable``."""
        for_us = None if for_seconds is None else int(for_seconds * 1e6)
        self._move_by_hand(
            circuit,
            lambda shared: shared.open_by_hand(circuit, for_us=for_us, reason=reason, limit_seconds=BY_HAND_SECONDS),
        )

    def force_close(self, circuit: str, *, reason: str = "closed by hand") -> None:
        """Close a circuit; does nothing if it is closed. Raises ``CircuitStoreUnreachable``."""
        self._move_by_hand(
            circuit, lambda shared: shared.close_by_hand(circuit, reason=reason, limit_seconds=BY_HAND_SECONDS)
        )

    def reset(self, circuit: str, *, reason: str = "reset by hand") -> None:
        """Close a circuit and drop its counts; calls in flight will not count. Raises ``CircuitStoreUnreachable``."""
        self._move_by_hand(circuit, lambda shared: shared.reset(circuit, reason=reason, limit_seconds=BY_HAND_SECONDS))

    # -- inside ----------------------------------------------------------------------

    def _move_by_hand(self, circuit: str, act: Callable[[CircuitScripts], Answer]) -> None:
        """Move a circuit for the whole fleet, and wait until listeners know. Raises ``CircuitStoreUnreachable``."""
        began = time.monotonic()
        self._hear(circuit, self._by_hand(act), is_shared=True, at_seconds=began)
        self._announcer.wait_until_told(BY_HAND_SECONDS)

    def _by_hand(self, act: Callable[[CircuitScripts], T]) -> T:
        """Run a command on Redis: it takes effect for the whole fleet or not at all."""
        if self._shared is None or self._link is None:
            raise CircuitStoreUnreachable(
                "no Redis is configured, so circuits are not shared and cannot be seen or moved from here; set "
                "PAIDONCE_REDIS_URL"
            )
        try:
            return act(self._shared)
        except StoreAway as error:
            raise CircuitStoreUnreachable(
                f"the Redis at {self._link.address} that shares circuits does not respond ({error}); check "
                "PAIDONCE_REDIS_URL. Nothing was changed"
            ) from None
