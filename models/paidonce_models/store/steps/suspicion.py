"""Which steps run apart from others, decided by the fate of their earlier attempts. Pure.

A process that dies takes all its steps with it, and among several the guilty one is unknown. So a first loss in company
proves nothing: after a machine has died, two hundred steps continue as before. Nor does a first loss alone: most
workers that die were killed from outside, and a step that ran alone must continue as soon as any other. A second loss
is a suspicion.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

LOSSES_BEFORE_ISOLATION: Final = 2
LOSSES_IN_COMPANY_BEFORE_EXCLUSION: Final = 4
"""Isolated, and lost again with others: not the body's own process died, but its host or the machine."""

IS_SUSPECT: Final = f"(steps.lost >= {LOSSES_BEFORE_ISOLATION})"


@dataclass(frozen=True, kw_only=True, slots=True)
class Suspect:
    """How often a step was lost, and how often that was blamed on it."""

    lost: int
    blamed: int

    @property
    def must_be_excluded(self) -> bool:
        """Whether the step needs an exclusive host, so that its next loss is evidence."""
        return self.lost - self.blamed >= LOSSES_IN_COMPANY_BEFORE_EXCLUSION


def is_suspect(lost: int) -> bool:
    """Whether the body must run in a separate process."""
    return lost >= LOSSES_BEFORE_ISOLATION
