"""Who decides about a call: Redis for the whole fleet, or this process alone while Redis is away.

Owns that choice and the time limit behind it: asking and reporting together take
``LIMIT_SECONDS`` of a call at most. A circuit that Redis last knew as open is
open for this process too when Redis goes away; everything else begins closed.
What this process has counted by itself about a circuit is forgotten when Redis
answers about it again.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, TypeVar

from paidonce.policies import BreakerPolicy, RetryBudgetPolicy
from paidonce_models.errors import CircuitStoreUnreachable
from paidonce_workers.breakers.admission import Admission, CircuitStatus, admission_of, status_of
from paidonce_workers.breakers.circuit import Answer, CircuitState, Standing, Verdict
from paidonce_workers.breakers.link import Link, StoreAway
from paidonce_workers.breakers.outcome import Effect, Outcome
from paidonce_workers.breakers.rules_in_process import RulesInProcess
from paidonce_workers.breakers.rules_on_redis import RulesOnRedis

T = TypeVar("T")

log = logging.getLogger(__name__)

LIMIT_SECONDS: Final = 0.35
"""Of the half second that is promised; the rest is for a busy machine to notice that the time is over."""
LEAST_REPORT_SECONDS: Final = 0.05
BY_HAND_SECONDS: Final = 2.0
"""A person waits for longer than a call."""
STORE_IS_AWAY: Final = "the Redis of circuits is away, and the policy lets nothing through without it"
NO_STORE: Final = "no Redis is configured for circuits, and the policy lets nothing through without one"


@dataclass(frozen=True, slots=True)
class LastSeen:
    """A circuit that was not closed when Redis last answered about it."""

    answer: Answer
    at_seconds: float
    """On the process's monotonic clock."""


@dataclass(frozen=True, slots=True)
class Decided:
    """An answer, and whether it is the whole fleet's."""

    answer: Answer
    is_shared: bool


