"""``EventLoopWatchdog``: reports which step keeps the event-loop thread from responding.

Owns one daemon thread. While coroutines run, it pings the loop and samples the
loop thread's stack when the ping is not answered. A blocked loop stalls *every*
async step of the process, so the log line says who, where and what to do.

Must never touch the loop other than through ``call_soon_threadsafe``, and never
interrupt it: such a step is only reported here; its timeout is handled elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import sysconfig
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType

logger = logging.getLogger(__name__)

PYTHONS_OWN_FOLDERS = tuple(
    folder for folder in (sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")) if folder
)


@dataclass(frozen=True, kw_only=True)
class Blockage:
    """The event-loop thread does not respond; ``label`` names the coroutine that blocks it."""

    label: str
    where: str
    """``file:line`` of the innermost frame that is neither Python's nor a package's, at the time of the report."""
    since: float
    """``time.monotonic`` of the ping that was not answered."""

    @property
    def seconds(self) -> float:
        """How long it has been blocked so far."""
        return time.monotonic() - self.since

    def __str__(self) -> str:
        return (
            f"the event-loop thread has been blocked for {self.seconds:.1f} s by {self.label} at {self.where}; "
            "every async step of this worker waits; use a def step or await asyncio.to_thread"
        )


class EventLoopWatchdog:
    """Pings the loop while ``busy`` is set; reports each block once."""

    def __init__(
        self,
        *,
        loop: asyncio.AbstractEventLoop,
        thread_ident: int,
        label_of_current_task: Callable[[], str],
        blocked_after_seconds: float,
        name: str,
    ) -> None:
        self.busy = threading.Event()
        self._loop = loop
        self._thread_ident = thread_ident
        self._label_of_current_task = label_of_current_task
        self._blocked_after_seconds = blocked_after_seconds
        self._stopped = threading.Event()
        self._current: Blockage | None = None
        self._thread = threading.Thread(target=self._watch, name=name, daemon=True)

    def start(self) -> None:
        """Start watching."""
        self._thread.start()

    def stop(self) -> None:
        """Stop watching; does not wait for the thread."""
        self._stopped.set()
        self.busy.set()

    def blocked(self) -> Blockage | None:
        """The current block, ``None`` if the loop responds."""
        return self._current

    def _watch(self) -> None:
        while True:
            self.busy.wait()
            if self._stopped.is_set():
                return
            answered = threading.Event()
            asked_at = time.monotonic()
            try:
                self._loop.call_soon_threadsafe(answered.set)
            except RuntimeError:  # the loop is closed
                return
            if not answered.wait(self._blocked_after_seconds):
                if self._stopped.is_set():
                    return
                self._report(asked_at)
                while not answered.wait(self._blocked_after_seconds):
                    if self._stopped.is_set():
                        return
                self._current = None
            self._stopped.wait(self._blocked_after_seconds / 4)

    def _report(self, asked_at: float) -> None:
        label = self._label_of_current_task()
        frame = sys._current_frames().get(self._thread_ident)
        self._current = Blockage(label=label, where=_users_place(frame), since=asked_at)
        logger.warning("%s", self._current, extra={"event": "event_loop_blocked", "step": label})


def _users_place(frame: FrameType | None) -> str:
    """``file:line`` of the innermost frame outside Python's library and installed packages."""
    innermost = frame
    while frame is not None:
        if not frame.f_code.co_filename.startswith((*PYTHONS_OWN_FOLDERS, "<")):
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return "an unknown place" if innermost is None else f"{innermost.f_code.co_filename}:{innermost.f_lineno}"
