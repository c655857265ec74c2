"""Which steps run apart from others, decided by what became of their earlier attempts. Pure.

A process that dies takes all its steps with it, and among several nobody knows which one it was. So a first loss in
company says nothing: after a machine has gone, two hundred steps run on as they did. Nor does a first one without it:
most workers that die were killed from outside, and a step that was alone shall go on as soon as any other. A second
loss is a suspicion.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

LOSSES_BEFORE_ISOLATION: Final = 2
LOSSES_IN_COMPANY_BEFORE_EXCLUSION: Final = 4
"""Isolated, and lost again with others: what died then was not the body's own process, but its host or the machine."""

IS_SUSPECT: Final = f"(steps.lost >= {LOSSES_BEFORE_ISOLATION})"


@dataclass(frozen=True, kw_only=True, slots=True)
class Suspect:
    """How often a step was lost, and how often that counts against it."""

    lost: int
    blamed: int

    @property
    def must_be_excluded(self) -> bool:
        """Whether the step needs a host to itself, so that its next loss is evidence."""
        return self.lost - self.blamed >= LOSSES_IN_COMPANY_BEFORE_EXCLUSION


def is_suspect(lost: int) -> bool:
    """Whether the body has to run in a process of its own."""
    return lost >= LOSSES_BEFORE_ISOLATION
