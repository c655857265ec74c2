"""What a process is that a step's body forks: a program of its own, and no part of the worker.

The child has a copy of the worker's one thread, up to its first frame. It must run nothing of that: where the body's
code in the child comes to its end, the process ends, with the exit code that Python gives such an end. Signals do in
it what they do in any program, and what it pays is said in the log, as nothing that it knows reaches the store.
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

from paidonce.attempt_policies import attempt_policies
from paidonce.captured_calls import CapturedCall
from paidonce.current_step import executing
from paidonce.usage import CallRecorder, current_recorder
from paidonce_models.usage import CallRecord, Usage

log = logging.getLogger(__name__)

T = TypeVar("T")

_OURS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR2)
_LOST_LOOP: Final = 70


class ForkedRecorder(CallRecorder):
    """Stands in a forked child where its parent's recorder stood, whose lock may be held for ever."""

    def append(self, call: CallRecord, usage: Usage | None = None, ids: tuple[str, ...] = ()) -> None:
        """Say that the ledger will not have it."""
        tell_unseen(call.provider or "a provider")

    def append_captured(self, captured: CapturedCall) -> None:
        """As above."""
        tell_unseen(captured.call.provider or "a provider")


def tell_unseen(whom: str) -> None:
    """A call was paid in a forked child."""
    step = executing.get(None)
    log.warning(
        "a process that the step %s has forked pays a call of %s, which is not in the ledger; return its response, "
        "or its numbers, to the step and call record_usage there, or use threads",
        "it belongs to" if step is None else step.name,
        whom,
        extra={"event": "call_in_forked_child", "run_id": None if step is None else step.run_id},
    )


class SignalsAtFork:
    """What signals do in a child that a step forks: what they do in any program."""

    def __init__(self) -> None:
        self._masks: dict[int, set[int | signal.Signals]] = {}
        os.register_at_fork(before=self.hold, after_in_parent=self.release, after_in_child=self.become_a_program)

    def hold(self) -> None:
        """One that comes before the child has its own handlers would be taken by ours, which is the parent's."""
        if current_recorder.get() is not None:
            self._masks[threading.get_ident()] = signal.pthread_sigmask(signal.SIG_BLOCK, _OURS)

    def release(self) -> None:
        """In both, once the child's are in place."""
        mask = self._masks.pop(threading.get_ident(), None)
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def become_a_program(self) -> None:
        """In each forked child; that of a pool is none of a step."""
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
    """Call it, and go no further where it comes back, by value or exception, in a child that it has forked."""
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
    """The same for an ``async def``; inside the loop, whose epoll instance a forked child shares."""
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
    """End this forked child as a program whose main module ended so; runs nobody's exit handlers."""
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
        except (OSError, ValueError, AttributeError):  # nobody reads, or it was closed
            continue
    os._exit(code & 0xFF)


class EndOfLoop(deque[Any]):
    """In a forked child: what the parent's event loop has to run next, which is the end of the process.

    The child has the loop's whole state and shares its epoll instance; going on with it would run every other step of
    the parent a second time.
    """

    def append(self, handle: Any, /) -> None:
        """Nothing is run any more."""

    def popleft(self) -> NoReturn:
        """Asked for by the loop once the body's code has awaited something."""
        print(
            "a process that was forked in an `async def` step cannot await anything on the worker's event loop; "
            "use asyncio.run in it, or fork in a `def` step",
            file=sys.stderr,
        )
        _end(_LOST_LOOP)

    def __len__(self) -> int:
        return 1
