"""The rules of a circuit: the reference model against the documentation."""

from __future__ import annotations

import pytest
from hypothesis.stateful import run_state_machine_as_test

from tests.long_proofs import share_of
from tests.workers.breakers.machine import CircuitMachine, scenarios

SCENARIOS = share_of(3_000)
"""With those of ``test_circuit_scripts``, which ask the model as well, 5,000."""


def test_the_model_keeps_the_documented_rules() -> None:
    run_state_machine_as_test(CircuitMachine, settings=scenarios(80, steps=30))  # type: ignore[no-untyped-call]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_model_keeps_the_documented_rules_in_three_thousand_scenarios() -> None:
    run_state_machine_as_test(CircuitMachine, settings=scenarios(SCENARIOS))  # type: ignore[no-untyped-call]
