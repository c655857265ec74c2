"""One asyncio event loop in one thread per process, which runs all async steps.

Owns the loop, its thread, the executor behind ``asyncio.to_thread`` and the
watchdog (``event_loop_watchdog``). Worker threads submit coroutines with ``submit`` or
``run`` and wait, so that a process can hold hundreds of waiting async steps which
share one HTTP client.

Must never run a coroutine in the caller's thread, and never let one coroutine
end the loop: ``sys.exit()`` in a step is that step's failure. Knows nothing of
steps, leases or Celery; ``body_runner`` is its caller.

Everything starts with the first coroutine and belongs to the process that
submitted it: a forked child starts its own loop.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import threading
import weakref
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from paidonce_models.errors import PaidonceError
from paidonce_models.privacy.log_texts import failure_of
from paidonce_workers.bodies.event_loop_watchdog import Blockage, EventLoopWatchdog
from paidonce_workers.bodies.forked_bodies import EndOfLoop, await_in_this_process

logger = logging.getLogger(__name__)

T = TypeVar("T")

THREADS_BEHIND_TO_THREAD = 64
"""With asyncio's default of CPUs + 4, six blocking calls would stall sixty async steps."""

_label: contextvars.ContextVar[str] = contextvars.ContextVar("event_loop_label", default="unnamed coroutine")


class CoroutineCancelled(PaidonceError):
    """The coroutine was cancelled. ``reason``: the argument of ``cancel``, ``None`` if it cancelled itself."""

    code = "coroutine_cancelled"

    def __init__(self, label: str, reason: str | None, *, abandoned: bool = False) -> None:
        by = "by itself" if reason is None else f"({reason})"
        super().__init__(f"{label} was cancelled {by}", label=label, reason=reason, abandoned=abandoned)
        self.reason = reason
        self.abandoned = abandoned


class CoroutineTimedOut(PaidonceError):
    """A coroutine did not end within the time given to ``EventLoopThread.run``."""

    code = "coroutine_timed_out"