class Decider:
    """Decides for one process. Safe to use from many threads."""

    def __init__(
        self,
        shared: RulesOnRedis | None,
        link: Link | None,
        alone: RulesInProcess,
        *,
        probe_seconds: float,
        tell: Callable[[Callable[[], None]], None],
        chance: Callable[[], float] = random.random,
    ) -> None:
        """Without ``shared`` and its ``link`` the process always decides alone; ``tell`` has something said soon."""
        self._shared = shared
        self._link = link
        self._alone = alone
        self._probe_us = int(probe_seconds * 1e6)
        self._tell = tell
        self._chance = chance
        self._seen: dict[str, LastSeen] = {}
        self._said_that_nothing_is_shared = False

    # -- a call ----------------------------------------------------------------------

    def admit(self, circuit: str, policy: BreakerPolicy, token: str) -> tuple[Admission, Decided]:
        """Ask for one call."""
        began = time.monotonic()
        answer = self._try(
            lambda shared: shared.admit(
                circuit, policy, token=token, token_us=self._probe_us, limit_seconds=LIMIT_SECONDS
            )
        )
        spent_seconds = time.monotonic() - began
        is_shared = answer is not None
        if answer is not None:
            self._remember(circuit, answer)
        elif policy.when_store_down == "refuse":
            answer = self._refused()
        else:
            self._go_on_alone(circuit)
            answer = self._alone.admit(circuit, policy, token=token, token_us=self._probe_us)
        admission = admission_of(answer, circuit, policy, token, is_shared=is_shared, spent_seconds=spent_seconds)
        return admission, Decided(answer, is_shared)

    def report(self, admission: Admission, outcome: Outcome) -> Decided | None:
        """Say how an admitted call has ended; ``None`` if nobody had to be told, or could be."""
        outcome = outcome.unless_ignored(admission.policy)
        if not admission.is_admitted or (outcome.effect is Effect.NEUTRAL and not admission.is_probe):
            return None
        if not admission.is_shared:
            return Decided(self._report_alone(admission, admission.epoch, outcome), is_shared=False)
        limit_seconds = max(LEAST_REPORT_SECONDS, LIMIT_SECONDS - admission.spent_seconds)
        answer = self._try(
            lambda shared: shared.report(
                admission.circuit,
                admission.policy,
                epoch=admission.epoch,
                token=admission.token,
                outcome=outcome,
                chance=self._chance(),
                limit_seconds=limit_seconds,
            )
        )
        if answer is not None:
            self._remember(admission.circuit, answer)
            return Decided(answer, is_shared=True)
        return self._count_alone(admission, outcome)

    def renew(self, circuit: str, tokens: Iterable[str]) -> None:
        """Let probes of this process hold their places for longer."""
        held = list(tokens)
        self._try(lambda shared: shared.renew(circuit, held, token_us=self._probe_us, limit_seconds=LIMIT_SECONDS))
        self._alone.renew(circuit, held, token_us=self._probe_us)

    def put_off_seconds(self, target: str, budget: RetryBudgetPolicy, *, calls: float, asks: bool) -> float:
        """Deposit for calls and, if it ``asks``, take the token of one retry: how long that is put off, 0 for now."""
        waits = self._try(
            lambda shared: shared.put_off_seconds(target, budget, calls=calls, asks=asks, limit_seconds=LIMIT_SECONDS)
        )
        if waits is not None:
            self._alone.forget_budget(target)
            return waits
        return self._alone.put_off_seconds(target, budget, calls=calls, asks=asks)

    # -- people ----------------------------------------------------------------------

    def by_hand(self, act: Callable[[RulesOnRedis], T]) -> T:
        """What a person asked of the fleet's circuits. Raises ``CircuitStoreUnreachable``: it is not done elsewhere."""
        if self._shared is None:
            raise CircuitStoreUnreachable(
                "no Redis is configured, so circuits are not shared and cannot be seen or moved from here; set "
                "PAIDONCE_REDIS_URL"
            )
        try:
            return act(self._shared)
        except StoreAway as error:
            where = "the Redis" if self._link is None else f"the Redis at {self._link.address}"
            raise CircuitStoreUnreachable(
                f"{where} that circuits are shared in does not answer ({error}); check PAIDONCE_REDIS_URL. Nothing was "
                "changed"
            ) from None

    def standing(self, circuit: str) -> Standing | None:
        """How a circuit stands for whoever decides now; ``None`` if it has never been asked for."""
        found = self._try(lambda shared: (shared.standing(circuit, limit_seconds=LIMIT_SECONDS),))
        return self._alone.standing(circuit) if found is None else found[0]

    def statuses(self) -> tuple[CircuitStatus, ...]:
        """All circuits of the fleet, by name."""

        def look(shared: RulesOnRedis) -> list[CircuitStatus]:
            names = sorted(set(shared.names(limit_seconds=BY_HAND_SECONDS)))
            standings = [(name, shared.standing(name, limit_seconds=BY_HAND_SECONDS)) for name in names]
            return [status_of(standing, name) for name, standing in standings if standing is not None]

        return tuple(self.by_hand(look))

    # -- inside ----------------------------------------------------------------------

    def _try(self, act: Callable[[RulesOnRedis], T]) -> T | None:
        """What Redis says, ``None`` if it is away."""
        if self._shared is None:
            if not self._said_that_nothing_is_shared:
                self._said_that_nothing_is_shared = True
                self._tell(_say_that_nothing_is_shared)
            return None
        try:
            return act(self._shared)
        except StoreAway:
            return None

    def _remember(self, circuit: str, answer: Answer) -> None:
        """Redis has answered: what this process counted by itself meanwhile is of no use any more."""
        self._alone.forget(circuit)
        if answer.state is CircuitState.CLOSED:
            self._seen.pop(circuit, None)
        else:
            self._seen[circuit] = LastSeen(answer, time.monotonic())

    def _go_on_alone(self, circuit: str) -> None:
        """Before this process decides about a circuit itself: begin where Redis left off."""
        seen = self._seen.get(circuit)
        if seen is None or seen.answer.state is CircuitState.CLOSED:
            return
        left_us: int | None = None
        if seen.answer.until_us is not None:
            passed_us = int((time.monotonic() - seen.at_seconds) * 1e6)
            left_us = max(0, seen.answer.until_us - seen.answer.now_us - passed_us)
        self._alone.take_over(circuit, left_us=left_us, since_us=seen.answer.since_us, reason=seen.answer.reason)

    def _report_alone(self, admission: Admission, epoch: int, outcome: Outcome) -> Answer:
        return self._alone.report(
            admission.circuit,
            admission.policy,
            epoch=epoch,
            token=admission.token,
            outcome=outcome,
            chance=self._chance(),
        )

    def _count_alone(self, admission: Admission, outcome: Outcome) -> Decided | None:
        """An outcome that Redis could not be told of says something about the dependency to this process."""
        if outcome.effect is Effect.NEUTRAL or admission.policy.when_store_down == "refuse":
            return None
        self._go_on_alone(admission.circuit)
        standing = self._alone.standing(admission.circuit)
        if standing is not None and standing.state is not CircuitState.CLOSED:
            return None
        entered = self._alone.admit(admission.circuit, admission.policy, token=admission.token, token_us=0)
        return Decided(self._report_alone(admission, entered.epoch, outcome), is_shared=False)

    def _refused(self) -> Answer:
        """By ``when_store_down: refuse``; the time to try again is when Redis is asked again."""
        now_us = self._alone.now_us()
        pause_seconds = self._link.pause_seconds if self._link is not None else 0.0
        return Answer(
            verdict=Verdict.REFUSED,
            state=CircuitState.OPEN,
            epoch=0,
            now_us=now_us,
            until_us=now_us + int(max(1.0, pause_seconds) * 1e6),
            reason=STORE_IS_AWAY if self._shared is not None else NO_STORE,
        )


def _say_that_nothing_is_shared() -> None:
    log.warning(
        "no Redis is configured, so circuits and retry budgets are not shared: each process decides by itself, "
        "from what it sees itself, and policies with `when_store_down: refuse` let nothing through. Set "
        "PAIDONCE_REDIS_URL to share them",
        extra={"event": "breaker_store_missing"},
    )
