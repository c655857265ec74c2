"""The bodies of a tester: run as in a worker, in no time or in the time that the test specifies.

Owns what the tester substitutes for a body, how long a body takes on the fake clock, and the end of those that time out
or are stopped. A ``def`` body runs in the caller's thread; all ``async def`` bodies of this Python process share one
event loop, as in a worker, so a module-level client or lock serves every test.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import inspect
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from datetime import timedelta
from typing import Any

from paidonce.declarations.current_step import current_step
from paidonce.testing.clock import FakeClock
from paidonce_models.errors import StepInterrupt
from paidonce_workers.bodies.body_runner import BodyExited, BodyRunner, BodyTimedOut
from paidonce_workers.bodies.deadlines import Deadlines
from paidonce_workers.bodies.event_loop_thread import CoroutineCancelled, EventLoopThread
from paidonce_workers.bodies.interrupt import Reason

ENDS_OF_A_BODY = (SystemExit, GeneratorExit, StepInterrupt, asyncio.CancelledError, CoroutineCancelled)
"""The non-``Exception`` errors that a worker treats as a failure of the step. The rest end the test: Ctrl-C, and what
``pytest.fail()`` raises."""


class SimulatedBodies(BodyRunner):
    """Bodies on a fake clock. ``ends_at_us`` is when a body that has run ends on that clock."""

    def __init__(
        self, *, clock: FakeClock, fakes: Mapping[str, Callable[..., Any]], durations: Mapping[str, timedelta]
    ) -> None:
        super().__init__(event_loop=_event_loop_of_this_process(), deadlines=_deadlines_of_this_process())
        self._clock = clock
        self._fakes = fakes
        self._durations = durations
        self._waited_seconds = 0.0
        self.ends_at_us: dict[Hashable, int] = {}
        self.stopped: dict[Hashable, Reason] = {}
        """Bodies that have run and were stopped before their end on the clock."""
        self.executions: Counter[str] = Counter()
        self.on_execution: Callable[[str, str, int], object] = lambda run_id, name, position: None
        """Called with run, name and position of each body before it runs."""

    def begin_run(self) -> None:
        """No body runs any more, and executions are counted from 0."""
        self.lose()
        self.executions = Counter()

    # -- the time that a body takes --------------------------------------------------

    def monotonic(self) -> float:
        """Seconds on the fake clock, including what the running body has waited in place."""
        return self._clock.elapsed_seconds + self._waited_seconds

    def sleep(self, seconds: float) -> None:
        """Wait in place, as a tool inside a step does between two tries: the body takes that much longer."""
        self._waited_seconds += seconds

    async def sleep_async(self, seconds: float) -> None:
        """The same on the event loop."""
        self.sleep(seconds)
        await asyncio.sleep(0)

    # -- a body ----------------------------------------------------------------------

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
        """Like in a worker, with the end of the body on the fake clock: in time, or at its timeout."""
        step = current_step()
        self.executions[step.name] += 1
        self.on_execution(step.run_id, step.name, step.step)
        self._waited_seconds = 0.0
        fake = self._fakes.get(step.name)
        ends_test = False
        try:
            if fake is not None:
                return self._run_fake(key, fake, args, kwargs or {}, timeout_seconds, label)
            return super().run(key, fn, args, kwargs, is_async=is_async, timeout_seconds=timeout_seconds, label=label)
        except BodyExited as error:
            cause = error.__cause__
            if cause is None or isinstance(cause, (Exception, *ENDS_OF_A_BODY)):
                raise
            ends_test = True
            raise cause from None
        finally:
            if self._lasts_too_long(key, step.name, timeout_seconds) and not ends_test:
                raise BodyTimedOut(label, timeout_seconds)

    def _run_fake(
        self,
        key: Hashable,
        fake: Callable[..., object],
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
        timeout_seconds: float | None,
        label: str,
    ) -> object:
        """A fake may be ``async`` where its step is not, and vice versa."""
        run = functools.partial(super().run, key, timeout_seconds=timeout_seconds, label=label)
        if inspect.iscoroutinefunction(fake):
            return run(fake, args, kwargs, is_async=True)
        value = run(fake, args, kwargs, is_async=False)
        return run(lambda: value, is_async=True) if inspect.iscoroutine(value) else value

    def _lasts_too_long(self, key: Hashable, name: str, timeout_seconds: float | None) -> bool:
        """Set when the body ends, at its timeout at the latest; returns whether it timed out."""
        taken_seconds = self._durations.get(name, timedelta(0)).total_seconds() + self._waited_seconds
        self._waited_seconds = 0.0
        limit_seconds = taken_seconds if timeout_seconds is None else min(taken_seconds, timeout_seconds)
        self.ends_at_us[key] = self._clock.now_us() + round(limit_seconds * 1e6)
        return taken_seconds > limit_seconds

    def interrupt(self, key: Hashable, reason: Reason = Reason.CANCELLED) -> bool:
        """Stop a body before its end on the fake clock: it ends now."""
        if key not in self.ends_at_us or key in self.stopped:
            return False
        self.stopped[key] = reason
        self.ends_at_us[key] = self._clock.now_us()
        return True

    def forget(self, key: Hashable) -> Reason | None:
        """The body's end has come: why it was stopped, ``None`` if it was not."""
        self.ends_at_us.pop(key, None)
        return self.stopped.pop(key, None)

    def lose(self) -> None:
        """The process has died; its bodies never end."""
        self.ends_at_us.clear()
        self.stopped.clear()


@functools.cache
def _event_loop_of_this_process() -> EventLoopThread:
    loop = EventLoopThread(name="paidonce-testing-event-loop")
    atexit.register(loop.close)
    return loop


@functools.cache
def _deadlines_of_this_process() -> Deadlines:
    return Deadlines(name="paidonce-testing-deadlines")
