"""Runs the body of a step, ``def`` or ``async def``, so that other threads can stop it.

Sits between the executor's claim and its completion: claim (SQL) ->
``BodyRunner.run`` -> complete (SQL). Owns the table of bodies that run in this
process, their timeouts and their interruption. ``def`` bodies run in the calling
thread, ``async def`` bodies on the event-loop thread.

Must never touch the store or Celery, and never interrupt anything but the body:
once ``run`` has returned or raised, no interrupt of that body can strike.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import threading
import weakref
from collections.abc import Callable, Coroutine, Hashable, Mapping
from functools import partial

from paidonce.policies import leaves_of
from paidonce_models.errors import PaidonceError, StepInterrupt, StepTimedOut
from paidonce_workers.bodies.deadlines import Deadlines
from paidonce_workers.bodies.event_loop_thread import CoroutineCancelled, CoroutineHandle, EventLoopThread
from paidonce_workers.bodies.forked_bodies import call_in_this_process
from paidonce_workers.bodies.interrupt import (
    Reason,
    ThreadScope,
    call_interruptibly,
    current_task_scope,
    exception_type_for,
    shielded,
)

logger = logging.getLogger(__name__)


class BodyTimedOut(PaidonceError):
    """The body was stopped at its step's timeout. Not a ``TimeoutError``, which a body may raise itself."""

    code = "body_timed_out"

    def __init__(self, label: str, timeout_seconds: float | None, *, abandoned: bool = False) -> None:
        limit = "its time limit" if timeout_seconds is None else f"its timeout of {timeout_seconds:g} s"
        super().__init__(
            f"{label} ran longer than {limit} and was stopped; raise @step(timeout=...) or make it faster",
            label=label,
            timeout_seconds=timeout_seconds,
            abandoned=abandoned,
        )
        self.timeout_seconds = timeout_seconds
        self.abandoned = abandoned
        """True if an async body ignored its cancellation and still runs on the event-loop thread."""

    def to_json(self) -> dict[str, object]:
        """Under the name of the error that the agent sees."""
        return {**super().to_json(), "type": StepTimedOut.__name__, "code": StepTimedOut.code}


class BodyCancelled(PaidonceError):
    """The body was stopped by ``BodyRunner.interrupt``; ``reason`` says why."""

    code = "body_cancelled"

    def __init__(self, label: str, reason: Reason, *, abandoned: bool = False) -> None:
        super().__init__(f"{label} was stopped ({reason})", label=label, reason=str(reason), abandoned=abandoned)
        self.reason = reason
        self.abandoned = abandoned
        """True if an async body ignored its cancellation and still runs on the event-loop thread."""


class BodyExited(PaidonceError):
    """The body raised something that would end a thread or a process; treated as an ordinary failure of the step."""

    code = "body_exited"


class _Body:
    """A running body. The first reason to stop it wins."""

    def __init__(self, label: str, report_stuck: Callable[[_Body], object]) -> None:
        self.label = label
        self.reason: Reason | None = None
        self.ended = False
        self._lock = threading.Lock()
        self._report_stuck = report_stuck

    def interrupt(self, reason: Reason) -> bool:
        """Stop the body. True if it is running and was, or already is being, stopped."""
        with self._lock:
            if self.ended:
                return False
            if self.reason is None:
                self.reason = reason
                self._send(reason)
                self._report_stuck(self)
            return True

    def end(self) -> None:
        """From now on ``interrupt`` returns False."""
        with self._lock:
            self.ended = True

    def _send(self, reason: Reason) -> None:
        raise NotImplementedError

    def run(self, call: Callable[[], object]) -> object:
        """Run the body to its end in the calling thread."""
        raise NotImplementedError

    def give_up(self) -> None:
        """Abandon a body that was stopped and has not ended within the grace period."""
        raise NotImplementedError


class _DefBody(_Body):
    def __init__(self, label: str, report_stuck: Callable[[_Body], object]) -> None:
        super().__init__(label, report_stuck)
        self._scope = ThreadScope()

    def run(self, call: Callable[[], object]) -> object:
        return call_interruptibly(self._scope, partial(self._run_unless_stopped, call))

    def _run_unless_stopped(self, call: Callable[[], object]) -> object:
        if self.reason is not None:  # stopped before the scope was armed
            raise exception_type_for(self.reason)()
        return call()

    def _send(self, reason: Reason) -> None:
        self._scope.throw(exception_type_for(reason))

    def give_up(self) -> None:
        # Send it again: Python may have swallowed the first one in a finalizer.
        self._send(self.reason or Reason.CANCELLED)
        logger.warning(
            "%s was stopped (%s) but is blocked in a call that Python cannot interrupt; its thread is held until "
            "that call returns. Give its HTTP client or socket a timeout of its own",
            self.label,
            self.reason,
            extra={"event": "body_blocked_in_c", "step": self.label},
        )


class _AsyncBody(_Body):
    def __init__(self, label: str, report_stuck: Callable[[_Body], object], event_loop: EventLoopThread) -> None:
        super().__init__(label, report_stuck)
        self._event_loop = event_loop
        self._handle: CoroutineHandle[object] | None = None

    def run(self, call: Callable[[], object]) -> object:
        coroutine = call()
        if not isinstance(coroutine, Coroutine):
            raise TypeError(f"{self.label} was declared async but returned {type(coroutine).__name__}, not a coroutine")
        handle = self._event_loop.submit(coroutine, label=self.label)
        with self._lock:
            self._handle = handle
            if self.reason is not None:
                handle.cancel(self.reason)
        try:
            handle.wait()
        except BaseException:  # SIGINT in the main thread of a prefork or solo worker
            handle.cancel("its thread was interrupted")
            raise
        return handle.result()

    def _send(self, reason: Reason) -> None:
        if self._handle is not None:
            self._handle.cancel(reason)

    def give_up(self) -> None:
        if self._handle is not None:
            self._handle.abandon()


