"""The messages between the process that runs a body and the one that waits, pickled between processes of one code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from paidonce.policies import Failure
from paidonce_models.pricing import PriceRow
from paidonce_models.store.steps.claims import Claim
from paidonce_models.usage import CallRecord
from paidonce_workers.bodies.blocked_attempts import BlockedAttempt

MASKED_NAMES: Final = "PAIDONCE_MASKED_NAMES"
"""The environment variable that lists the names to mask in what the child prints."""
TELL_SECONDS: Final = 1.0
"""Seconds between reports: the process that renews the lease learns what the step spends, and outlives the child."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """The child's input. ``word`` marks the frames of its output."""

    claim: Claim
    modules: tuple[str, ...]
    provider_hosts: tuple[tuple[str, str], ...]
    price_rows: tuple[PriceRow, ...]
    word: bytes


@dataclass(frozen=True)
class ErrorInChild:
    """The body's error, with its traceback as text and its classification for policies.

    The exception and its classes stay in the child.
    """

    error: dict[str, object]
    traceback: str
    failure: Failure


@dataclass(frozen=True)
class Message:
    """The child's output: calls that have finished since the last message, and at the end what became of the body."""

    calls: list[CallRecord]
    answer: bytes | ErrorInChild | BlockedAttempt | None = None
    awaited: Sequence[CallRecord] = ()
    """The calls whose usage the body is waiting for."""
