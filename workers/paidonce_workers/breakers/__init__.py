"""Circuit breakers and retry budgets that all workers share.

    admit / guard -> breaker (pybreaker) -> deciding -> rules_on_redis -> link -> Redis, circuit.lua
                                                    \\-> rules_in_process -> model, while Redis is away

``circuit_breakers`` wires it in each process. ``model`` and ``circuit.lua`` hold
the same rules; ``docs/resilience.md`` says what they are.
"""

from paidonce.policies import Failure
from paidonce_workers.breakers.admission import Admission, CircuitChange, CircuitStatus
from paidonce_workers.breakers.breaker import SharedCircuitBreaker
from paidonce_workers.breakers.circuit import CircuitState, Verdict
from paidonce_workers.breakers.circuit_breakers import CircuitBreakers
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
    "SharedCircuitBreaker",
    "Verdict",
    "failure",
    "outcome_of",
]
