"""How much of the long proofs is played: ``TEST_SHARE=0.2`` is a fifth of their scenarios, 1 (the default) is all."""

import os

SHARE = float(os.environ.get("TEST_SHARE", "1"))


def share_of(scenarios: int) -> int:
    """How many of them to play; at least one."""
    return max(1, round(scenarios * SHARE))
