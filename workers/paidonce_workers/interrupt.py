"""Interrupting work that runs in another thread, without ever hitting the work after it.

Owns ``ThreadScope``, a stretch of one thread's work that other threads may
interrupt, and ``call_interruptibly``, which runs a callable as such a stretch.
CPython raises an exception in another thread at that thread's next bytecode
(``PyThreadState_SetAsyncExc``); the slot is the *thread's*, not the task's, so
a late interrupt would hit whatever the thread does next. Hence the lock, the
"armed" flag and the clearing on the way out.

Must never: interrupt a call that is blocked in C (CPython cannot; HTTP clients
need time-outs of their own), or let an interrupt out of ``call_interruptibly``
after it has returned.

A pool thread has two levels: the Celery task's ``TaskScope`` (opened by
``pool.TaskPool``) and the step's body inside it (``body_runner.BodyRunner``).
What interrupts the task is handed to the body where one is running, and kept
for the next body while the task is ``shielded()`` (claiming, completing).
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from enum import StrEnum
from typing import Protocol, TypeVar

from paidonce_models.errors import StepInterrupt

T = TypeVar("T")

_set_async_exc = ctypes.pythonapi.PyThreadState_SetAsyncExc
_set_async_exc.argtypes = (ctypes.c_ulong, ctypes.py_object)
_set_async_exc.restype = ctypes.c_int


class Reason(StrEnum):
    """Why work is interrupted."""

    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    """Its run was cancelled."""
    REVOKED = "revoked"
    """Somebody revoked the Celery task with ``terminate=True``."""
    HANDED_BACK = "handed_back"
    """The worker stops; another one takes the step."""
    FENCED = "fenced"
    """The lease was lost: another worker holds the step now."""


class TimeoutInterrupt(StepInterrupt):
    """The step ran longer than its timeout."""


class CancelInterrupt(StepInterrupt):
    """The step is no longer wanted."""


class HandBackInterrupt(StepInterrupt):
    """The worker stops and hands the step back."""


def exception_type_for(reason: Reason) -> type[StepInterrupt]:
    """What a ``def`` body sees raised; an ``async def`` body sees ``asyncio.CancelledError``."""
    if reason is Reason.TIMED_OUT:
        return TimeoutInterrupt
    if reason is Reason.HANDED_BACK:
        return HandBackInterrupt
    return CancelInterrupt


class Interruptible(Protocol):
    """Something that runs and can be asked to stop from another thread."""

    def interrupt(self, reason: Reason) -> bool:
        """Ask it to stop; False if it has ended."""


class ThreadScope:
    """A stretch of one thread's work; armed between ``open`` and ``close``, both called by that thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread_ident = 0
        self._armed = False
        self._closing = False
        self.sent: type[BaseException] | None = None
        """The last exception type sent into the thread, None if none was."""

    def open(self) -> None:
        """Arm the scope for the calling thread."""
        with self._lock:
            self._thread_ident = threading.get_ident()
            self._armed = True

    def close(self) -> None:
        """Disarm the scope and take back what was sent and has not struck yet.

        May itself be struck by an interrupt that was sent before: call again.
        """
        # Stops further senders before the lock is taken, so that at most what is
        # already on its way can strike here.
        self._closing = True
        with self._lock:
            if self._armed:
                self._armed = False
                if self.sent is not None:
                    _absorb(self._thread_ident, self.sent)

    def throw(self, exception_type: type[BaseException]) -> bool:
        """Raise ``exception_type`` in the scope's thread at its next bytecode; False when it is not armed."""
        with self._lock:
            if not self._armed or self._closing:
                return False
            self.sent = exception_type
            # Under the lock: `close` cannot return between the check and the sending.
            return bool(_set_async_exc(self._thread_ident, ctypes.py_object(exception_type)) == 1)


def _absorb(thread_ident: int, exception_type: type[BaseException]) -> None:
    """In the thread itself: let what was sent and has not struck yet strike here, where it is swallowed.

    NULL would clear the slot but leave CPython's eval breaker set for good, which
    slows the thread and, on 3.11 with a profile function, makes it spin.
    """
    try:
        # Sent until it strikes here: a finalizer that the garbage collector runs in this thread may swallow one.
        while True:
            _set_async_exc(thread_ident, ctypes.py_object(exception_type))
    except exception_type:
        return


def call_interruptibly(scope: ThreadScope, body: Callable[[], T]) -> T:
    """Run ``body`` in this thread as ``scope``; what it raises, or an interrupt sent to it, comes out.

    A result that ``body`` returned is kept even if an interrupt strikes just
    after it: the work was paid. When this function has returned or raised, no
    interrupt of ``scope`` can strike any more.
    """
    outcome: list[T] = []
    error: BaseException | None = None
    # Three nested levels because an interrupt can strike in the exit path itself,
    # and a second and third (soft limit, hard limit, revoke) while the one before is
    # handled. `close` refuses new ones from its first line on.
    try:
        try:
            try:
                scope.open()
                outcome.append(body())
            except BaseException as raised:  # noqa: BLE001 - re-raised below
                error = raised
            scope.close()
        except BaseException as struck:  # noqa: BLE001 - re-raised below
            error = struck if error is None else error
            scope.close()
    except BaseException as struck:  # noqa: BLE001 - re-raised below
        error = struck if error is None else error
        scope.close()
    if outcome:
        return outcome[0]
    if error is None:  # pragma: no cover - a body either returns or raises
        raise RuntimeError("the body neither returned nor raised; this is a bug in Paidonce")
    try:
        raise error
    finally:
        del error  # breaks the cycle frame -> error -> traceback -> frame


class TaskScope(ThreadScope):
    """The scope of a whole Celery task: hands interrupts on to the body that runs inside it."""

    def __init__(self) -> None:
        super().__init__()
        self._state = threading.Lock()
        self._shields = 0
        self._body: Interruptible | None = None
        self._kept: Reason | None = None

    def interrupt(self, reason: Reason, exception_type: type[BaseException] | None = None) -> bool:
        """Interrupt the body if one runs, keep the reason while shielded, else throw into the task.

        ``exception_type`` is what a task that is no step sees (Celery's soft limit
        has an exception of its own). False if the task has ended.
        """
        with self._state:
            if self._body is not None:
                return self._body.interrupt(reason)
            if self._shields:
                self._kept = reason if self._kept is None else self._kept
                return True
            return self.throw(exception_type_for(reason) if exception_type is None else exception_type)

    def shield(self, change: int) -> None:
        """Begin (+1) or end (-1) a stretch that must not be interrupted."""
        with self._state:
            self._shields += change

    def enter_body(self, body: Interruptible) -> Reason | None:
        """Name the body that takes interrupts from now on; returns a reason that was kept for it."""
        with self._state:
            self._body = body
            return self._kept

    def leave_body(self) -> None:
        """The body has ended."""
        with self._state:
            self._body = None


current_task_scope: ContextVar[TaskScope | None] = ContextVar("current_task_scope", default=None)
"""The scope of the Celery task that this thread runs; None under prefork, solo and in tests."""


@contextmanager
def shielded() -> Iterator[None]:
    """Keep Celery's limits and revokes out of this stretch of the current task (claim, complete).

    A reason that arrives meanwhile is given to the next step body of this task
    and dropped if there is none. Does nothing outside of our pool.
    """
    scope = current_task_scope.get()
    if scope is None:
        yield
        return
    scope.shield(+1)
    try:
        yield
    finally:
        scope.shield(-1)
