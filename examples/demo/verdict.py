"""Compares Paidonce's record with the model server's own count.

A pure function of both. It checks the promise: once a step's completion is in the store, no request for that step ever
arrives again; and before that, no step sends more requests than it has attempts.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from examples.demo.observation import SeenRequest, SeenStep


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The result of the comparison. The promise is that the lists are empty."""

    requests: int
    repeated: list[str]
    unexplained: list[str]

    @property
    def holds(self) -> bool:
        """Whether every finished step was paid once, and every request belongs to an attempt."""
        return not self.repeated and not self.unexplained


def judge(steps: Sequence[SeenStep], requests: Sequence[SeenRequest]) -> Verdict:
    """Check every request against the step that its header names."""
    paid = {step.key: step for step in steps if step.is_paid}
    counted = Counter(request.step for request in requests)
    repeated = [
        f"{paid[request.step].label} was finished, and requested again"
        for request in requests
        if request.step in paid and _is_after_completion(request, paid[request.step])
    ]
    unexplained = [
        f"a request came from {key!r}, which is not a paid step of the run" for key in counted if key not in paid
    ]
    for key, step in paid.items():
        if counted[key] > step.attempts:
            unexplained.append(f"{step.label} sent {counted[key]} requests in {step.attempts} attempts")
        if step.is_finished and not counted[key]:
            unexplained.append(f"{step.label} is finished, and the model server never saw it")
    return Verdict(requests=len(requests), repeated=repeated, unexplained=unexplained)


def judge_record(steps: Sequence[SeenStep]) -> Verdict:
    """Without a counting server: check Paidonce's own record."""
    repeated = [
        f"{step.label} was accepted {step.outcomes.count('accepted')} times"
        for step in steps
        if step.outcomes.count("accepted") > 1
    ]
    return Verdict(requests=0, repeated=repeated, unexplained=[])


def _is_after_completion(request: SeenRequest, step: SeenStep) -> bool:
    return step.finished_at is not None and request.arrived_at > step.finished_at.timestamp()
