"""The interface of a replay loop for its tasks, for asyncio's functions and for eviction."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from paidonce.replay.forbidden_calls import RefusingLoop


class DeterministicLoop(RefusingLoop):
    """The part of ``ReplayLoop`` that the modules below it know."""

    def next_ordinal(self) -> int:
        """The number of the next object created on this loop: the same on every replay."""
        raise NotImplementedError

    def live_tasks(self) -> Sequence[asyncio.Task[Any]]:
        """The tasks that have not ended, in order of creation."""
        raise NotImplementedError

    def held(self) -> list[object]:
        """Everything through which this loop keeps parts of the run alive; for eviction."""
        raise NotImplementedError

    def forget_everything(self) -> None:
        """Close the loop and drop what it holds; ``eviction.discard`` has made sure that nothing runs."""
        raise NotImplementedError
