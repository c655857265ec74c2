"""Eager claims: claiming a step in the commit that schedules it, for immediate execution.

A step of a sequence then costs one commit instead of two, and so does a run's first. Owns the choice of the step
and the claim that the executor gets; the statement that writes it belongs to the store.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from paidonce_models.store.runs.advancing import NewStep, Progress
from paidonce_models.store.runs.runs_head import RunHead
from paidonce_models.store.steps.claims import Claim, Claimant


@dataclass(frozen=True, kw_only=True, slots=True)
class EagerClaim:
    """Who would execute a next step, and under which conditions."""

    claimant: Claimant
    may_take: Callable[[NewStep, str], bool]
    """Of the step and its agent."""

    def choose(self, head: RunHead, progress: Progress) -> NewStep | None:
        """The step to claim, if any; never a child run, nor one that the agent no longer waits for."""
        if progress.end is not None or head.has_budgets:
            return None  # a step with a budget is claimed separately: its claim reserves, or holds it
        for step in progress.new_steps:
            if step.kind == "agent" or step.position in progress.cancelled_positions:
                continue
            if self.may_take(step, head.agent):
                return step
        return None


def claim_written(head: RunHead, progress: Progress, step: NewStep, at_us: int) -> Claim:
    """The claim that a commit has written; ``at_us`` is its time by the store's clock, or an estimate of it."""
    return Claim(
        run_id=head.id,
        position=step.position,
        attempt=1,
        namespace=head.namespace,
        root_run_id=head.root_run_id,
        agent=head.agent,
        kind=step.kind,
        name=step.name,
        queue=step.queue,
        priority=head.priority,
        lost=0,
        failed=0,
        claimed_at_us=at_us,
        consumed_seq=progress.to_seq,
        elapsed_us=0,
        arguments=step.encoded,
    )
