"""A replay loop that drives itself, so that tests written for an ordinary loop run on it.

Whenever it blocks, recorded time moves to the next timer. The product has no
such thing: there, events come from a run's log.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context
from typing import Any

from paidonce.replay.loop import ReplayLoop

SLICE_SECONDS = 20.0


class SelfDrivenLoop(ReplayLoop):
    """A ``ReplayLoop`` with ``run_until_complete``, and without its refusals of settings."""

    def __init__(self, generator: Callable[[], object] | None = None) -> None:
        """``generator`` moves the time of CPython's ``TestLoop``; here the timers do."""
        super().__init__(0.0)
        self._stopping = False
        self._debug = False
        self._factory: Callable[..., Any] | None = None
        self._handler: Callable[[Any, dict[str, Any]], object] | None = None
        # What CPython's test cases look at when they clean up.
        self._default_executor = None
        self.slow_callback_duration = 0.1

    def run_until_complete(self, future: Any) -> Any:
        """Deliver timers until ``future`` is done; a deadlock is an error."""
        if self.is_running():
            raise RuntimeError("This event loop is already running")
        if asyncio._get_running_loop() is not None:
            raise RuntimeError("Cannot run the event loop while another loop is running")
        task = asyncio.ensure_future(future, loop=self)
        made_here = task is not future
        try:
            self._drive(task.done)
        except BaseException:
            if made_here and task.done() and not task.cancelled():
                task.exception()
            raise
        if not task.done():
            raise RuntimeError("Event loop stopped before Future completed.")
        return task.result()

    def run_forever(self) -> None:
        """Deliver timers until ``stop`` was called."""
        self._drive(lambda: False)

    def stop(self) -> None:
        """End ``run_forever`` once nothing is ready."""
        self._stopping = True

    def _drive(self, ended: Callable[[], bool]) -> None:
        while True:
            self.run_until_blocked(SLICE_SECONDS)
            if ended():
                return
            if self._stopping:
                self._stopping = False
                return
            when = self.next_timer()
            if when is None:
                raise RuntimeError("Event loop stopped before Future completed.")
            self.deliver_time(when)
            self.fire_timers(when)

    def advance_time(self, seconds: float) -> None:
        """What CPython's ``TestLoop`` has."""
        self.deliver_time(self.time() + seconds)

    def get_debug(self) -> bool:
        """What ``set_debug`` said."""
        return self._debug

    def set_debug(self, enabled: bool) -> None:
        """Remember it; the tests turn it on."""
        self._debug = enabled

    def set_task_factory(self, factory: Any) -> None:
        """Make tasks with it, as ``BaseEventLoop`` does."""
        self._factory = factory

    def get_task_factory(self) -> Any:
        """What ``set_task_factory`` said."""
        return self._factory

    def create_task(self, coro: Any, *, name: str | None = None, context: Context | None = None, **_: Any) -> Any:
        """A task of the factory or of the loop."""
        if self._factory is None:
            return super().create_task(coro, name=name, context=context)
        if self.is_closed():
            raise RuntimeError("Event loop is closed")
        task = self._factory(self, coro) if context is None else self._factory(self, coro, context=context)
        if name is not None:
            task.set_name(name)
        return task

    def set_exception_handler(self, handler: Any) -> None:
        """Remember it."""
        self._handler = handler

    def get_exception_handler(self) -> Any:
        """What ``set_exception_handler`` said."""
        return self._handler

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Collect, and tell the handler."""
        super().call_exception_handler(context)
        if self._handler is not None:
            self._handler(self, context)

    def call_soon_threadsafe(self, callback: Any, *args: Any, context: Context | None = None) -> Any:
        """Allowed between slices, where unittest's clean-up uses it."""
        return self.call_soon(callback, *args, context=context)


class SelfDrivenPolicy(asyncio.DefaultEventLoopPolicy):
    """Makes self-driven loops wherever asyncio makes a loop."""

    def new_event_loop(self) -> SelfDrivenLoop:
        """A fresh loop at time 0."""
        return SelfDrivenLoop()
