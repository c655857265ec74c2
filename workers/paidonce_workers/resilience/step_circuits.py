"""The circuits of a step, asked before its claim: while one of them is open, no attempt starts.

A tool, or a step that a policy names, has its own circuit. A step that calls a provider with a watched circuit needs
permission from that one too; its provider is declared, or learned from its calls. A ``Gate`` is the result for one
delivery; a permitted delivery reports to it how the attempt ended.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

from paidonce.declarations.registry import AnyStep
from paidonce.policies import BreakerPolicy, Failure, ResolvedPolicy
from paidonce.policies.failures import class_name
from paidonce.policies.policy import WhenOpen
from paidonce.policies.policy_book import PolicyBook
from paidonce_models.errors import CircuitOpen
from paidonce_models.store.circuits.parked_steps import Parking
from paidonce_workers.breakers import NEUTRAL, Admission, CircuitBreakers, Outcome, outcome_of
from paidonce_workers.breakers.outcome import CONTROL
from paidonce_workers.resilience.clocks_and_chance import Timing
from paidonce_workers.resilience.learned_providers import LearnedProviders

SAYS_NOTHING = frozenset(class_name(error) for error in CONTROL)
"""Kinds of failure that are no failures of the dependency."""
UNKNOWN_WAIT_SECONDS = 60.0
"""How long a step sleeps that waits for a circuit which only a person closes, before it checks again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Refused:
    """The circuit that refused, and its policy."""

    admission: Admission
    policy: ResolvedPolicy

    @property
    def when_open(self) -> str:
        """``park``, ``raise`` or ``fail``."""
        return self.admission.policy.when_open

    @property
    def error(self) -> CircuitOpen:
        """The error that the agent sees."""
        admission = self.admission
        return CircuitOpen.of(
            self.policy.target, since=admission.since, retry_at=admission.retry_at, reason=admission.reason
        )

    @property
    def parking(self) -> Parking:
        """How long a step waits before it tries again, and for how long at most."""
        return parking_for(self.policy, self.admission.wait_seconds)


class Gate:
    """The result of one delivery's circuits. ``refused`` is the first circuit that refused."""

    def __init__(
        self, breakers: CircuitBreakers | None, admissions: tuple[Admission, ...], refused: Refused | None
    ) -> None:
        self._breakers = breakers
        self._admissions = list(admissions)
        self.refused = refused
        self._probed = frozenset(admission.circuit for admission in admissions if admission.is_probe)

    @property
    def probe_tokens(self) -> tuple[str, ...]:
        """Probe places, for the heartbeat to renew."""
        return tuple(admission.token for admission in self._admissions if admission.is_probe)

    def was_probe(self, circuit: str) -> bool:
        """Whether the delivery is a probe of this circuit."""
        return circuit in self._probed

    def take(self, circuit: str) -> Admission | None:
        """The permission of a circuit, for the call that it is about; whoever takes it must report it."""
        for admission in self._admissions:
            if admission.circuit == circuit:
                self._admissions.remove(admission)
                return admission
        return None

    def report(self, circuit: str, outcome: Outcome) -> None:
        """Report how the step's own call ended, and release the permissions that were not used."""
        admissions, self._admissions = self._admissions, []
        if self._breakers is not None:
            for admission in admissions:
                self._breakers.report(admission, outcome if admission.circuit == circuit else NEUTRAL)

    def release(self) -> None:
        """Release all permissions: no call was made."""
        self.report("", NEUTRAL)


class StepCircuits:
    """Acquires permission for steps of one process. Thread-safe."""

    def __init__(
        self,
        *,
        book: PolicyBook,
        breakers: CircuitBreakers | None,
        step: Callable[[str], AnyStep | None],
        providers: LearnedProviders,
        timing: Timing | None = None,
    ) -> None:
        """``breakers`` ``None``: they are switched off, and every gate is open."""
        self.timing = timing or Timing()
        self._book = book
        self.breakers = breakers
        self._step = step
        self.providers = providers
        self.no_gate = Gate(None, (), None)

    def policy_of(self, declaration: AnyStep) -> ResolvedPolicy:
        """The policy of a step or tool."""
        return self._book.resolve_declaration(declaration, breakers_enabled=self.breakers is not None)

    def policy_of_provider(self, provider: str, declaration: AnyStep | None = None) -> ResolvedPolicy:
        """The policy of requests to a provider, made by this step if one is given."""
        enabled = self.breakers is not None
        if declaration is None or declaration.provider != provider:
            return self._book.resolve_provider(provider, breakers_enabled=enabled)
        return self._book.resolve_provider(
            provider,
            declared_at=declaration.place,
            when_open=_when_open(declaration),
            breakers_enabled=enabled,
        )

    def ask(self, name: str, agent: str = "") -> Gate:
        """Acquire permission from all circuits of the step ``name``; if one refuses, the others' are released."""
        breakers, declaration = self.breakers, self._step(name)
        if breakers is None or declaration is None:
            return self.no_gate
        admitted: list[Admission] = []
        for policy, breaker in self._watched(declaration, agent):
            admission = breakers.admit(policy.circuit, breaker, token=uuid.uuid4().hex)
            if not admission.is_admitted:
                Gate(breakers, tuple(admitted), None).release()
                return Gate(breakers, (), Refused(admission=admission, policy=policy))
            admitted.append(admission)
        return Gate(breakers, tuple(admitted), None)

    def is_open(self, policy: ResolvedPolicy) -> bool:
        """Whether the circuit was open or half-open when this process last heard of it. Makes no request."""
        if self.breakers is None or policy.policy.breaker is None:
            return False
        return self.breakers.is_open(policy.circuit)

    def _watched(self, declaration: AnyStep, agent: str) -> Iterator[tuple[ResolvedPolicy, BreakerPolicy]]:
        own = self.policy_of(declaration)
        if own.policy.breaker is not None:
            yield own, own.policy.breaker
        if declaration.kind != "step":
            return
        provider = declaration.provider or self.providers.of(agent, declaration.name)
        if provider is not None:
            policy = self.policy_of_provider(provider, declaration)
            if policy.policy.breaker is not None:
                yield policy, policy.policy.breaker


def _when_open(declaration: AnyStep) -> WhenOpen | None:
    return cast("WhenOpen | None", dict(declaration.policy_keys).get("breaker.when_open"))


def parking_for(policy: ResolvedPolicy, wait_seconds: float | None) -> Parking:
    """How a step waits for a circuit that may be tried again after so long; ``None``: once someone closes it."""
    wait = UNKNOWN_WAIT_SECONDS if wait_seconds is None else max(wait_seconds, 0.0)
    return Parking(
        circuit=policy.circuit, retry_in_us=int(wait * 1e6), most_us=int(policy.policy.park.max_seconds * 1e6)
    )


def outcome_for(error: BaseException, found: Failure) -> Outcome:
    """The outcome, for its circuit, of a call that raised this. An interrupt, another open circuit or a value that
    cannot be stored says nothing about the dependency."""
    return outcome_of(error, lambda _: found) if SAYS_NOTHING.isdisjoint(found.kinds) else NEUTRAL
