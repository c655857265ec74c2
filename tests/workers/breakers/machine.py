"""Hypothesis's state machine of one circuit: callers, late outcomes, probes that die, hands that interfere.

Everything is asked of the reference model and, if there is a subject, of it as
well: both have to say the same, and stand the same after each act. What the
model says is held against the documented rules besides.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from paidonce.policies import BreakerPolicy
from paidonce_workers.breakers.circuit_scripts import CircuitScripts
from paidonce_workers.breakers.circuit_state import Answer, CircuitState, CircuitStatus, Verdict
from paidonce_workers.breakers.outcome import NEUTRAL, SUCCESS, Effect, Outcome, failure
from paidonce_workers.breakers.redis_link import Link
from tests.workers.breakers.model import MOVES
from tests.workers.breakers.oracle import Clock, Ledger, Oracle

PATIENCE = 20.0
TOKEN_US = 10_000_000

policies = st.builds(
    BreakerPolicy,
    consecutive_failures=st.integers(1, 6),
    window_seconds=st.sampled_from([1.0, 7.3, 30.0]),
    min_calls=st.integers(1, 8),
    failure_rate=st.sampled_from([0.1, 0.3, 0.5, 0.7, 1.0]),
    open_base_seconds=st.sampled_from([0.25, 1.0, 15.0]),
    open_cap_seconds=st.sampled_from([20.0, 300.0]),
    open_jitter=st.sampled_from([0.0, 0.2, 1.0]),
    probes=st.integers(1, 3),
)
outcomes = st.one_of(
    st.just(SUCCESS),
    st.builds(
        failure,
        st.sets(st.sampled_from(["http:503", "timeout", "ValueError", "émile"]), max_size=3),
        st.one_of(st.none(), st.sampled_from([0.0, 0.4, 2.0, 90.0, 1e9])),
    ),
    st.builds(failure, st.just({"http:503"})),
    st.just(NEUTRAL),
)
waits = st.one_of(st.sampled_from([0.0, 1e-6, 0.1, 0.73, 1.0, 3.0, 10.0, 15.0, 30.0, 400.0]), st.floats(0, 40))
chances = st.floats(0, 1)


def scenarios(how_many: int, *, steps: int = 40) -> settings:
    """For ``run_state_machine_as_test``."""
    return settings(max_examples=how_many, stateful_step_count=steps, suppress_health_check=list(HealthCheck))


@dataclass
class Call:
    """An admission that somebody holds."""

    policy: BreakerPolicy
    token: str
    epoch: int
    is_probe: bool
    is_over: bool = False


class ForgetfulRules(CircuitScripts):
    """The rules on a server that can be made to forget a circuit."""

    def __init__(self, link: Link, namespace: str, clock: Clock) -> None:
        super().__init__(link, namespace, now_us=clock.now_us)
        self._server, self._prefix = link, f"paidonce:{namespace}:breaker:"

    def forget(self, circuit: str) -> None:
        self._server.command("DEL", self._prefix + circuit, limit_seconds=PATIENCE)


class CircuitMachine(RuleBasedStateMachine):
    """``subject`` has a circuit and a clock of its own for each scenario; ``None`` tries the model alone."""

    def __init__(self, subject: ForgetfulRules | None = None, clock: Clock | None = None) -> None:
        super().__init__()
        self.clock = clock if clock is not None else Clock()
        self.subject = subject
        self.name = uuid.uuid4().hex
        self.oracle = Oracle(self.clock, self.name)
        self.ledger = Ledger()
        self.stepped_back_us = 0
        self.calls: list[Call] = []
        self.policies: list[BreakerPolicy] = []

    @initialize(policy=policies, other=policies)
    def declare(self, policy: BreakerPolicy, other: BreakerPolicy) -> None:
        """Two tools may share a circuit and differ in the window."""
        self.policies = [policy, replace(policy, window_seconds=other.window_seconds)]

    # -- callers -----------------------------------------------------------------------

    @rule(second=st.booleans())
    def begin(self, second: bool) -> None:
        policy, token = self.policies[second], uuid.uuid4().hex
        before = self.oracle.status()
        answer = self._admit(policy, token)
        if answer.verdict is not Verdict.REFUSED:
            self.calls.append(Call(policy, token, answer.epoch, answer.verdict is Verdict.PROBE))
        self._check_admission(policy, before, answer)

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def ask_again_with_the_same_token(self, data: st.DataObject) -> None:
        call = data.draw(st.sampled_from(self.calls))
        before = self.oracle.status()
        answer = self._admit(call.policy, call.token)
        if answer.verdict is not Verdict.REFUSED:
            self.calls.append(Call(call.policy, call.token, answer.epoch, answer.verdict is Verdict.PROBE))
        held = before is not None and before.state is CircuitState.HALF_OPEN and answer.verdict is Verdict.PROBE
        if not held:
            self._check_admission(call.policy, before, answer)

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), outcome=outcomes, chance=chances)
    def end(self, data: st.DataObject, outcome: Outcome, chance: float) -> None:
        """Late, twice, or in time: any call that ever began."""
        call = data.draw(st.sampled_from(self.calls[-8:]))
        self._end(call, outcome, chance)

    @precondition(lambda self: self.calls)
    @rule(outcome=outcomes, chance=chances)
    def end_the_newest(self, outcome: Outcome, chance: float) -> None:
        self._end(self.calls[-1], outcome, chance)

    @rule(second=st.booleans(), outcome=outcomes, chance=chances, times=st.integers(1, 4))
    def call_several_times(self, second: bool, outcome: Outcome, chance: float, times: int) -> None:
        for _ in range(times):
            self.begin(second)
            if self.calls:
                self._end(self.calls[-1], outcome, chance)

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def beat(self, data: st.DataObject) -> None:
        """A heartbeat for some calls, dead ones among them."""
        tokens = [call.token for call in data.draw(st.lists(st.sampled_from(self.calls), min_size=1, max_size=3))]
        found = self.oracle.renew(tokens, token_us=TOKEN_US)
        if self.subject is not None:
            again = self.subject.renew(self.name, tokens, token_us=TOKEN_US, limit_seconds=PATIENCE)
            assert again == found

    # -- the world ---------------------------------------------------------------------

    @rule(seconds=waits)
    def pass_time(self, seconds: float) -> None:
        self.clock.forward(seconds)

    @rule(seconds=st.floats(0, 5))
    def step_back(self, seconds: float) -> None:
        """The server's clock was set, or a replica with another clock took over."""
        before = self.clock.us
        self.clock.forward(-seconds)
        self.stepped_back_us += before - self.clock.us

    @precondition(lambda self: self.oracle.circuit is not None and self.oracle.circuit.state is CircuitState.OPEN)
    @rule(early=st.sampled_from([0, 0, 1]))
    def wait_until_it_may_half_open(self, early: int) -> None:
        circuit = self.oracle.circuit
        if circuit is not None and circuit.until_us is not None:
            self.clock.us = max(self.clock.us, circuit.until_us - early)

    @rule(for_us=st.sampled_from([None, 0, 5_000_000]))
    def open_by_hand(self, for_us: int | None) -> None:
        answer = self.oracle.open_by_hand(for_us=for_us, reason="why not")
        assert answer.state is CircuitState.OPEN
        if self.subject is not None:
            again = self.subject.open_by_hand(self.name, for_us=for_us, reason="why not", limit_seconds=PATIENCE)
            assert again == answer

    @rule()
    def close_by_hand(self) -> None:
        answer = self.oracle.close_by_hand(reason="enough")
        assert answer.state is CircuitState.CLOSED
        if self.subject is not None:
            assert self.subject.close_by_hand(self.name, reason="enough", limit_seconds=PATIENCE) == answer

    @rule()
    def reset(self) -> None:
        answer = self.oracle.reset(reason="afresh")
        assert answer.state is CircuitState.CLOSED
        if self.subject is not None:
            assert self.subject.reset(self.name, reason="afresh", limit_seconds=PATIENCE) == answer

    @precondition(lambda self: self.oracle.circuit is not None)
    @rule()
    def flush(self) -> None:
        """Redis loses its memory. Later, so that the next epoch is another one."""
        self.oracle.forget()
        self.clock.forward(3600)
        if self.subject is not None:
            self.subject.forget(self.name)

    # -- what must hold ------------------------------------------------------------------

    @invariant()
    def both_stand_the_same(self) -> None:
        if self.subject is not None and self.policies:
            assert self.subject.status(self.name, limit_seconds=PATIENCE) == self.oracle.status()

    @invariant()
    def memory_is_bounded(self) -> None:
        circuit = self.oracle.circuit
        if circuit is not None:
            assert len(circuit.windows) <= len(self.policies)
            assert all(len(tallies) <= 10 for tallies in circuit.windows.values())
            assert len(circuit.probes) <= max(policy.probes for policy in self.policies)

    def _admit(self, policy: BreakerPolicy, token: str) -> Answer:
        answer = self.oracle.admit(policy, token=token, token_us=TOKEN_US)
        if self.subject is not None:
            again = self.subject.admit(self.name, policy, token=token, token_us=TOKEN_US, limit_seconds=PATIENCE)
            assert again == answer
        return answer

    def _check_admission(self, policy: BreakerPolicy, before: CircuitStatus | None, answer: Answer) -> None:
        state = CircuitState.CLOSED if before is None else before.state
        _check_move(before, answer)
        if state is CircuitState.CLOSED:
            assert answer.verdict is Verdict.ADMITTED
            return
        assert before is not None
        if state is CircuitState.OPEN and (before.until_us is None or self.clock.us < before.until_us):
            assert answer.verdict is Verdict.REFUSED
            assert answer.until_us == before.until_us
            return
        places = policy.probes - (before.probes_under_way if state is CircuitState.HALF_OPEN else 0)
        assert answer.verdict is (Verdict.PROBE if places > 0 else Verdict.REFUSED)
        if places <= 0:
            assert answer.until_us is not None
            assert self.clock.us < answer.until_us <= self.clock.us + TOKEN_US + self.stepped_back_us

    def _end(self, call: Call, outcome: Outcome, chance: float) -> None:
        before = self.oracle.status()
        held = self.oracle.circuit is not None and call.token in self.oracle.circuit.probes
        answer = self.oracle.report(call.policy, epoch=call.epoch, token=call.token, outcome=outcome, chance=chance)
        if self.subject is not None:
            again = self.subject.report(
                self.name,
                call.policy,
                outcome,
                epoch=call.epoch,
                token=call.token,
                chance=chance,
                limit_seconds=PATIENCE,
            )
            assert again == answer
        after = self.oracle.status()
        _check_move(before, answer)
        if before is None or call.epoch != before.epoch or before.state is CircuitState.OPEN:
            assert answer.verdict is Verdict.LATE
            assert after == before
        elif before.state is CircuitState.HALF_OPEN:
            assert answer.verdict is (Verdict.COUNTED if held else Verdict.LATE)
            if held:
                self._check_probe(call.policy, before, answer, outcome, chance)
            else:
                assert after == before
        else:
            trips = self.ledger.must_trip(call.policy, before.epoch, self.clock.us, outcome.effect)
            assert (answer.transition is not None) == trips
            if trips:
                self._check_open_time(call.policy, 0, answer, outcome, chance)

    def _check_probe(
        self, policy: BreakerPolicy, before: CircuitStatus, answer: Answer, outcome: Outcome, chance: float
    ) -> None:
        if outcome.effect is Effect.FAILURE:
            assert answer.state is CircuitState.OPEN
            assert answer.since_us == before.since_us
            self._check_open_time(policy, before.failed_probes + 1, answer, outcome, chance)
        elif outcome.effect is Effect.NEUTRAL:
            assert answer.state is CircuitState.HALF_OPEN
        elif policy.probes == 1:
            assert answer.state is CircuitState.CLOSED

    def _check_open_time(
        self, policy: BreakerPolicy, failed_probes: int, answer: Answer, outcome: Outcome, chance: float
    ) -> None:
        assert answer.until_us is not None
        seconds = (answer.until_us - self.clock.us) / 1e6
        longest = min(policy.open_cap_seconds, policy.open_base_seconds * 2**failed_probes)
        shortest = longest * (1 - policy.open_jitter)
        asked = outcome.retry_after_seconds
        if asked is None:
            assert shortest - 1e-5 <= seconds <= longest + 1e-5
        else:
            assert seconds >= min(asked, 86_400)
            assert seconds <= max(min(asked, 86_400), 1.0)


def _check_move(before: CircuitStatus | None, answer: Answer) -> None:
    """A move is a legal one and begins an epoch; without a move the epoch stays."""
    if before is None:
        return
    move = answer.transition
    if move is None:
        assert (answer.state, answer.epoch) == (before.state, before.epoch)
    else:
        assert move.source is before.state
        assert move.target in MOVES[before.state]
        assert answer.epoch == before.epoch + 1