class BodyRunner:
    """The bodies of this process by key. All methods are thread-safe; a forked child starts empty."""

    def __init__(
        self,
        *,
        event_loop: EventLoopThread | None = None,
        deadlines: Deadlines | None = None,
        cancel_grace_seconds: float = 5.0,
    ) -> None:
        self.event_loop = EventLoopThread() if event_loop is None else event_loop
        self.deadlines = Deadlines() if deadlines is None else deadlines
        self._cancel_grace_seconds = cancel_grace_seconds
        self._begin_empty()
        this = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _begin_empty_if_alive(this))

    def _begin_empty(self) -> None:
        self._lock = threading.Lock()
        self._bodies: dict[Hashable, _Body] = {}

    def run(
        self,
        key: Hashable,
        fn: Callable[..., object],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
        *,
        is_async: bool,
        timeout_seconds: float | None,
        label: str,
    ) -> object:
        """Run ``fn`` in a copy of the caller's context and return its value.

        Raises what the body raised, including a ``TimeoutError`` of its own;
        ``BodyTimedOut`` or ``BodyCancelled`` if it was stopped; ``BodyExited`` if it
        raised ``SystemExit`` or ``KeyboardInterrupt``, or cancelled itself. A value
        that the body returned while it was being stopped is returned, because it was
        paid for. ``key`` must be unique among running bodies (run, position, attempt).
        ``timeout_seconds``: ``None`` is no limit, 0 expires at once.
        """
        body: _Body = (
            _AsyncBody(label, self._watch_for_stuck, self.event_loop)
            if is_async
            else _DefBody(label, self._watch_for_stuck)
        )
        call = partial(call_in_this_process, partial(contextvars.copy_context().run, fn, *args, **(kwargs or {})))
        with shielded():
            task = current_task_scope.get()
            with self._lock:
                if key in self._bodies:
                    raise PaidonceError(f"{label} is already running in this process (key {key!r}); wait for it to end")
                self._bodies[key] = body
            deadline = None
            try:
                kept = None if task is None else task.enter_body(body)
                if kept is not None:
                    body.interrupt(kept)
                if timeout_seconds is not None:
                    deadline = self.deadlines.add(timeout_seconds, partial(body.interrupt, Reason.TIMED_OUT))
                return self._outcome(body, call, timeout_seconds)
            finally:
                body.end()
                if deadline is not None:
                    deadline.cancel()
                if task is not None:
                    task.leave_body()
                with self._lock:
                    del self._bodies[key]

    def interrupt(self, key: Hashable, reason: Reason = Reason.CANCELLED) -> bool:
        """Stop the body of ``key``; False if none runs here. Idempotent: the first reason wins."""
        with self._lock:
            body = self._bodies.get(key)
        return body is not None and body.interrupt(reason)

    def interrupt_all(self, reason: Reason) -> list[Hashable]:
        """Stop every body; returns the keys of those that were still running."""
        return [key for key in self.running() if self.interrupt(key, reason)]

    def running(self) -> list[Hashable]:
        """The keys of the running bodies, in the order they started."""
        with self._lock:
            return list(self._bodies)

    def close(self) -> bool:
        """Stop the event-loop thread; False if something on it did not end."""
        return self.event_loop.close()

    def _outcome(self, body: _Body, call: Callable[[], object], timeout_seconds: float | None) -> object:
        try:
            return body.run(call)
        except BaseException as error:
            # After a stop request, any exception of the body means that it stopped.
            if body.reason is not None:
                abandoned = isinstance(error, CoroutineCancelled) and error.abandoned
                if body.reason is Reason.TIMED_OUT:
                    raise BodyTimedOut(body.label, timeout_seconds, abandoned=abandoned) from error
                raise BodyCancelled(body.label, body.reason, abandoned=abandoned) from error
            if isinstance(error, (CoroutineCancelled, asyncio.CancelledError)):
                raise BodyExited(f"{body.label} cancelled itself; raise an ordinary exception instead") from error
            if (not isinstance(error, Exception) and not _is_group_of_failures(error)) or isinstance(
                error, StepInterrupt
            ):
                raise BodyExited(
                    f"{body.label} raised {type(error).__name__}, which would end the worker; "
                    "raise an ordinary exception instead"
                ) from error
            raise

    def _watch_for_stuck(self, body: _Body) -> None:
        def give_up_unless_ended() -> None:
            if not body.ended:
                body.give_up()

        self.deadlines.add(self._cancel_grace_seconds, give_up_unless_ended)


def _is_group_of_failures(error: BaseException) -> bool:
    """Whether this group is no ``Exception`` only because of the cancellations that its errors caused."""
    return isinstance(error, BaseExceptionGroup) and all(isinstance(leaf, Exception) for leaf in leaves_of(error))


def _begin_empty_if_alive(reference: weakref.ref[BodyRunner]) -> None:
    runner = reference()
    if runner is not None:
        runner._begin_empty()
