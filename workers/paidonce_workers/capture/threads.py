"""Attribution in threads that a step starts, through ``Thread.start`` and ``ThreadPoolExecutor.submit``.

A new thread starts with an empty context, so its calls would belong to nobody.
While the capture is installed, the thread inherits the recorder, the tool, the step
and its policies from the thread that starts it, and nothing else of that context. A
pool's threads outlive the step that happened to start them: there each piece of work
brings its own attribution and removes it afterwards.

Outside a step both cost one look at a context variable.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from types import MethodType
from typing import Any, Final

from paidonce.declarations.current_step import CurrentStep, executing
from paidonce.policies.attempt_policies import attempt_policies
from paidonce.usage.call_recorder import CallRecorder, current_recorder, tool_stack
from paidonce_workers.bodies.forked_bodies import call_in_this_process
from paidonce_workers.capture.capture_errors import Faults

OUR_THREADS: Final = "paidonce-"
"""Threads of the worker itself, which outlive the step in which they happen to start."""
_NOTHING: Final = object()


class Attribution:
    """Whose work it is: a recorder, the tools around it, the step and its policies."""

    __slots__ = ("_policies", "_recorder", "_step", "_tools")

    def __init__(self, recorder: CallRecorder) -> None:
        self._recorder = recorder
        self._tools = tool_stack.get()
        self._policies = attempt_policies.get()
        self._step: CurrentStep | None = executing.get(None)

    def begin(self) -> None:
        """Set it from here to the end of this thread."""
        current_recorder.set(self._recorder)
        tool_stack.set(self._tools)
        attempt_policies.set(self._policies)
        if self._step is not None:
            executing.set(self._step)

    def call(self, work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Do one piece of work in a thread that will do other work afterwards."""
        recorder = current_recorder.set(self._recorder)
        tools = tool_stack.set(self._tools)
        policies = attempt_policies.set(self._policies)
        step = None if self._step is None else executing.set(self._step)
        try:
            return call_in_this_process(functools.partial(work, *args, **kwargs))
        finally:
            if step is not None:
                executing.reset(step)
            attempt_policies.reset(policies)
            tool_stack.reset(tools)
            current_recorder.reset(recorder)


class AttributedRun:
    """Replaces a thread's ``run`` until it runs; may be called with the thread or without, bound or not.

    Sentry takes the function out of a bound method and calls it with the thread; others call the attribute as it is.
    """

    __slots__ = ("_attribution", "_faults", "_had", "_run")

    def __init__(self, thread: Any, attribution: Attribution, faults: Faults) -> None:
        run = thread.run
        # Stores the unbound method, so that no cycle keeps the thread alive wherever another library keeps us.
        is_plain = type(run) is MethodType and run.__self__ is thread
        self._run: Callable[..., Any] = run.__func__ if is_plain else _Unbound(run)
        self._attribution = attribution
        self._faults = faults
        self._had = thread.__dict__.get("run", _NOTHING)
        thread.run = MethodType(self, thread)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        thread = args[0] if args else threading.current_thread()
        with self._faults.contained("attributing a thread"):
            self.withdraw(thread)
            self._attribution.begin()
        return self._run(thread, *args[1:], **kwargs)

    def withdraw(self, thread: Any) -> None:
        """Restore the instance's own ``run``, unless someone else has replaced it since."""
        if getattr(thread.__dict__.get("run"), "__func__", None) is not self:
            return
        if self._had is _NOTHING:
            del thread.__dict__["run"]
        else:
            thread.__dict__["run"] = self._had


class _Unbound:
    """A ``run`` that takes no thread: bound by someone else, static, partial, or any callable on the instance."""

    __slots__ = ("_run",)

    def __init__(self, run: Callable[..., Any]) -> None:
        self._run = run

    def __call__(self, thread: Any, *args: Any, **kwargs: Any) -> Any:
        return self._run(*args, **kwargs)


class ThreadTap:
    """Taps the starting of threads for one installation. If the tap fails, the thread starts anyway, unattributed."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults

    def start(self, call: Callable[..., Any], thread: Any, /, *args: Any, **kwargs: Any) -> Any:
        """``Thread.start``, attributed."""
        recorder = current_recorder.get()
        attributed = None if recorder is None else self._attribute(thread, recorder)
        if attributed is None:
            return call(*args, **kwargs)
        try:
            return call(*args, **kwargs)
        except BaseException:
            with self._faults.contained("attributing a thread"):
                attributed.withdraw(thread)
            raise

    def _attribute(self, thread: Any, recorder: CallRecorder) -> AttributedRun | None:
        with self._faults.contained("attributing a thread"):
            if not thread.name.startswith(OUR_THREADS):
                return AttributedRun(thread, Attribution(recorder), self._faults)
        return None

    def submit(self, call: Callable[..., Any], executor: Any, /, *args: Any, **kwargs: Any) -> Any:
        """``ThreadPoolExecutor.submit``, attributed."""
        recorder = current_recorder.get()
        if recorder is None or not args:
            return call(*args, **kwargs)
        attribution = Attribution(recorder)
        # A thread that the pool starts now must not inherit this step.
        token = current_recorder.set(None)
        try:
            return call(attribution.call, *args, **kwargs)
        finally:
            current_recorder.reset(token)
