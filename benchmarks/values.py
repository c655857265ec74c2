"""The values that steps return. Needs the standard library only: DBOS imports it in an environment of its own.

Every value differs from every other, or a content-addressed store would be measured at something it is not doing.
"""

from __future__ import annotations

import base64
import hashlib
import random


def step_result(run: int, position: int, size_bytes: int) -> str:
    """A text of about ``size_bytes`` that no other step of any run returns; cheap to make."""
    block = hashlib.blake2b(f"{run}/{position}".encode()).hexdigest()
    return (block * (size_bytes // len(block) + 1))[:size_bytes]


def turn_text(run: int, turn: int, size_bytes: int) -> str:
    """A text that does not compress, as the turns of a conversation hardly do."""
    return base64.b64encode(random.Random(run * 1_000_003 + turn).randbytes(size_bytes * 3 // 4)).decode()
