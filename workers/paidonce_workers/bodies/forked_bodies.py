"""Processes that a step's body forks: each becomes a program of its own, not a part of the worker.

The child has a copy of the worker's thread, down to its first frame, and must run none of that. When the body's code
in the child ends, the process ends, with the exit code that Python uses for such an end. Signals act as in any
program. What it pays for is only logged, because nothing that it records reaches the store.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final, NoReturn, TypeVar

from paidonce.declarations.current_step import executing
from paidonce.policies.attempt_policies import attempt_policies
from paidonce.usage.call_recorder import CallRecorder, current_recorder
from paidonce.usage.captured_calls import CapturedCall
from paidonce_models.usage import CallRecord, Usage

log = logging.getLogger(__name__)

T = TypeVar("T")

_OURS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR2)
_LOST_LOOP: Final = 70


class ForkedRecorder(CallRecorder):
    """Replaces the parent's recorder in a forked child, because the parent's lock may be held for ever."""

    def append(self, call: CallRecord, usage: Usage | None = None, ids: tuple[str, ...] = ()) -> None:
        """Log that the ledger will not contain this call."""
        tell_unseen(call.provider or "a provider")

    def append_captured(self, captured: CapturedCall) -> None:
        """As above."""
        tell_unseen(captured.call.provider or "a provider")


def tell_unseen(whom: str) -> None:
    """Log a call that was paid for in a forked child."""
    step = executing.get(None)
    log.warning(
        "a process forked by the step %s paid for a call to %s, which is not in the ledger; return its response, "
        "or its numbers, to the step and call record_usage there, or use threads",
        "that it belongs to" if step is None else step.name,
        whom,
        extra={"event": "call_in_forked_child", "run_id": None if step is None else step.run_id},
    )


class SignalsAtFork:
    """Gives a child that a step forks the signal handling of an ordinary program."""

    def __init__(self) -> None:
        self._masks: dict[int, set[int | signal.Signals]] = {}
        os.register_at_fork(before=self.hold, after_in_parent=self.release, after_in_child=self.become_a_program)

    def hold(self) -> None:
        """Block signals: one that arrives before the child has its own handlers would run the parent's."""
        if current_recorder.get() is not None:
            self._masks[threading.get_ident()] = signal.pthread_sigmask(signal.SIG_BLOCK, _OURS)

    def release(self) -> None:
        """Unblock them, in parent and child, once the child's handlers are in place."""
        mask = self._masks.pop(threading.get_ident(), None)
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def become_a_program(self) -> None:
        """Runs in each forked child, except for those of a pool, which belong to no step."""
        if current_recorder.get() is not None:
            current_recorder.set(ForkedRecorder())
            attempt_policies.set(None)
            signal.set_wakeup_fd(-1)  # it would wake the parent
            for number in _OURS:
                if callable(signal.getsignal(number)):
                    signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        self.release()


_signals: Final = SignalsAtFork()


def call_in_this_process(call: Callable[[], T]) -> T:
    """Call it. In a child that it forked, end the process where the call returns or raises."""
    began_in = os.getpid()
    try:
        value = call()
    except BaseException as error:
        if os.getpid() != began_in:
            end_as_python_does(error)
        raise
    if os.getpid() != began_in:
        end_as_python_does(None)
    return value


async def await_in_this_process(coroutine: Awaitable[T]) -> T:
    """The same for an ``async def``; runs inside the loop, whose epoll instance a forked child shares."""
    began_in = os.getpid()
    try:
        value = await coroutine
    except BaseException as error:
        if os.getpid() != began_in:
            end_as_python_does(error)
        raise
    if os.getpid() != began_in:
        end_as_python_does(None)
    return value


def end_as_python_does(error: BaseException | None) -> NoReturn:
    """End this forked child as Python ends a program after ``error``; runs no inherited exit handlers."""
    code = 0
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    elif error is not None:
        traceback.print_exception(error)
        code = 1
    _end(code)


def _end(code: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):  # the reader is gone, or it was closed
            continue
    os._exit(code & 0xFF)


class EndOfLoop(deque[Any]):
    """Replaces the queue of the parent's event loop in a forked child, so that the loop ends the process.

    The child has a copy of the loop's state and shares its epoll instance. If the loop continued, it would run every
    other step of the parent a second time.
    """

    def append(self, handle: Any, /) -> None:
        """Drop it: nothing runs any more."""

    def popleft(self) -> NoReturn:
        """Called by the loop once the body's code has awaited something."""
        print(
            "a process that was forked in an `async def` step cannot await anything on the worker's event loop; "
            "use asyncio.run in it, or fork in a `def` step",
            file=sys.stderr,
        )
        _end(_LOST_LOOP)

    def __len__(self) -> int:
        return 1
