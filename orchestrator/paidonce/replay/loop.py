"""The event loop an agent's coroutine runs on.

Owns the ready queue, the recorded time, the tasks and the async generators of one run.
It has no selector, no thread and no clock: the machine delivers one recorded event
(``deliver_time``, then a future's result or ``fire_timers``) and calls
``run_until_blocked``, which runs the agent until nothing is ready. Must never let in
anything that is not in the event history; what cannot be replayed is refused by name
and recorded in ``refusals``.

    loop = ReplayLoop(start_time)            # seconds since the epoch
    task = loop.create_task(agent(...))
    loop.run_until_blocked()
    ... per event: loop.deliver_time(t); future.set_result(v) | loop.fire_timers(t); loop.run_until_blocked()

A loop belongs to one thread at a time; any thread may run its next slice.
"""

from __future__ import annotations

import asyncio
import gc
import math
import sys
from asyncio.events import _get_running_loop, _set_running_loop
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterator
from contextvars import Context
from threading import get_ident
from typing import Any, NoReturn, TypeVar, TypeVarTuple, Unpack

from paidonce.replay.deterministic_loop import DeterministicLoop
from paidonce.replay.eviction import live_loops
from paidonce.replay.forbidden_calls import describe_refusal, refusal_at, where_suspended
from paidonce.replay.ordering import install_ordering
from paidonce.replay.tasks import ReplayFuture, ReplayHandle, ReplayTask, ReplayTimerHandle
from paidonce.replay.timers import Timers
from paidonce.replay.watchdog import SliceInterrupt, Watch, watchdog
from paidonce_models.errors import ReplayError, SliceTooLong

__replay_loop__ = True
"""``forbidden_calls.LOOP_MARK``: a frame of this module is the loop's."""

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

# How many tasks or async generators are created before ended ones are dropped.
FORGET_ENDED_EVERY = 32
# How asyncio's C code starts or ends the message to a task that awaits something it cannot resolve.
FOREIGN_AWAITS = {
    "attached to a different loop": "awaiting a future of another event loop",
    "Task got bad yield": "awaiting something that is not asyncio's",
}


