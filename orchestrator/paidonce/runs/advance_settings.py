"""The settings that replay depends on."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from paidonce.replay.bounds import RunBounds

PYTHON_MINOR = f"{sys.version_info.major}.{sys.version_info.minor}"


@dataclass(frozen=True, kw_only=True, slots=True)
class AdvanceSettings:
    """The settings that replay depends on."""

    max_depth: int = 10
    slice_seconds: float = 5.0
    max_payload_bytes: int = 50 * 2**20
    cancel_grace_seconds: float = 60.0
    """How long the ``finally`` blocks of child runs that a parent cancels may take."""
    bounds: RunBounds = field(default_factory=RunBounds)
    """How much one run may request."""
