"""``Faults``: an error inside the capture is logged once and goes no further.

The user's call comes first: whatever fails in the capture, the request, its
response and its errors pass as if nothing watched. Never logs the message or a
value of an exception, because these may quote a prompt.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)


class Faults:
    """The faults of one installation."""

    def __init__(self) -> None:
        self._told: set[tuple[str, str]] = set()

    @contextmanager
    def contained(self, doing: str) -> Iterator[None]:
        """Swallow and log every error in this block, except an interrupt of the step."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - see above
            self.tell(doing, error)

    def tell(self, doing: str, error: Exception) -> None:
        """Log the first error of each kind."""
        kind = (doing, type(error).__name__)
        if kind in self._told:
            return
        self._told.add(kind)
        place = error.__traceback__
        while place is not None and place.tb_next is not None:
            place = place.tb_next
        where = "" if place is None else f" at {place.tb_frame.f_code.co_filename}:{place.tb_lineno}"
        log.warning(
            "usage capture failed while %s (%s%s); the call was not affected, its usage may be missing from the ledger",
            doing,
            type(error).__name__,
            where,
            extra={"event": "capture_failed"},
        )
