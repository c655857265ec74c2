"""Interrupts work in another thread, without ever hitting the work after it.

Owns ``ThreadScope``, a section of one thread's work that other threads may
interrupt, and ``call_interruptibly``, which runs a callable as such a section.
CPython raises an exception in another thread at that thread's next bytecode
(``PyThreadState_SetAsyncExc``). The pending exception belongs to the *thread*, not
to the task, so a late interrupt would hit whatever the thread does next. Hence the
lock, the "armed" flag and the clearing on the way out.

Must never let an interrupt escape from ``call_interruptibly`` after it has returned.
Cannot interrupt a call that is blocked in C (CPython cannot): HTTP clients need
timeouts of their own.

A pool thread has two levels: the Celery task's ``TaskScope`` (opened by
``thread_pool.TaskPool``) and the step's body inside it (``body_runner.BodyRunner``).
An interrupt of the task is forwarded to the body if one is running, and kept for
the next body while the task is ``shielded()`` (claiming, completing).

Our own code that a body calls, and that takes locks or starts threads, runs under
``interrupts_deferred``: an interrupt waits until the end of that section.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ContextDecorator, contextmanager
from contextvars import ContextVar
from enum import StrEnum
from typing import Protocol, TypeVar

from paidonce_models.errors import StepInterrupt

T = TypeVar("T")

_set_async_exc = ctypes.pythonapi.PyThreadState_SetAsyncExc
_set_async_exc.argtypes = (ctypes.c_ulong, ctypes.py_object)
_set_async_exc.restype = ctypes.c_int
_of_thread = threading.local()
"""``scope``: the innermost open scope of the thread."""
# A thread of the parent may have held the scope's lock at the fork, and no thread of the child would ever release it.
# A child of a body is never interrupted, so it has no scope.
os.register_at_fork(after_in_child=lambda: setattr(_of_thread, "scope", None))


class Reason(StrEnum):
    """Why work is interrupted."""

    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    """Its run was cancelled."""
    REVOKED = "revoked"
    """The Celery task was revoked with ``terminate=True``."""
    HANDED_BACK = "handed_back"
    """The worker is stopping; another one executes the step."""
    FENCED = "fenced"
    """The lease was lost: another worker holds the step now."""


class TimeoutInterrupt(StepInterrupt):
    """The step ran longer than its timeout."""


class CancelInterrupt(StepInterrupt):
    """The step is no longer wanted."""


class HandBackInterrupt(StepInterrupt):
    """The worker is stopping and releases the step."""


def exception_type_for(reason: Reason) -> type[StepInterrupt]:
    """The exception raised in a ``def`` body; an ``async def`` body sees ``asyncio.CancelledError``."""
    if reason is Reason.TIMED_OUT:
        return TimeoutInterrupt
    if reason is Reason.HANDED_BACK:
        return HandBackInterrupt
    return CancelInterrupt


class Interruptible(Protocol):
    """Running work that another thread can stop."""

    def interrupt(self, reason: Reason) -> bool:
        """Request it to stop; False if it has ended."""


class ThreadScope:
    """A section of one thread's work; armed between ``open`` and ``close``, both called by that thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread_ident = 0
        self._armed = False
        self._closing = False
        self._outer: ThreadScope | None = None
        self._deferrals = 0
        """How many ``interrupts_deferred`` blocks its thread is in; only that thread writes it."""
        self._deferred: type[BaseException] | None = None
        self.sent: type[BaseException] | None = None
        """The last exception type sent into the thread, ``None`` if none was."""

    def open(self) -> None:
        """Arm the scope for the calling thread."""
        with self._lock:
            self._thread_ident = threading.get_ident()
            self._outer = getattr(_of_thread, "scope", None)
            _of_thread.scope = self
            self._armed = True

    def close(self) -> None:
        """Disarm the scope and clear what was sent and has not struck yet.

        An interrupt that was sent before may strike in here; then call it again.
        """
        # Stops further senders before the lock is taken, so that at most the
        # interrupt already in flight can strike here.
        self._closing = True
        if getattr(_of_thread, "scope", None) is self:
            _of_thread.scope = self._outer
        with self._lock:
            if self._armed:
                self._armed = False
                if self.sent is not None:
                    _absorb(self._thread_ident, self.sent)

    def throw(self, exception_type: type[BaseException]) -> bool:
        """Raise ``exception_type`` in the scope's thread at its next bytecode; False if it is not armed.

        If that thread is under ``interrupts_deferred``, the exception is raised at the end of the block.
        """
        with self._lock:
            if not self._armed or self._closing:
                return False
            if self._deferrals:
                self._deferred = exception_type
                return True
            self.sent = exception_type
            # Under the lock: `close` cannot return between the check and the sending.
            return bool(_set_async_exc(self._thread_ident, ctypes.py_object(exception_type)) == 1)


