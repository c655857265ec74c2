"""Which steps run apart from others, decided by what became of their earlier attempts. Pure.

A process that dies takes all its steps with it, and among several nobody knows which one it was. So a first loss in
company says nothing: after a machine has gone, two hundred steps run on as they did. A second one is a suspicion, and
so is a first one without company.
"""

from __future__ import annotations

from typing import Final

from paidonce_models.store.claims import Claim

LOSSES_IN_COMPANY_BEFORE_ISOLATION: Final = 2
LOSSES_IN_COMPANY_BEFORE_EXCLUSION: Final = 4
"""Isolated, and lost again with others: what died then was not the child, but the host or the whole machine."""


def is_suspect(claim: Claim) -> bool:
    """Whether the body has to run in a process of its own."""
    return claim.blamed > 0 or claim.lost >= LOSSES_IN_COMPANY_BEFORE_ISOLATION


def must_be_excluded(claim: Claim) -> bool:
    """Whether the step needs a host to itself, so that its next loss is evidence, for it or against it."""
    return claim.lost - claim.blamed >= LOSSES_IN_COMPANY_BEFORE_EXCLUSION
