"""Names of queues: everything of Paidonce on a broker carries one prefix."""

from __future__ import annotations

PREFIX = "paidonce."
DEFAULT_QUEUE = "paidonce.default"
SUBMIT_QUEUE = "paidonce.submit"


def full_queue_name(name: str) -> str:
    """``x`` and ``paidonce.x`` both mean the queue ``paidonce.x``."""
    return name if name.startswith(PREFIX) else PREFIX + name