class CoroutineHandle(Generic[T]):
    """A coroutine on the loop, as other threads see it."""

    def __init__(self, owner: EventLoopThread, label: str) -> None:
        self.label = label
        self.cancel_reason: str | None = None
        self._owner = owner
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._value: list[T] = []
        self._error: BaseException | None = None
        self._task: asyncio.Task[None] | None = None

    def cancel(self, reason: str) -> bool:
        """Cancel the coroutine from any thread; the first reason wins. False if it has ended."""
        with self._lock:
            if self._ended.is_set():
                return False
            if self.cancel_reason is None:
                self.cancel_reason = reason
        self._owner._call_soon(self._cancel_task)
        return True

    def abandon(self) -> bool:
        """Stop waiting for a cancelled coroutine that does not end, and log its label. False if it has ended."""
        given_up = self._settle(error=CoroutineCancelled(self.label, self.cancel_reason, abandoned=True))
        if given_up:
            logger.warning(
                "%s was cancelled (%s) and has not ended; it is left running on the event-loop thread. "
                "It swallows asyncio.CancelledError, or the event-loop thread is blocked",
                self.label,
                self.cancel_reason,
                extra={"event": "coroutine_abandoned", "step": self.label},
            )
        return given_up

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Wait until the coroutine has ended or was abandoned; False if ``timeout_seconds`` passed first."""
        return self._ended.wait(timeout_seconds)

    def result(self, timeout_seconds: float | None = None) -> T:
        """The coroutine's value, or the error it raised. Raises ``CoroutineTimedOut`` if it has not ended by then."""
        if not self.wait(timeout_seconds):
            raise CoroutineTimedOut(f"{self.label} has not ended within {timeout_seconds} s; it still runs")
        if self._error is not None:
            try:
                raise self._error
            finally:
                del self  # breaks the cycle handle -> error -> traceback -> frame -> handle
        return self._value[0]

    def _settle(self, *, value: list[T] | None = None, error: BaseException | None = None) -> bool:
        """Record how it ended; does nothing if that is already recorded (an abandoned coroutine that ends later)."""
        with self._lock:
            if self._ended.is_set():
                return False
            self._value = [] if value is None else value
            self._error = error
            self._ended.set()
            return True

    def _cancel_task(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _carry(self, coroutine: Coroutine[Any, Any, T]) -> None:
        try:
            value = await await_in_this_process(coroutine)
        except asyncio.CancelledError:
            self._settle(error=CoroutineCancelled(self.label, self.cancel_reason))
        except BaseException as error:  # noqa: BLE001 - handed to the waiting thread; SystemExit would end the loop
            self._settle(error=error)
        else:
            self._settle(value=[value])

    def _start(self, loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[None] | None:
        if self.cancel_reason is not None:  # cancelled before it started
            coroutine.close()
            self._settle(error=CoroutineCancelled(self.label, self.cancel_reason))
            return None
        carrier = self._carry(coroutine)
        self._task = loop.create_task(carrier)

        def ended(task: asyncio.Task[None]) -> None:
            # Cancelled between its creation and its first step, so `_carry` never ran.
            if self._settle(error=CoroutineCancelled(self.label, self.cancel_reason)):
                coroutine.close()
            self._task = None

        self._task.add_done_callback(ended)
        return self._task


class _RunningLoop:
    """The loop, its thread and its watchdog in one process."""

    def __init__(self, *, name: str, blocked_after_seconds: float) -> None:
        self.pid = os.getpid()
        self.loop = asyncio.new_event_loop()
        self.executor = ThreadPoolExecutor(THREADS_BEHIND_TO_THREAD, thread_name_prefix=f"{name}-to-thread")
        self.loop.set_default_executor(self.executor)
        self.loop.set_task_factory(self._create_labelled_task)  # type: ignore[arg-type] # typeshed names its keywords
        self.labels: weakref.WeakKeyDictionary[asyncio.Task[Any], str] = weakref.WeakKeyDictionary()
        self.running: set[asyncio.Task[Any]] = set()
        self.stopping = False
        self.thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self.thread.start()
        self.watchdog = EventLoopWatchdog(
            loop=self.loop,
            thread_ident=self.thread.ident or 0,
            label_of_current_task=self._label_of_current_task,
            blocked_after_seconds=blocked_after_seconds,
            name=f"{name}-watchdog",
        )
        self.watchdog.start()

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        while not self.stopping:
            try:
                self.loop.run_forever()
            except BaseException as error:  # noqa: BLE001 - told by type and place
                logger.error(
                    "a task on the event-loop thread raised out of the loop; the other steps continue: %s",
                    failure_of(error),
                    extra={"event": "event_loop_survived"},
                )

    def _create_labelled_task(
        self, loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], **options: Any
    ) -> asyncio.Task[Any]:
        """Tasks that a body creates (``gather``, ``TaskGroup``) inherit its label, for the watchdog."""
        task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, **options)
        context: contextvars.Context | None = options.get("context")
        self.labels[task] = _label.get() if context is None else context.get(_label, _label.get())
        return task

    def _label_of_current_task(self) -> str:
        task = asyncio.current_task(self.loop)
        return "unknown (a callback)" if task is None else self.labels.get(task, "unknown (an unnamed task)")

    def start_coroutine(self, handle: CoroutineHandle[Any], coroutine: Coroutine[Any, Any, Any]) -> None:
        """Start it in the caller's context; runs on the loop's thread."""
        task = handle._start(self.loop, coroutine)
        if task is not None:
            self.running.add(task)
            self.watchdog.busy.set()
            task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self.running.discard(task)
        if not self.running and not self.stopping:
            self.watchdog.busy.clear()

    def stop(self, grace_seconds: float) -> bool:
        """Cancel all tasks, wait for them, stop the loop; False if something did not end in time."""

        async def cancel_all() -> None:
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks, timeout=grace_seconds)
            self.stopping = True
            self.loop.stop()

        asyncio.run_coroutine_threadsafe(cancel_all(), self.loop)
        self.thread.join(grace_seconds + 1.0)
        self.watchdog.stop()
        idle = not self.thread.is_alive() and not self.running
        if not self.thread.is_alive():
            self.loop.close()
        self.executor.shutdown(wait=False, cancel_futures=True)
        return idle and not any(thread.is_alive() for thread in self.executor._threads if _is_stuck(thread))


