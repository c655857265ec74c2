"""``Decider``: finds out whether a call may be made, and passes on how it ended.

Redis decides for the whole fleet (``circuit_scripts``); while Redis is away, this process decides alone
(``without_redis``). A circuit that Redis has just called closed counts as closed for a quarter of a second: so long may
calls of other processes still be permitted after it has opened. Whatever is not closed is asked about each time, so
that a probe has its place in the whole fleet, and so are circuits whose policy refuses all calls while Redis is away.
Every outcome is reported at once. Owns that choice and the time limit behind it: ``admit`` and ``report`` together take
at most ``LIMIT_SECONDS`` of a call. When Redis goes away, a circuit that it last reported as open stays open in this
process too; all others start closed. When Redis responds again about a circuit, this process drops its own counts for
it.

Callers run in threads that may be interrupted at any bytecode. Code in here is not interrupted
(``interrupts_deferred``), and takes no longer than that limit. A forked process starts with its own connections and
threads.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Final, ParamSpec, TypeVar

from paidonce.policies import BreakerPolicy, RetryBudgetPolicy
from paidonce_models.privacy.log_texts import failure_of, loggable
from paidonce_workers.bodies.interrupt import interrupts_deferred
from paidonce_workers.breakers.announcing import Announcer
from paidonce_workers.breakers.circuit_scripts import CircuitScripts, checker
from paidonce_workers.breakers.circuit_state import Admission, Answer, CircuitChange, CircuitState, Verdict
from paidonce_workers.breakers.outcome import NEUTRAL, Classify, Effect, Outcome, outcome_of
from paidonce_workers.breakers.probes import ProbesUnderWay
from paidonce_workers.breakers.redis_connecting import connection_maker, shown
from paidonce_workers.breakers.redis_link import Link, StoreAway
from paidonce_workers.breakers.without_redis import CircuitAlone, monotonic_us

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger(__name__)

SETTING: Final = "PAIDONCE_REDIS_URL"
LIMIT_SECONDS: Final = 0.35
"""Of the promised half second; the rest allows a busy machine to notice late that the time is over."""
LEAST_REPORT_SECONDS: Final = 0.05
CLOSED_SECONDS: Final = 0.25
"""For how long a circuit that Redis has called closed needs not be asked for again."""
THREADS_FOR_COROUTINES: Final = 4

Listener = Callable[[CircuitChange], None]


class Decider:
    """The circuits of a namespace. Thread-safe and fork-safe."""

    def __init__(
        self,
        url: str | None,
        *,
        namespace: str,
        classify: Classify,
        probe_seconds: float = 10.0,
        setting: str = SETTING,
        now_us: Callable[[], int] | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """``url`` is in kombu's notation, ``None`` if there is no Redis; ``setting`` names its source in logs.

        A probe that is not renewed for ``probe_seconds`` loses its place. ``now_us`` is passed where one process is the
        whole fleet, as in the test kit: the clock by which it decides as Redis would. ``chance`` supplies the jitter of
        the times that circuits stay open.

        Opens no connection. Raises ``ConfigurationError`` if the address cannot be read.
        """
        self._make = None if url is None else connection_maker(url, setting)
        self._address = "" if url is None else shown(url)
        self._setting = setting
        self._namespace = namespace
        self._classify = classify
        self._probe_us = int(probe_seconds * 1e6)
        self._clock = monotonic_us if now_us is None else now_us
        self._is_the_fleet = now_us is not None
        self._chance = chance
        self._listeners: list[Listener] = []
        self._begin_empty()
        this = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _begin_empty_if_alive(this))

    def _begin_empty(self) -> None:
        """Starts no thread and opens no connection."""
        self._link: Link | None = None
        self._shared: CircuitScripts | None = None
        if self._make is not None:
            check = checker(self._namespace)
            self._link = Link(make=self._make, check=check, address=self._address, setting=self._setting)
            self._shared = CircuitScripts(self._link, self._namespace)
        self._announcer = Announcer("paidonce-breakers-announce")
        # Not asyncio's default executor: user code may fill that one, and `admit` would wait behind it.
        self._executor = ThreadPoolExecutor(THREADS_FOR_COROUTINES, thread_name_prefix="paidonce-breakers")
        self._probes = ProbesUnderWay()
        self._seen: dict[str, tuple[Answer, float]] = {}
        """The last response of Redis about each circuit, and when it was asked, by the monotonic clock."""
        self._states: dict[str, CircuitState] = {}
        """The last known state, whoever decided."""
        self._alone: dict[str, CircuitAlone] = {}
        self._said_that_nothing_is_shared = self._is_the_fleet

    # -- a call ----------------------------------------------------------------------

    @interrupts_deferred
    def admit(self, circuit: str, policy: BreakerPolicy, *, token: str, owner: object = None) -> Admission:
        """Request permission for one call before it is made. A permitted call must be reported.

        Makes no request if Redis has said within the last ``CLOSED_SECONDS`` that the circuit is closed.

        ``token`` identifies the call. A probe is renewed as long as its ``owner`` is alive; without an owner, while
        ``renew`` is called with its token. Never raises; takes at most 0.35 s, whatever Redis does.
        """
        began = time.monotonic()
        known = self._known_closed(circuit, began) if policy.when_store_down == "allow" else None
        if known is not None:
            return Admission(
                circuit=circuit, policy=policy, token=token, answer=known, is_shared=True, spent_seconds=0.0
            )
        answer = self._try(
            lambda shared: shared.admit(
                circuit, policy, token=token, token_us=self._probe_us, limit_seconds=LIMIT_SECONDS
            )
        )
        spent_seconds = time.monotonic() - began
        is_shared = answer is not None
        if answer is None and policy.when_store_down == "refuse":
            answer = self._refused()
        elif answer is None:
            answer = self._without_redis(circuit, policy).admit(policy, token=token, token_us=self._probe_us)
        self._hear(circuit, answer, is_shared, began)
        admission = Admission(
            circuit=circuit,
            policy=policy,
            token=token,
            answer=answer,
            is_shared=is_shared,
            spent_seconds=spent_seconds,
        )
        if admission.is_probe:
            self._probes.begin(token, circuit, owner=owner)
        return admission

    async def admit_async(self, circuit: str, policy: BreakerPolicy, *, token: str, owner: object = None) -> Admission:
        """The same for a coroutine; never blocks its event loop on Redis.

        If the task is cancelled meanwhile, a probe's place is released.
        """
        with interrupts_deferred:
            asking = self._soon(self.admit, circuit, policy, token=token, owner=owner)
        try:
            return await end_of(asking)
        except BaseException:
            with interrupts_deferred:
                asking.add_done_callback(self._give_up)
            raise

    @interrupts_deferred
    def report(self, admission: Admission, outcome: Outcome) -> None:
        """Report how a permitted call ended: ``SUCCESS``, ``NEUTRAL`` or ``failure(kinds, retry_after_seconds)``.

        Never raises; together with ``admit`` it takes at most 0.4 s, whatever Redis does.
        """
        self._probes.end(admission.token)
        circuit, policy, outcome = admission.circuit, admission.policy, outcome.unless_ignored(admission.policy)
        if not admission.is_admitted or (outcome.effect is Effect.NEUTRAL and not admission.is_probe):
            return
        epoch, token, chance = admission.answer.epoch, admission.token, self._chance()
        limit_seconds = max(LEAST_REPORT_SECONDS, LIMIT_SECONDS - admission.spent_seconds)
        answer: Answer | None = None
        began = time.monotonic()
        if admission.is_shared:
            answer = self._try(
                lambda shared: shared.report(
                    *(circuit, policy, outcome),
                    epoch=epoch,
                    token=token,
                    chance=chance,
                    limit_seconds=limit_seconds,
                )
            )
        if answer is not None:
            self._hear(circuit, answer, is_shared=True, at_seconds=began)
        elif not admission.is_shared or (outcome.effect is not Effect.NEUTRAL and policy.when_store_down == "allow"):
            # An outcome that Redis could not be told still counts in this process.
            known = None if admission.is_shared else epoch
            alone = self._without_redis(circuit, policy)
            answer = alone.report(policy, outcome, epoch=known, token=token, chance=chance)
            self._hear(circuit, answer, is_shared=False, at_seconds=began)

    @interrupts_deferred
    def report_soon(self, admission: Admission, outcome: Outcome) -> Future[None]:
        """Report in another thread, for callers that do not wait."""
        if outcome.effect is Effect.NEUTRAL and not admission.is_probe:  # there is nothing to report
            nothing: Future[None] = Future()
            nothing.set_result(None)
            return nothing
        return self._soon(self.report, admission, outcome)

    def outcome_of(self, error: BaseException) -> Outcome:
        """Classify an error of a call for its circuit, before the policy's ``ignore``."""
        return outcome_of(error, self._classify)

    @interrupts_deferred
    def renew(self, tokens: Iterable[str] = ()) -> None:
        """Call with each heartbeat: renews the places of these probes and of all inline probes.

        Never raises.
        """
        for circuit, held in self._probes.to_renew(tokens).items():
            self._renew(circuit, held)

    def is_open(self, circuit: str) -> bool:
        """Whether the circuit was open or half-open when this process last heard of it. Makes no request."""
        return self._states.get(circuit, CircuitState.CLOSED) is not CircuitState.CLOSED

    # -- moves -----------------------------------------------------------------------

    def subscribe(self, listener: Listener) -> None:
        """Call ``listener`` for each move that a request of this process made, one at a time, in a dedicated thread.

        A listener's exception is logged and dropped. A slow listener delays only the other listeners; a manual move
        waits for it for two seconds.
        """
        self._listeners.append(listener)

    def start(self) -> None:
        """Start the listeners' thread; otherwise the first move does. Never raises."""
        self._announcer.start()

    def close(self) -> None:
        """Deliver queued changes, for two seconds at most, close connections and end this process's threads."""
        # Threads first: they use the connections, and may produce further changes.
        self._executor.shutdown()
        self._announcer.close()
        if self._link is not None:
            self._link.close()

    # -- inside ----------------------------------------------------------------------

    def _try(self, act: Callable[[CircuitScripts], T]) -> T | None:
        """The response of Redis, ``None`` if it is away."""
        if self._shared is None:
            if not self._said_that_nothing_is_shared:
                self._said_that_nothing_is_shared = True
                log.warning(
                    "no Redis is configured, so circuits and retry budgets are not shared: each process decides by "
                    "itself, from its own calls, and policies with `when_store_down: refuse` refuse every "
                    "call. Set PAIDONCE_REDIS_URL to share them",
                    extra={"event": "breaker_store_missing"},
                )
            return None
        try:
            return act(self._shared)
        except StoreAway:
            return None

    def _without_redis(self, circuit: str, policy: BreakerPolicy) -> CircuitAlone:
        """This process's own breaker, starting from the last state that Redis reported. Of two, one is kept."""
        found = self._alone.get(circuit)
        if found is None:
            answer, at_seconds = self._seen.get(circuit, (None, 0.0))
            made = CircuitAlone(policy, self._clock, answer, time.monotonic() - at_seconds)
            found = self._alone.setdefault(circuit, made)
        return found

    def _known_closed(self, circuit: str, at_seconds: float) -> Answer | None:
        """What Redis has just said, if that was "closed" and it has been there since."""
        answer, heard_at_seconds = self._seen.get(circuit, (None, 0.0))
        if answer is None or answer.state is not CircuitState.CLOSED or circuit in self._alone:
            return None
        if answer.verdict is Verdict.LATE:  # Redis may have forgotten the circuit: then only a request makes it anew
            return None
        if at_seconds - heard_at_seconds >= CLOSED_SECONDS:
            return None
        return Answer(verdict=Verdict.ADMITTED, state=CircuitState.CLOSED, epoch=answer.epoch, now_us=answer.now_us)

    def _hear(self, circuit: str, answer: Answer, is_shared: bool, at_seconds: float) -> None:
        """Remember the state of the circuit, and tell listeners of a move that this request made.

        ``at_seconds``: when Redis was asked, by the monotonic clock.
        """
        self._states[circuit] = answer.state
        if is_shared:
            self._alone.pop(circuit, None)
            known, _ = self._seen.get(circuit, (answer, 0.0))
            # Two threads may hear in another order than Redis decided: an opening must not be forgotten.
            if answer.state is not CircuitState.CLOSED or answer.now_us >= known.now_us:
                self._seen[circuit] = (answer, at_seconds)
        if answer.transition is not None:
            change = CircuitChange.of(circuit, answer, answer.transition, is_shared=is_shared)
            self._announcer.tell(partial(self._tell, change))

    def _tell(self, change: CircuitChange) -> None:
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

    def _renew(self, circuit: str, tokens: list[str]) -> None:
        self._try(lambda shared: shared.renew(circuit, tokens, token_us=self._probe_us, limit_seconds=LIMIT_SECONDS))
        alone = self._alone.get(circuit)
        if alone is not None:
            alone.renew(tokens, token_us=self._probe_us)

    def _retry_put_off(self, target: str, budget: RetryBudgetPolicy, calls: int, asks: bool) -> float | None:
        return self._try(
            lambda shared: shared.put_off_seconds(target, budget, calls=calls, asks=asks, limit_seconds=LIMIT_SECONDS)
        )

    def _refused(self) -> Answer:
        """The response for ``when_store_down: refuse``; the time to try again is when Redis is tried again."""
        now_us, missing, pause_seconds = self._clock(), "no Redis is configured for circuits", 0.0
        if self._link is not None:
            missing, pause_seconds = "the Redis of circuits is away", self._link.pause_seconds
        return Answer(
            verdict=Verdict.REFUSED,
            state=CircuitState.OPEN,
            epoch=0,
            now_us=now_us,
            until_us=now_us + int(max(1.0, pause_seconds) * 1e6),
            reason=f"{missing}, and the policy refuses every call without it",
        )

    def _soon(self, act: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        todo = [partial(act, *args, **kwargs)]

        def work() -> None:
            try:
                given = todo.pop()
            except IndexError:
                return  # another thread took it
            try:
                future.set_result(given())
            except BaseException as error:  # noqa: BLE001 - raised where it is waited for
                future.set_exception(error)

        try:
            self._executor.submit(work)
        except RuntimeError:  # closed, or no thread could start: then it stays in the queue for the next one
            work()
        return future

    def _give_up(self, asking: Future[Admission]) -> None:
        """The task was cancelled while it requested permission: release the place of a probe, if it got one."""
        if not asking.cancelled() and asking.exception() is None:
            self.report_soon(asking.result(), NEUTRAL)


@interrupts_deferred
def end_of(future: Future[T]) -> asyncio.Future[T]:
    """Make the future awaitable. Cancelling the awaiting task leaves the future alone: cancelling it takes its lock."""
    return asyncio.shield(asyncio.wrap_future(future))


def _begin_empty_if_alive(reference: weakref.ref[Decider]) -> None:
    breakers = reference()
    if breakers is not None:
        breakers._begin_empty()
