"""Circuit breakers and retry budgets, shared by all workers.

    circuit_breakers, guard -> circuit_decisions -> circuit_scripts -> redis_link -> circuit.lua, retry_budget.lua
                                                \\-> without_redis: pybreaker, while Redis is away

``docs/explanation/resilience.md`` says what the rules are.
"""

from paidonce.policies import Failure
from paidonce_workers.breakers.circuit_breakers import CircuitBreakers
from paidonce_workers.breakers.circuit_state import Admission, CircuitChange, CircuitState, CircuitStatus, Verdict
from paidonce_workers.breakers.guard import Guard
from paidonce_workers.breakers.outcome import NEUTRAL, SUCCESS, Classify, Outcome, failure, outcome_of

__all__ = [
    "NEUTRAL",
    "SUCCESS",
    "Admission",
    "CircuitBreakers",
    "CircuitChange",
    "CircuitState",
    "CircuitStatus",
    "Classify",
    "Failure",
    "Guard",
    "Outcome",
    "Verdict",
    "failure",
    "outcome_of",
]
