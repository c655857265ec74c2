"""Makes asyncio's own functions use the same order in every process.

Owns five names that are rebound once per process, four of them inside asyncio, each
with an effect only on a replay loop:

- ``asyncio.tasks.set``, a name that hides the builtin in that one module:
  ``as_completed`` starts its coroutines in the order of ``set(...)``, that is by memory
  address; here it is the order of the arguments. Hiding the name also affects an
  earlier ``from asyncio import as_completed``.
- ``asyncio.tasks._GatheringFuture``: what ``gather`` returns gets an ordinal.
- ``asyncio.all_tasks``: delegates to the loop, which keeps its own list.
- ``asyncio.futures._chain_future``: a future of a thread cannot be replayed.
- ``threading.Thread.start``: anyio starts its worker threads without the loop; other
  threads (a library's logging, for example) are no inputs of the agent.

Must never change what a loop other than ours does.
"""

from __future__ import annotations

import asyncio
import asyncio.futures
import asyncio.tasks
import builtins
import sys
import threading
from collections.abc import Callable, Collection, Iterable
from typing import Any

from paidonce.replay.deterministic_loop import DeterministicLoop

original_all_tasks = asyncio.all_tasks
original_gathering_future: Callable[..., asyncio.Future[Any]] = asyncio.tasks._GatheringFuture  # type: ignore[attr-defined]  # private
original_chain_future: Callable[..., None] = asyncio.futures._chain_future  # type: ignore[attr-defined]  # private

installing = threading.Lock()


def install_ordering(loop_type: type[DeterministicLoop]) -> None:
    """Rebind the names for loops of ``loop_type``; does nothing the second time in a process."""
    with installing:
        if hasattr(asyncio.tasks, "set"):
            return

        # Read now: usage capture may have wrapped it since this module was imported.
        original_thread_start = threading.Thread.start

        class GatheringFuture(original_gathering_future):  # type: ignore[valid-type,misc]  # a private class
            """What ``gather`` returns, hashed by ordinal."""

            def __init__(self, children: list[asyncio.Future[Any]], *, loop: DeterministicLoop) -> None:
                self.ordinal = loop.next_ordinal()
                super().__init__(children, loop=loop)

            def __hash__(self) -> int:
                return self.ordinal

        def gathering_future(children: list[asyncio.Future[Any]], *, loop: Any) -> asyncio.Future[Any]:
            make = GatheringFuture if isinstance(loop, loop_type) else original_gathering_future
            return make(children, loop=loop)

        def set_in_order(items: Iterable[Any] = ()) -> Collection[Any]:
            """``set(items)``; on a replay loop, awaitables without an ordinal keep the given order."""
            loop = asyncio._get_running_loop()
            if not isinstance(loop, loop_type):
                return builtins.set(items)
            unique = dict.fromkeys(items)
            if all(hasattr(item, "ordinal") for item in unique):
                return builtins.set(unique)
            # The sets that asyncio.wait returns would be ordered by memory address.
            if sum(1 for item in unique if asyncio.isfuture(item) and not hasattr(item, "ordinal")) > 1:
                loop.refuse("asyncio.Future() (instead of loop.create_future())")
            return list(unique)

        def all_tasks(loop: asyncio.AbstractEventLoop | None = None) -> builtins.set[asyncio.Task[Any]]:
            if loop is None:
                loop = asyncio.get_running_loop()
            if isinstance(loop, loop_type):
                return builtins.set(loop.live_tasks())
            return original_all_tasks(loop)

        def chain_future(source: Any, destination: Any) -> None:
            for side in (source, destination):
                loop = side.get_loop() if asyncio.isfuture(side) else None
                if isinstance(loop, loop_type):
                    loop.refuse("a future of another thread")
            original_chain_future(source, destination)

        def start_thread(self: threading.Thread) -> None:
            if type(self).__module__.startswith("anyio."):
                loop = asyncio._get_running_loop()
                if isinstance(loop, loop_type):
                    loop.refuse("a worker thread of anyio")
            original_thread_start(self)

        all_tasks.__doc__ = original_all_tasks.__doc__
        for module in tuple(sys.modules.values()):
            # Also for an earlier ``from asyncio import all_tasks``.
            if module is not sys.modules[__name__] and getattr(module, "__dict__", {}).get("all_tasks") is (
                original_all_tasks
            ):
                setattr(module, "all_tasks", all_tasks)  # noqa: B010  # a name mypy does not know
        setattr(threading.Thread, "start", start_thread)  # noqa: B010
        setattr(asyncio.futures, "_chain_future", chain_future)  # noqa: B010
        setattr(asyncio.tasks, "_GatheringFuture", gathering_future)  # noqa: B010
        setattr(asyncio.tasks, "set", set_in_order)  # noqa: B010