def _is_stuck(thread: threading.Thread) -> bool:
    """Whether a thread of ``asyncio.to_thread`` is still in a blocking call after its executor was shut down."""
    thread.join(0.1)
    return thread.is_alive()


class EventLoopThread:
    """Runs coroutines for worker threads. Thread-safe and fork-safe."""

    def __init__(
        self,
        *,
        name: str = "paidonce-event-loop",
        blocked_after_seconds: float = 2.0,
        cancel_grace_seconds: float = 5.0,
    ) -> None:
        self._name = name
        self._blocked_after_seconds = blocked_after_seconds
        self._cancel_grace_seconds = cancel_grace_seconds
        self._begin_empty()
        this = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _begin_empty_if_alive(this))

    def _begin_empty(self) -> None:
        # In a forked child, a thread that does not exist there may hold the parent's lock.
        self._lock = threading.Lock()
        # Kept but never touched: closing the parent's loop here would take its
        # file descriptors out of the epoll instance that both processes share.
        self._inherited: _RunningLoop | None = getattr(self, "_running_loop", None)
        if self._inherited is not None and self._inherited.thread.ident == threading.get_ident():
            self._inherited.loop._ready = EndOfLoop()
        self._running_loop: _RunningLoop | None = None

    def _started(self) -> _RunningLoop:
        with self._lock:
            if self._running_loop is None or self._running_loop.pid != os.getpid():
                self._running_loop = _RunningLoop(name=self._name, blocked_after_seconds=self._blocked_after_seconds)
            return self._running_loop

    def submit(self, coroutine: Coroutine[Any, Any, T], *, label: str) -> CoroutineHandle[T]:
        """Start ``coroutine`` on the loop with the caller's context variables; ``label`` names it in reports."""
        running = self._started()
        if threading.get_ident() == running.thread.ident:
            coroutine.close()
            raise RuntimeError(f"{label}: the event-loop thread would wait for itself; await the coroutine instead")
        handle: CoroutineHandle[T] = CoroutineHandle(self, label)
        context = contextvars.copy_context()
        context.run(_label.set, label)
        running.loop.call_soon_threadsafe(running.start_coroutine, handle, coroutine, context=context)
        return handle

    def run(
        self, coroutine: Coroutine[Any, Any, T], timeout_seconds: float | None = None, *, label: str = "a coroutine"
    ) -> T:
        """Run ``coroutine`` on the loop and wait for its value.

        On timeout it is cancelled; if it does not end within the grace period it is
        abandoned. Either way ``CoroutineTimedOut`` is raised. A value that arrives
        during the grace period is returned, because it was paid for. A ``TimeoutError``
        that the coroutine raises itself is passed through.
        """
        handle = self.submit(coroutine, label=label)
        try:
            in_time = handle.wait(timeout_seconds)
        except BaseException:  # the waiting thread itself was interrupted
            handle.cancel("its caller was interrupted")
            raise
        if in_time:
            return handle.result()
        handle.cancel("timed out")
        if not handle.wait(self._cancel_grace_seconds):
            handle.abandon()
        try:
            return handle.result()
        except BaseException as error:
            raise CoroutineTimedOut(
                f"{label} did not end within {timeout_seconds} s and was cancelled; allow more time or make it faster",
                label=label,
                timeout_seconds=timeout_seconds,
                abandoned=isinstance(error, CoroutineCancelled) and error.abandoned,
            ) from error

    def blocked(self) -> Blockage | None:
        """The current block of the loop's thread, ``None`` if it responds or was never started."""
        running = self._running_loop
        return None if running is None else running.watchdog.blocked()

    def close(self) -> bool:
        """Cancel everything and stop the thread; False if something did not end. The next ``submit`` starts another."""
        with self._lock:
            running, self._running_loop = self._running_loop, None
        return True if running is None else running.stop(self._cancel_grace_seconds)

    def _call_soon(self, callback: Any) -> None:
        running = self._running_loop
        if running is not None:
            try:
                running.loop.call_soon_threadsafe(callback)
            except RuntimeError:  # it was closed meanwhile, which cancelled its tasks
                pass


def _begin_empty_if_alive(reference: weakref.ref[EventLoopThread]) -> None:
    event_loop_thread = reference()
    if event_loop_thread is not None:
        event_loop_thread._begin_empty()
