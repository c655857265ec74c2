"""The circuits of a process without Redis, counted by pybreaker: held against the model, which is the scripts' too."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from paidonce.policies import BreakerPolicy
from paidonce_workers.breakers.circuit_state import Answer, CircuitState, Verdict
from paidonce_workers.breakers.outcome import SUCCESS, Outcome, failure
from paidonce_workers.breakers.without_redis import MOST_IN_WINDOW, CircuitAlone
from tests.long_proofs import share_of
from tests.workers.breakers.machine import TOKEN_US, Call, chances, outcomes
from tests.workers.breakers.oracle import Clock, Oracle

WINDOW_SECONDS = 30.0
WAITS = st.sampled_from([0.0, 0.01, 0.1, 40.0, 400.0])
"""Much less than a tenth of the window, which is as exact as the scripts are, or more than all of it."""

policies = st.builds(
    BreakerPolicy,
    consecutive_failures=st.integers(1, 6),
    window_seconds=st.just(WINDOW_SECONDS),
    min_calls=st.integers(1, 8),
    failure_rate=st.sampled_from([0.1, 0.3, 0.5, 0.7, 1.0]),
    open_base_seconds=st.sampled_from([0.25, 1.0, 15.0]),
    open_cap_seconds=st.sampled_from([20.0, 300.0]),
    open_jitter=st.sampled_from([0.0, 0.2, 1.0]),
    probes=st.integers(1, 3),
)


class AloneMachine(RuleBasedStateMachine):
    """One circuit alone beside the model."""

    @initialize(policy=policies)
    def begin(self, policy: BreakerPolicy) -> None:
        self.clock = Clock()
        self.policy = policy
        self.calls: list[Call] = []
        self.oracle = Oracle(self.clock, "search")
        self.subject = CircuitAlone(policy, self.clock.now_us)
        self.admit()

    @rule()
    def admit(self) -> None:
        token = f"t{len(self.calls)}"
        expected = self.oracle.admit(self.policy, token=token, token_us=TOKEN_US)
        alike(self.subject.admit(self.policy, token=token, token_us=TOKEN_US), expected)
        if expected.verdict is not Verdict.REFUSED:
            self.calls.append(Call(self.policy, token, expected.epoch, expected.verdict is Verdict.PROBE))

    @rule(data=st.data(), outcome=outcomes, chance=chances)
    def end(self, data: st.DataObject, outcome: Outcome, chance: float) -> None:
        """Late, twice, or in time."""
        self._end(data.draw(st.sampled_from(self.calls[-6:])), outcome, chance)

    @rule(outcome=outcomes, chance=chances, times=st.integers(1, 4))
    def call_several_times(self, outcome: Outcome, chance: float, times: int) -> None:
        for _ in range(times):
            self.admit()
            self._end(self.calls[-1], outcome, chance)

    @rule(data=st.data())
    def beat(self, data: st.DataObject) -> None:
        tokens = [call.token for call in data.draw(st.lists(st.sampled_from(self.calls), min_size=1, max_size=3))]
        self.oracle.renew(tokens, token_us=TOKEN_US)
        self.subject.renew(tokens, token_us=TOKEN_US)

    @rule(seconds=WAITS)
    def pass_time(self, seconds: float) -> None:
        self.clock.forward(seconds)

    @precondition(lambda self: self.oracle.circuit is not None and self.oracle.circuit.state is CircuitState.OPEN)
    @rule(early=st.sampled_from([0, 0, 1]))
    def wait_until_it_may_half_open(self, early: int) -> None:
        circuit = self.oracle.circuit
        if circuit is not None and circuit.until_us is not None:
            self.clock.us = max(self.clock.us, circuit.until_us - early)

    @invariant()
    def both_stand_the_same(self) -> None:
        expected = self.oracle.status()
        assert expected is None or self.subject.status("search") == expected

    def _end(self, call: Call, outcome: Outcome, chance: float) -> None:
        named = {"epoch": call.epoch, "token": call.token, "chance": chance}
        expected = self.oracle.report(self.policy, outcome=outcome, **named)  # type: ignore[arg-type]
        alike(self.subject.report(self.policy, outcome, **named), expected)  # type: ignore[arg-type]


def alike(found: Answer, expected: Answer) -> None:
    """The model says nothing more of a closed circuit that has not moved."""
    if expected.state is CircuitState.CLOSED and expected.transition is None:
        found = replace(found, since_us=0, until_us=0, reason="")
    assert found == expected


@pytest.mark.parametrize(
    "how_many",
    [50, pytest.param(share_of(2_000), marks=[pytest.mark.slow, pytest.mark.timeout(600)])],
    ids=["few", "many"],
)
def test_a_circuit_alone_does_what_the_model_does(how_many: int) -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        AloneMachine,
        settings=settings(max_examples=how_many, stateful_step_count=40, suppress_health_check=list(HealthCheck)),
    )


def test_outcomes_leave_the_window_and_its_memory_is_bounded() -> None:
    clock = Clock()
    policy = BreakerPolicy(consecutive_failures=10**6, min_calls=4, failure_rate=0.5, window_seconds=WINDOW_SECONDS)
    circuit = CircuitAlone(policy, clock.now_us)

    def end(outcome: Outcome) -> CircuitState:
        epoch = circuit.admit(policy, token="t", token_us=TOKEN_US).epoch
        return circuit.report(policy, outcome, epoch=epoch, token="t", chance=0.0).state

    for _ in range(3):
        assert end(failure({"http:503"})) is CircuitState.CLOSED
    clock.forward(WINDOW_SECONDS)
    assert end(failure({"http:503"})) is CircuitState.CLOSED
    for _ in range(2 * MOST_IN_WINDOW):
        end(SUCCESS)
    assert len(circuit._window) == MOST_IN_WINDOW


def test_an_outcome_that_redis_cannot_be_told_of_counts_while_it_is_closed_only() -> None:
    clock = Clock()
    policy = BreakerPolicy(consecutive_failures=2, open_base_seconds=10, open_jitter=0)
    circuit = CircuitAlone(policy, clock.now_us)
    ends = [circuit.report(policy, failure({"http:503"}), epoch=None, token="t", chance=0.0).verdict for _ in range(3)]
    assert ends == [Verdict.COUNTED, Verdict.COUNTED, Verdict.LATE]
    clock.forward(11)
    assert circuit.admit(policy, token="probe", token_us=TOKEN_US).verdict is Verdict.PROBE
    late = circuit.report(policy, SUCCESS, epoch=None, token="t", chance=0.0)
    assert (late.verdict, late.state) == (Verdict.LATE, CircuitState.HALF_OPEN)


def test_an_outcome_of_a_call_before_the_outage_does_not_open_a_circuit_alone_again() -> None:
    clock = Clock()
    policy = BreakerPolicy(consecutive_failures=2, open_base_seconds=10, open_jitter=0)
    circuit = CircuitAlone(policy, clock.now_us)

    def end(outcome: Outcome, token: str, epoch: int) -> tuple[Verdict, CircuitState]:
        answer = circuit.report(policy, outcome, epoch=epoch, token=token, chance=0.0)
        return answer.verdict, answer.state

    before = circuit.admit(policy, token="slow", token_us=TOKEN_US).epoch
    assert [end(failure({"http:503"}), "t", before)[1] for _ in range(2)][-1] is CircuitState.OPEN
    clock.forward(11)
    probe = circuit.admit(policy, token="probe", token_us=TOKEN_US)
    assert end(SUCCESS, "probe", probe.epoch) == (Verdict.COUNTED, CircuitState.CLOSED)
    for _ in range(2):
        assert end(failure({"http:503"}), "slow", before) == (Verdict.LATE, CircuitState.CLOSED)


def test_a_circuit_alone_stays_open_for_what_is_left_of_the_time_that_redis_told_of() -> None:
    clock = Clock()
    policy = BreakerPolicy()
    asked_us = 5_000_000  # by the server's clock, which is another one
    seen = Answer(
        verdict=Verdict.REFUSED, state=CircuitState.OPEN, epoch=7, now_us=asked_us, until_us=asked_us + 30_000_000
    )
    circuit = CircuitAlone(policy, clock.now_us, seen, seconds_ago=20.0)
    clock.forward(9)
    assert circuit.admit(policy, token="early", token_us=TOKEN_US).verdict is Verdict.REFUSED
    clock.forward(2)
    assert circuit.admit(policy, token="probe", token_us=TOKEN_US).verdict is Verdict.PROBE
