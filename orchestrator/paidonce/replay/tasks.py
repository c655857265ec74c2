"""Tasks, futures and handles of the replay loop.

Owns their order: each is hashed by its ordinal, a counter of the loop that created it,
so that a set of them (``asyncio.wait``, ``TaskGroup``, ``as_completed``) is iterated in
the same order in every process and under every hash seed. Must never use ``id()``, a
process-wide counter or a clock. Created by ``ReplayLoop`` only; ``ordering`` gives
asyncio's own ``gather`` the same kind of future.
"""

from __future__ import annotations

import asyncio
import asyncio.tasks
from collections.abc import Callable, Coroutine, Generator, Sequence
from contextvars import Context, copy_context
from typing import Any

from paidonce.replay.deterministic_loop import DeterministicLoop

# Documented for those who write their own tasks; missing from typeshed.
forget_in_process_registry: Callable[[asyncio.Task[Any]], None] = asyncio.tasks._unregister_task


class ReplayFuture(asyncio.Future[Any]):
    """A future whose hash is its ordinal; equality stays identity."""

    __slots__ = ("ordinal",)

    def __init__(self, *, loop: DeterministicLoop) -> None:
        self.ordinal = loop.next_ordinal()
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self.ordinal


class ReplayTask(asyncio.Task[Any]):
    """A task whose hash and default name are its ordinal within its loop.

    ``creator`` is the ordinal of the task that created it, or 0: a library's task has no
    line of the agent on its stack, but the one that waits for it has.
    """

    __slots__ = ("creator", "ordinal")

    def __init__(
        self,
        coro: Generator[Any, None, Any] | Coroutine[Any, Any, Any],
        *,
        loop: DeterministicLoop,
        name: str | None = None,
        context: Context | None = None,
    ) -> None:
        self.ordinal = loop.next_ordinal()
        self.creator: int = getattr(asyncio.current_task(loop), "ordinal", 0)
        # asyncio's default name is a process-wide counter and would differ on replay.
        super().__init__(coro, loop=loop, name=f"Task-{self.ordinal}" if name is None else name, context=context)
        # asyncio keeps one weak set of all tasks of the process. With thousands of loops whose ordinals all
        # start at 1 its hashes would collide; the loop knows its own tasks, and all_tasks() asks the loop.
        forget_in_process_registry(self)

    def __hash__(self) -> int:
        return self.ordinal


class ReplayHandle(asyncio.Handle):
    """A ready callback; ``asyncio.Handle`` without its debugging."""

    __slots__ = ()
    _callback: Callable[..., object]
    _context: Context

    def __init__(
        self,
        callback: Callable[..., object],
        args: Sequence[Any],
        loop: asyncio.AbstractEventLoop,
        context: Context | None,
    ) -> None:
        self._context = copy_context() if context is None else context
        self._loop = loop
        self._callback = callback
        self._args = args
        self._cancelled = False
        self._repr: str | None = None
        self._source_traceback = None


class ReplayTimerHandle(asyncio.TimerHandle):
    """A callback with a deadline; becomes ready when the machine says that its time has come."""

    __slots__ = ()
    _callback: Callable[..., object]
    _context: Context
