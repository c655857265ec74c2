"""``CircuitBreakers``: what workers and commands know of the breakers.

Wires the parts of this package, anew in each forked process: connections,
threads and what a process counts by itself are its own. A tool step asks
``admit`` before its attempt and ``report``s after it; an inline call runs under
``guard``; the heartbeat calls ``renew``; whoever records moves ``subscribe``s.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from typing import Self

import pybreaker

from paidonce.broker_urls import redis_url
from paidonce.policies import BreakerPolicy, RetryBudgetPolicy
from paidonce.settings import Settings
from paidonce_models.log_texts import failure_of, loggable
from paidonce_workers.breakers.admission import Admission, CircuitChange, CircuitStatus
from paidonce_workers.breakers.announcing import Announcer
from paidonce_workers.breakers.breaker import SharedCircuitBreaker
from paidonce_workers.breakers.connecting import connection_maker, shown
from paidonce_workers.breakers.deciding import Decider
from paidonce_workers.breakers.guard import Guard
from paidonce_workers.breakers.link import Link
from paidonce_workers.breakers.outcome import Classify, Outcome
from paidonce_workers.breakers.own_threads import OwnThreads, ThreadStarter
from paidonce_workers.breakers.probes import ProbesUnderWay
from paidonce_workers.breakers.retry_budgets import RetryBudgets
from paidonce_workers.breakers.rules_in_process import RulesInProcess
from paidonce_workers.breakers.rules_on_redis import RulesOnRedis, checker
from paidonce_workers.breakers.states import SharedState
from paidonce_workers.breakers.storage import SharedCircuitStorage

log = logging.getLogger(__name__)

SETTING = "PAIDONCE_REDIS_URL"
ANY_POLICY = BreakerPolicy()
"""For what is done by hand, where no rule is applied."""

Listener = Callable[[CircuitChange], None]


class CircuitBreakers:
    """All circuits and retry budgets of a namespace. Safe to use from many threads and after a fork."""

    def __init__(
        self,
        url: str | None,
        *,
        namespace: str,
        classify: Classify,
        probe_seconds: float = 10.0,
        setting: str = SETTING,
    ) -> None:
        """``url`` in kombu's spelling, ``None`` if there is no Redis; ``setting`` says in logs where it came from.

        A probe that is not renewed for ``probe_seconds`` has lost its place. Opens no connection. Raises
        ``ConfigurationError`` if the address cannot be read.
        """
        self._make = None if url is None else connection_maker(url, setting)
        self._address = "" if url is None else shown(url)
        self._setting = setting
        self._namespace = namespace
        self._classify = classify
        self._probe_seconds = probe_seconds
        self._listeners: list[Listener] = []
        self._made: dict[int, _Parts] = {}

    @classmethod
    def of(cls, settings: Settings, classify: Classify) -> Self:
        """As the settings say. Starts the embedded Valkey where neither a Redis nor a broker is configured."""
        setting = SETTING if settings.redis_url is not None else f"the broker's, because {SETTING} is not set"
        return cls(
            redis_url(settings),
            namespace=settings.namespace,
            classify=classify,
            probe_seconds=settings.lease_seconds,
            setting=setting,
        )

    # -- calls -----------------------------------------------------------------------

    def admit(self, circuit: str, policy: BreakerPolicy, *, token: str) -> Admission:
        """Ask for one call before it is made. ``token`` names the attempt; give it to ``renew`` while it lasts.

        Raises nothing and takes at most 0.35 s, whatever Redis does. What is admitted must be reported.
        """
        parts = self._here()
        admission = parts.breaker(circuit, policy).admit(token)
        if admission.is_probe:
            parts.probes.begin(token, circuit, owner=None)
        return admission

    def report(self, admission: Admission, outcome: Outcome) -> None:
        """Say how an admitted call has ended: ``SUCCESS``, ``NEUTRAL`` or ``failure(kinds, retry_after_seconds)``.

        Raises nothing; with ``admit`` it takes at most 0.4 s, whatever Redis does.
        """
        parts = self._here()
        parts.probes.end(admission.token)
        parts.breaker(admission.circuit, admission.policy).report(admission, outcome)

    def guard(self, circuit: str, policy: BreakerPolicy, *, target: str | None = None) -> Guard:
        """One inline call, under ``with`` or ``async with``. Raises ``CircuitOpen`` if it may not be made.

        ``target`` is what the error names; the circuit if it is not given.
        """
        return self.breaker(circuit, policy).calling(target)

    def breaker(self, circuit: str, policy: BreakerPolicy) -> SharedCircuitBreaker:
        """pybreaker's view of a circuit, for ``call``, decorating, and listeners of one's own."""
        return self._here().breaker(circuit, policy)

    def renew(self, tokens: Iterable[str] = ()) -> None:
        """With each heartbeat: probes of these tokens and of all inline calls hold their places for longer.

        Also brings the calls that were counted for retry budgets. Raises nothing.
        """
        parts = self._here()
        for circuit, held in parts.probes.to_renew(tokens).items():
            parts.decider.renew(circuit, held)
        parts.budgets.deposit()

    # -- retries ---------------------------------------------------------------------

    def count_call(self, target: str, budget: RetryBudgetPolicy) -> None:
        """A call of the target that is no retry: it brings ``ratio`` of a token. Costs no round trip."""
        self._here().budgets.count_call(target, budget)

    def retry_allowed(self, target: str, budget: RetryBudgetPolicy) -> float:
        """How many seconds a retry is to be put off; 0: now. Ask once for each retry: the answer is its place."""
        return self._here().budgets.put_off_seconds(target, budget)

    # -- people ----------------------------------------------------------------------

    def states(self) -> tuple[CircuitStatus, ...]:
        """All circuits that Redis remembers, by name. Raises ``CircuitStoreUnreachable``."""
        return self._here().decider.statuses()

    def force_open(self, circuit: str, for_seconds: float | None = None, *, reason: str = "opened by hand") -> None:
        """Open a circuit, for a time or until it is closed by hand. Raises ``CircuitStoreUnreachable``."""
        self.breaker(circuit, ANY_POLICY).open(for_seconds=for_seconds, reason=reason)

    def force_close(self, circuit: str, *, reason: str = "closed by hand") -> None:
        """Close a circuit; one that is closed is left alone. Raises ``CircuitStoreUnreachable``."""
        self.breaker(circuit, ANY_POLICY).close(reason=reason)

    def reset(self, circuit: str, *, reason: str = "reset by hand") -> None:
        """Close a circuit and forget its counts. Raises ``CircuitStoreUnreachable``."""
        self.breaker(circuit, ANY_POLICY).reset(reason=reason)

    def subscribe(self, listener: Listener) -> None:
        """Be told of each move that a request of this process made, one after the other, in a thread for that alone.

        What a listener raises is logged and goes no further. One that is slow delays the others, and nobody else;
        what is done by hand waits for it for two seconds.
        """
        self._listeners.append(listener)

    def start(self) -> None:
        """Begin the threads that everything else needs; without this, the first call does. Raises nothing.

        Ask for it in a thread that is not interrupted: see ``ThreadStarter``.
        """
        self._here().start()

    def close(self) -> None:
        """Tell listeners what is waiting, for two seconds at most, close connections and end this process's threads."""
        parts = self._made.pop(os.getpid(), None)
        if parts is not None:
            parts.close()

    # -- inside ----------------------------------------------------------------------

    def _here(self) -> _Parts:
        """This process's parts. No lock: one that a thread of the parent held would stay locked in a child."""
        pid = os.getpid()
        parts = self._made.get(pid)
        return parts if parts is not None else self._made.setdefault(pid, self._make_parts())

    def _make_parts(self) -> _Parts:
        starter = ThreadStarter()
        # Two, so that the log says that Redis is away also while a listener waits for a store that is away as well.
        announcer = Announcer("paidonce-breakers-announce", starter.begin)
        logger = Announcer("paidonce-breakers-log", starter.begin)
        alone = RulesInProcess()
        link: Link | None = None
        shared: RulesOnRedis | None = None
        if self._make is not None:
            link = Link(
                make=self._make,
                check=checker(self._namespace),
                address=self._address,
                setting=self._setting,
                tell=logger.tell,
                begin=starter.begin,
            )
            shared = RulesOnRedis(link, self._namespace)
        decider = Decider(shared, link, alone, probe_seconds=self._probe_seconds, tell=logger.tell)
        return _Parts(link, decider, self._classify, starter, announcer, logger, _Subscribers(self._listeners))


