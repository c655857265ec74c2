"""Eager claims: claiming a step in the commit that schedules it, for immediate execution.

A step of a sequence then costs one commit instead of two. Owns the choice of the step
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
    may_take: Callable[[NewStep], bool]

    def choose(self, progress: Progress) -> NewStep | None:
        """The step to claim, if any; never a child run, nor one that the agent no longer waits for."""
        if progress.end is not None:
            return None
        for step in progress.new_steps:
            if step.kind != "agent" and step.position not in progress.cancelled_positions and self.may_take(step):
                return step
        return None


def claim_written(head: RunHead, progress: Progress, step: NewStep, at_us: int) -> Claim:
    """The claim that a completion has written; ``at_us`` is that commit's estimate of the store's clock."""
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