class _InterruptsDeferred(ContextDecorator):
    """See ``interrupts_deferred``. Stateless: one object serves all threads."""

    def __enter__(self) -> None:
        scope: ThreadScope | None = getattr(_of_thread, "scope", None)
        if scope is None:
            return
        before = scope._deferrals
        try:
            scope._deferrals = before + 1
            # A sender that found no deferral a moment ago has sent by the time the lock is free, so its interrupt
            # strikes here and not in the block. A sender that takes the lock after us sees the deferral.
            with scope._lock:
                pass
            _look_for_interrupts()
        except BaseException:
            scope._deferrals = before
            raise

    def __exit__(self, *raised: object) -> None:
        scope: ThreadScope | None = getattr(_of_thread, "scope", None)
        if scope is None:
            return
        scope._deferrals -= 1  # from here on an interrupt strikes at once, even in these lines; then that one is raised
        if scope._deferrals == 0 and scope._deferred is not None:
            with scope._lock:
                deferred, scope._deferred = scope._deferred, None
            raise deferred


interrupts_deferred = _InterruptsDeferred()
"""``with interrupts_deferred:``, or a decorator: an interrupt of this thread waits until the block ends.

For short sections of our own code that hold ordinary locks, use executors or start threads: an interrupt inside
``threading.Condition`` leaves it locked for ever, and until CPython 3.12 one may strike a thread that is just being
started. A pending interrupt is raised at the end, in place of the block's result. Does nothing in other threads.
Defers ``ThreadScope.throw``, not signal handlers. Never ``await`` or run user code inside.
"""


def _look_for_interrupts() -> None:
    """CPython checks for interrupts at the start of every function."""


def _absorb(thread_ident: int, exception_type: type[BaseException]) -> None:
    """Called by the thread itself: let a pending interrupt strike here, where it is swallowed.

    Sending NULL would clear the slot but leave CPython's eval breaker set for good, which
    slows the thread and, on 3.11 with a profile function, makes it spin.
    """
    try:
        # Sent until it strikes here: a finalizer that the garbage collector runs in this thread may swallow one.
        while True:
            _set_async_exc(thread_ident, ctypes.py_object(exception_type))
    except exception_type:
        return


def call_interruptibly(scope: ThreadScope, body: Callable[[], T]) -> T:
    """Run ``body`` in this thread as ``scope``; passes on its exception, or an interrupt that was sent to it.

    A result that ``body`` returned is kept even if an interrupt strikes just after
    it, because the work was paid for. Once this function has returned or raised, no
    interrupt of ``scope`` can strike.
    """
    outcome: list[T] = []
    error: BaseException | None = None
    # Three nested levels, because an interrupt can strike in the exit path itself,
    # and a second and third (soft limit, hard limit, revoke) while the previous one
    # is handled. `close` refuses new ones from its first line on.
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
    """The scope of a whole Celery task: forwards interrupts to the body that runs inside it."""

    def __init__(self) -> None:
        super().__init__()
        self._state = threading.Lock()
        self._shields = 0
        self._body: Interruptible | None = None
        self._kept: Reason | None = None

    def interrupt(self, reason: Reason, exception_type: type[BaseException] | None = None) -> bool:
        """Interrupt the body if one runs, keep the reason while shielded, else throw into the task.

        ``exception_type`` is raised in a task that is no step (Celery's soft limit
        has its own exception). False if the task has ended.
        """
        with self._state:
            if self._body is not None:
                return self._body.interrupt(reason)
            if self._shields:
                self._kept = reason if self._kept is None else self._kept
                return True
            return self.throw(exception_type_for(reason) if exception_type is None else exception_type)

    def shield(self, change: int) -> None:
        """Start (+1) or end (-1) a section that must not be interrupted."""
        with self._state:
            self._shields += change

    def enter_body(self, body: Interruptible) -> Reason | None:
        """Register the body that receives interrupts from now on; returns a reason that was kept for it."""
        with self._state:
            self._body = body
            return self._kept

    def leave_body(self) -> None:
        """The body has ended."""
        with self._state:
            self._body = None


current_task_scope: ContextVar[TaskScope | None] = ContextVar("current_task_scope", default=None)
"""The scope of the Celery task that this thread runs; ``None`` under prefork, solo and in tests."""


@contextmanager
def shielded() -> Iterator[None]:
    """Keep Celery's limits and revokes out of this section of the current task (claim, complete).

    A reason that arrives meanwhile is kept for the next step body of this task, and
    dropped if there is none. Does nothing outside our pool.
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