class _Parts:
    """What one process has."""

    def __init__(
        self,
        link: Link | None,
        decider: Decider,
        classify: Classify,
        starter: ThreadStarter,
        announcer: Announcer,
        logger: Announcer,
        subscribers: pybreaker.CircuitBreakerListener,
    ) -> None:
        self.announcer = announcer
        self._logger = logger
        self.decider = decider
        self.probes = ProbesUnderWay()
        self.budgets = RetryBudgets(decider)
        self._link = link
        self._starter = starter
        self._threads = OwnThreads(starter.begin)
        self._classify = classify
        self._subscribers = subscribers
        self._storages: dict[str, SharedCircuitStorage] = {}
        self._breakers: dict[tuple[str, BreakerPolicy], SharedCircuitBreaker] = {}

    def breaker(self, circuit: str, policy: BreakerPolicy) -> SharedCircuitBreaker:
        """The one of this circuit under this policy. Two threads may make it at once: one of theirs is kept."""
        found = self._breakers.get((circuit, policy))
        if found is not None:
            return found
        storage = self._storages.setdefault(circuit, SharedCircuitStorage(circuit, self.decider))
        made = SharedCircuitBreaker(
            storage,
            policy,
            classify=self._classify,
            threads=self._threads,
            probes=self.probes,
            announcer=self.announcer,
            listeners=[self._subscribers],
        )
        return self._breakers.setdefault((circuit, policy), made)

    def start(self) -> None:
        """The threads that begin others and that tell listeners."""
        self._starter.start()
        self.announcer.start()

    def close(self) -> None:
        """Threads first: they use the connections, and what they do may be news."""
        self._threads.close()
        self.announcer.close()
        if self._link is not None:
            self._link.close()
        self._logger.close()
        self._starter.close()


class _Subscribers(pybreaker.CircuitBreakerListener):
    """Hands moves on to those who subscribed, and to the log."""

    def __init__(self, listeners: list[Listener]) -> None:
        self._listeners = listeners

    def state_change(
        self,
        cb: pybreaker.CircuitBreaker,
        old_state: pybreaker.CircuitBreakerState | None,
        new_state: pybreaker.CircuitBreakerState,
    ) -> None:
        """pybreaker's hook."""
        change = new_state.change if isinstance(new_state, SharedState) else None
        if change is None:
            return
        log.info(
            "circuit %s is %s, it was %s: %s%s",
            change.circuit,
            change.target.value,
            change.source.value,
            change.reason,
            "" if change.is_shared else " (in this process only)",
            extra={"event": "circuit_changed", "circuit": change.circuit, "state": change.target.value},
        )
        for listener in self._listeners:
            try:
                listener(change)
            except Exception as error:  # noqa: BLE001 - told by type and place
                log.error(
                    "a listener of circuit %s failed: %s",
                    loggable(change.circuit),
                    failure_of(error),
                    extra={"event": "breaker_listener_failed"},
                )
