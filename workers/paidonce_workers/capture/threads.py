"""Attribution in threads that a step starts: ``Thread.start`` and ``ThreadPoolExecutor.submit``.

A new thread begins with an empty context, so that nobody would know whose
calls it makes. While the capture is installed it is told the recorder, the
tool, the step and its policies by whoever starts it, and nothing else of the
starter's context. A pool's threads outlive the step that happened to start them: there
each piece of work brings its own, and takes it away again.

Outside a step both are one look at a context variable.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final

from paidonce.attempt_policies import attempt_policies
from paidonce.current_step import CurrentStep, executing
from paidonce.usage import CallRecorder, current_recorder, tool_stack

OUR_THREADS: Final = "paidonce-"
"""Threads of the worker's own machinery live longer than the step in which they happen to start."""


class Attribution:
    """Whose work it is: a recorder, the tools around it, the step and its policies."""

    __slots__ = ("_policies", "_recorder", "_step", "_tools")

    def __init__(self, recorder: CallRecorder) -> None:
        self._recorder = recorder
        self._tools = tool_stack.get()
        self._policies = attempt_policies.get()
        self._step: CurrentStep | None = executing.get(None)

    def begin(self) -> None:
        """From here to the end of this thread."""
        current_recorder.set(self._recorder)
        tool_stack.set(self._tools)
        attempt_policies.set(self._policies)
        if self._step is not None:
            executing.set(self._step)

    def call(self, work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Do a piece of work in a thread that goes on to other work."""
        recorder = current_recorder.set(self._recorder)
        tools = tool_stack.set(self._tools)
        policies = attempt_policies.set(self._policies)
        step = None if self._step is None else executing.set(self._step)
        try:
            return work(*args, **kwargs)
        finally:
            if step is not None:
                executing.reset(step)
            attempt_policies.reset(policies)
            tool_stack.reset(tools)
            current_recorder.reset(recorder)


class ThreadTap:
    """Wraps the starting of threads for one installation."""

    def __init__(self) -> None:
        self.is_on = True

    def starting(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """``Thread.start``, attributed."""

        @functools.wraps(original)
        def start(thread: Any) -> Any:
            recorder = current_recorder.get()
            if recorder is not None and self.is_on and not thread.name.startswith(OUR_THREADS):
                attribution, run = Attribution(recorder), thread.run

                def run_attributed() -> None:
                    # The instance's `run` is given back first, so that no cycle keeps the thread alive.
                    thread.__dict__.pop("run", None)
                    attribution.begin()
                    run()

                thread.run = run_attributed
            return original(thread)

        return start

    def submitting(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """``ThreadPoolExecutor.submit``, attributed."""

        @functools.wraps(original)
        def submit(executor: Any, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
            recorder = current_recorder.get()
            if recorder is None or not self.is_on:
                return original(executor, fn, *args, **kwargs)
            attribution = Attribution(recorder)
            # A thread that the pool starts now must not take this step for its own.
            token = current_recorder.set(None)
            try:
                return original(executor, attribution.call, fn, *args, **kwargs)
            finally:
                current_recorder.reset(token)

        return submit