class ReplayLoop(DeterministicLoop):
    """A deterministic event loop that runs one slice at a time."""

    def __init__(
        self,
        start_time: float = 0.0,
        *,
        most_tasks: int = sys.maxsize,
        on_too_many_tasks: Callable[[], NoReturn] | None = None,
    ) -> None:
        """``on_too_many_tasks`` is called instead of creating a task if ``most_tasks`` have not ended."""
        install_ordering(ReplayLoop)
        self._time = start_time
        self._ordinal = 0
        self._ready: deque[ReplayHandle | ReplayTimerHandle] = deque()
        self._timers = Timers()
        self._tasks: list[ReplayTask] = []
        self._forget_tasks_at = FORGET_ENDED_EVERY
        self._asyncgens: list[AsyncGenerator[Any, Any]] = []
        self._forget_asyncgens_at = FORGET_ENDED_EVERY
        self._thread_id: int | None = None
        self._closed = False
        self.refusals: list[ReplayError] = []
        self._most_tasks = most_tasks
        self._on_too_many_tasks = on_too_many_tasks
        self.unhandled: list[dict[str, Any]] = []
        live_loops.add(self)

    # Called by the machine.

    def deliver_time(self, seconds: float) -> None:
        """Set the recorded time of the next event; a time before the previous one leaves it unchanged."""
        if seconds > self._time:
            self._time = seconds

    def next_timer(self) -> float | None:
        """The earliest deadline that is neither fired nor cancelled, in seconds since the epoch. Never infinite."""
        when = self._timers.earliest()
        return None if when == math.inf else when

    def fire_timers(self, until: float) -> int:
        """Make every timer due at ``until`` ready, by deadline and then by ordinal; returns how many."""
        due = self._timers.take_due(until)
        self._ready.extend(due)
        return len(due)

    def run_until_blocked(self, limit_seconds: float = 5.0) -> None:
        """Run the agent until nothing is ready.

        Raises ``SliceTooLong`` after ``limit_seconds``; the loop is then in an undefined
        state and must be discarded. ``SystemExit`` and ``KeyboardInterrupt`` pass through, as
        on any loop. Everything else that the agent did is in its task, in ``refusals`` and in
        ``unhandled``.
        """
        if self._closed:
            raise RuntimeError("Event loop is closed")
        if self._thread_id is not None:
            raise RuntimeError("a slice of this loop is already running")
        thread_id = get_ident()
        ready = self._ready
        popleft = ready.popleft
        handle: ReplayHandle | ReplayTimerHandle | None = None
        previous_loop = _get_running_loop()
        previous_hooks = sys.get_asyncgen_hooks()
        watch = watchdog.begin(thread_id, limit_seconds)
        try:
            self._thread_id = thread_id
            _set_running_loop(self)
            sys.set_asyncgen_hooks(firstiter=self._asyncgen_begun, finalizer=_leave_alone)
            while ready and not watch.expired:
                handle = popleft()
                if handle._cancelled:
                    continue
                try:
                    handle._context.run(handle._callback, *handle._args)
                except (SystemExit, KeyboardInterrupt, SliceInterrupt):
                    raise
                except BaseException as error:  # noqa: BLE001  # as any loop: the callback's, not ours
                    self.call_exception_handler(
                        {"message": "Exception in callback", "exception": error, "handle": handle}
                    )
        except SliceInterrupt:
            pass
        finally:
            # The interrupt that ended the slice may be followed by two more: one that was sent before ``done`` was set,
            # and one by a watchdog that was about to send it. Each can arrive where a call begins, before the called
            # function's own ``try``. So nothing may be called before ``done`` is set, and each call after that is in a
            # ``try`` of this function. No loop either: its jump backwards is such a place too.
            watch.done = True
            try:
                watchdog.end(watch)
            except SliceInterrupt:
                try:
                    watchdog.end(watch)
                except SliceInterrupt:
                    watchdog.end(watch)
            sys.set_asyncgen_hooks(*previous_hooks)
            _set_running_loop(previous_loop)
            self._thread_id = None
        if watch.expired:
            raise self._slice_too_long(watch, handle, limit_seconds)

    def live_tasks(self) -> list[ReplayTask]:
        """The tasks that have not ended, in order of creation."""
        return [task for task in self._tasks if not task.done()]

    def held(self) -> list[object]:
        """Everything through which this loop keeps parts of the run alive; for eviction."""
        return [*self._tasks, *self._ready, *self._timers.handles(), *self._asyncgens, *self.unhandled]

    def forget_everything(self) -> None:
        """Close the loop and drop what it holds; ``eviction.discard`` has made sure that nothing runs."""
        self._closed = True
        self._tasks.clear()
        self._ready.clear()
        self._timers.clear()
        self._asyncgens.clear()
        self.unhandled.clear()

    def next_ordinal(self) -> int:
        """The number of the next object created on this loop: the same on every replay."""
        self._ordinal = ordinal = self._ordinal + 1
        return ordinal

    async def shutdown_asyncgens(self) -> None:
        """Close the async generators that the agent left unfinished, in the order of their first use."""
        unfinished = [generator for generator in self._asyncgens if _frame_of(generator) is not None]
        self._asyncgens.clear()
        results = await asyncio.gather(*(generator.aclose() for generator in unfinished), return_exceptions=True)
        for generator, result in zip(unfinished, results, strict=True):
            if isinstance(result, Exception):
                message = f"an error occurred during closing of asynchronous generator {generator!r}"
                self.call_exception_handler({"message": message, "exception": result, "asyncgen": generator})

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """There is none."""

    # Called by asyncio.

    def time(self) -> float:
        """The recorded time of the event being delivered; seconds since the epoch."""
        return self._time

    def call_soon(
        self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> ReplayHandle:
        """Make ``callback`` ready, after those that are ready already."""
        if self._closed:
            raise RuntimeError("Event loop is closed")
        if self._thread_id is not None and self._thread_id != get_ident():
            self.refuse("loop.call_soon() from another thread")
        if not args and type(callback).__name__ == "TaskStepMethWrapper":
            self._refuse_foreign_await(callback)
        handle = ReplayHandle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_soon_threadsafe(
        self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> ReplayHandle:
        """``call_soon`` from within the slice; from anywhere else it would be an unrecorded input."""
        if self._thread_id != get_ident():
            self.refuse("loop.call_soon_threadsafe() from another thread")
        return self.call_soon(callback, *args, context=context)

    def call_later(
        self, delay: float, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> ReplayTimerHandle:
        """``call_at``, relative to the recorded time."""
        return self.call_at(self._time + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> ReplayTimerHandle:
        """Keep ``callback`` until ``fire_timers`` reaches ``when``."""
        if self._closed:
            raise RuntimeError("Event loop is closed")
        if math.isnan(when):
            raise ValueError("a timer's deadline must be a number, not nan")
        handle = ReplayTimerHandle(when, callback, args, self, context)
        self._timers.add(when, self.next_ordinal(), handle)
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        self._timers.note_cancelled()

    def create_future(self) -> ReplayFuture:
        """A future hashed by ordinal."""
        return ReplayFuture(loop=self)

    def create_task(
        self,
        coro: Generator[Any, None, T] | Coroutine[Any, Any, T],
        *,
        name: str | None = None,
        context: Context | None = None,
        eager_start: bool | None = None,
    ) -> ReplayTask:
        """A task hashed by ordinal; the loop keeps it until it has ended, so that it is not collected midway."""
        if self._closed:
            raise RuntimeError("Event loop is closed")
        if eager_start:
            self.refuse("an eager task")
        tasks = self._tasks
        if len(tasks) >= self._most_tasks:
            self._tasks = tasks = self.live_tasks()
            if len(tasks) >= self._most_tasks and self._on_too_many_tasks is not None:
                coro.close()  # never started: none of it runs, and there is no "never awaited" warning
                self._on_too_many_tasks()
        task = ReplayTask(coro, loop=self, name=name, context=context)
        tasks.append(task)
        if len(tasks) > self._forget_tasks_at:
            self._tasks = tasks = self.live_tasks()
            self._forget_tasks_at = 2 * len(tasks) + FORGET_ENDED_EVERY
        return task

    def is_running(self) -> bool:
        """Whether a slice is running."""
        return self._thread_id is not None

    def is_closed(self) -> bool:
        """Whether the loop was closed or discarded."""
        return self._closed

    def close(self) -> None:
        """Accept no more callbacks. Suspended code stays suspended; see ``eviction.discard``."""
        if self._thread_id is not None:
            raise RuntimeError("Cannot close a running event loop")
        self._closed = True

    def get_debug(self) -> bool:
        """Always False: asyncio's debug mode measures time."""
        return False

    def get_task_factory(self) -> None:
        """None; the loop creates its own tasks."""

    def get_exception_handler(self) -> None:
        """None; see ``unhandled``."""

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        """Collect ``context`` in ``unhandled``."""
        self.unhandled.append(context)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Collect ``context`` in ``unhandled``; nothing is logged, because a replay would log it again."""
        self.unhandled.append(context)

    # Inner parts.

    def suspended_creators(self) -> Iterator[object]:
        """The coroutines of the tasks that created the current one, the nearest first."""
        tasks = {task.ordinal: task for task in self._tasks}
        task = tasks.get(getattr(asyncio.current_task(self), "ordinal", 0))
        while task is not None and (task := tasks.get(task.creator)) is not None:
            yield task.get_coro()

    def _asyncgen_begun(self, generator: AsyncGenerator[Any, Any]) -> None:
        generators = self._asyncgens
        generators.append(generator)
        if len(generators) > self._forget_asyncgens_at:
            self._asyncgens = [each for each in generators if _frame_of(each) is not None]
            self._forget_asyncgens_at = 2 * len(self._asyncgens) + FORGET_ENDED_EVERY

    def _refuse_foreign_await(self, step: Callable[..., object]) -> None:
        """Record it if ``step`` is asyncio about to tell a task that it awaits what this loop cannot resolve.

        By then asyncio's C code has created a ``RuntimeError``, inside a callable without
        attributes. The error's text is replaced, so that the agent's author sees the same
        message as for any other refusal.
        """
        for error in gc.get_referents(step):
            if not isinstance(error, RuntimeError):
                continue
            for text, what in FOREIGN_AWAITS.items():
                if text in str(error):
                    task = asyncio.current_task(self)
                    place = where_suspended(task.get_coro()) if task is not None else None
                    refusal = refusal_at(what, *place) if place else describe_refusal(what, None)
                    self.refusals.append(refusal)
                    error.args = (refusal.message,)

    def _slice_too_long(
        self, watch: Watch, handle: ReplayHandle | ReplayTimerHandle | None, limit_seconds: float
    ) -> SliceTooLong:
        place = watch.where
        for each in (handle, *tuple(self._ready)[:16]):
            if place is None and each is not None:
                task = getattr(each._callback, "__self__", None)
                place = where_suspended(task.get_coro()) if isinstance(task, asyncio.Task) else None
        where = f" at {place[0]}:{place[1]}" if place else ""
        file, line = place if place else (None, None)
        return SliceTooLong(
            f"the agent did not block within {limit_seconds:g} s{where}; move the work into a @step",
            file=file,
            line=line,
            limit_seconds=limit_seconds,
        )

    def __repr__(self) -> str:
        return f"<ReplayLoop time={self._time} ready={len(self._ready)} closed={self._closed}>"


def _leave_alone(generator: AsyncGenerator[Any, Any]) -> None:
    """The finalizer hook: garbage collection closes no generator; ``shutdown_asyncgens`` does."""


def _frame_of(generator: AsyncGenerator[Any, Any]) -> object:
    return getattr(generator, "ag_frame", None)
