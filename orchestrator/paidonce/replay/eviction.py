"""Evicts a suspended run without side effects.

Owns the end of a cached run whose coroutine is suspended in the middle of its code.
Python closes a suspended coroutine when it is dropped, which runs its ``finally`` and
``with`` blocks; here that would be a side effect of a full cache. So an evicted run must
write nothing, call nothing and warn nobody.

How: Python calls an object's finalizer once (PEP 442) and keeps a bit that says so.
``discard`` finds every coroutine and generator of the run, sets that bit, and drops
them; their frames are then cleared without running a line. The bit is in the word
before the object, where ``gc.is_finalized`` reads it. On an interpreter with another
layout, the run is kept alive for good instead: that costs memory, but keeps the promise.

Must never touch another run: the search stays within containers, instances and
closures, and stops at modules, classes, other loops and Paidonce's own objects. An
object of the author's with its own ``__del__`` is not covered.
"""

from __future__ import annotations

import asyncio
import atexit
import ctypes
import gc
import logging
import sys
import sysconfig
import threading
import types
import weakref
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextvars import Context, ContextVar, Token
from typing import Any

from paidonce.replay.deterministic_loop import DeterministicLoop
from paidonce.replay.forbidden_calls import OWN_PACKAGES

# A run with more objects than this is kept alive, rather than searched for seconds.
MOST_OBJECTS = 2_000_000
OBJECTS_AT_ONCE = 1_000

FINALIZED_BIT = 1
WORD_BYTES = ctypes.sizeof(ctypes.c_size_t)


async def _async_generator() -> AsyncGenerator[None, None]:
    yield


def _types_with_finalizer() -> tuple[type, ...]:
    generator = _async_generator()
    # Awaitables of an async generator: newer Pythons warn when one is dropped before it was awaited.
    awaitables = (generator.__anext__(), generator.athrow(GeneratorExit), generator.aclose())
    for awaitable in awaitables:
        getattr(awaitable, "close", lambda: None)()
    return (types.CoroutineType, types.GeneratorType, types.AsyncGeneratorType, *{type(each) for each in awaitables})


SUSPENDABLE_TYPES = _types_with_finalizer()
# Objects that can be reached from anywhere and lead anywhere.
CLOSED_TYPES = (
    types.ModuleType,
    type,
    types.CodeType,
    Context,
    ContextVar,
    Token,
    logging.Logger,
    logging.Handler,
    threading.Thread,
    asyncio.AbstractEventLoop,
)


def can_mark() -> bool:
    """Whether this interpreter keeps the finalizer's bit where we would set it."""
    if sys.implementation.name != "cpython" or not (3, 11) <= sys.version_info[:2] <= (3, 14):
        return False
    return not sysconfig.get_config_var("Py_GIL_DISABLED")


MARKING_WORKS = can_mark()


def discard(loop: DeterministicLoop, tasks: Iterable[asyncio.Future[Any]] = ()) -> bool:
    """Drop everything suspended on ``loop`` without running any of it; the loop is closed afterwards.

    ``tasks`` are further tasks or futures of the run that the caller holds; the caller
    drops its own references afterwards. Returns False if the run was kept alive because
    it could not be dropped without side effects.
    """
    if loop.is_running():
        raise RuntimeError("a slice of this loop is running; it cannot be discarded")
    roots: list[object] = [*loop.held(), *tasks]
    silenced = silence(loop, roots)
    if not silenced:
        keep_alive(roots)
    loop.forget_everything()
    return silenced


def silence(loop: DeterministicLoop, roots: Iterable[object]) -> bool:
    """Mark what is reachable from ``roots`` so that dropping it runs nothing; False if that is not certain for all."""
    if not MARKING_WORKS:
        return False
    complete = True
    futures: list[asyncio.Future[Any]] = []
    count = 0
    for found in reachable(loop, roots):
        count += 1
        if count > MOST_OBJECTS:
            return False
        if isinstance(found, asyncio.Future):
            futures.append(found)
        elif not isinstance(found, SUSPENDABLE_TYPES):
            continue
        complete = mark_finalized(found) and complete
    if complete:
        for future in futures:
            _unhook(future)
    return complete


def reachable(loop: DeterministicLoop, roots: Iterable[object]) -> Iterator[object]:
    """Every object of the run, including ``roots``."""
    seen: set[int] = set()
    waiting = [each for each in roots if _belongs_to_run(each, loop)]
    seen.update(map(id, waiting))
    while waiting:
        batch = waiting[-OBJECTS_AT_ONCE:]
        del waiting[-OBJECTS_AT_ONCE:]
        yield from batch
        open_objects: list[object] = []
        referents: list[object] = []
        for each in batch:
            if isinstance(each, types.FunctionType):
                # Its globals lead everywhere; its closure belongs to the run.
                referents += (each.__closure__, each.__defaults__, each.__kwdefaults__)
            else:
                open_objects.append(each)
        referents += gc.get_referents(*open_objects)
        for each in referents:
            if gc.is_tracked(each) and id(each) not in seen and _belongs_to_run(each, loop):
                seen.add(id(each))
                waiting.append(each)


def mark_finalized(found: object) -> bool:
    """Set the bit that says that ``found`` was already finalized; True if Python now reports that."""
    if not gc.is_finalized(found):
        word = ctypes.c_size_t.from_address(id(found) - WORD_BYTES)
        word.value |= FINALIZED_BIT
    return gc.is_finalized(found)


def keep_alive(roots: Iterable[object]) -> None:
    """Keep ``roots`` alive until the process has ended, also through the interpreter's shutdown."""
    for each in roots:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(each))


def _belongs_to_run(found: object, loop: DeterministicLoop) -> bool:
    kind = type(found)
    if kind is dict:
        return "__builtins__" not in found  # type: ignore[operator]  # not the globals of a module
    if kind is list or kind is tuple:
        return True
    if isinstance(found, CLOSED_TYPES):
        return False
    if isinstance(found, asyncio.Future):
        return found.get_loop() is loop
    if isinstance(found, types.FrameType):
        # A traceback's frames may lead into the worker that ran the slice.
        top = str(found.f_globals.get("__name__", "")).partition(".")[0]
        return top not in OWN_PACKAGES and top not in sys.stdlib_module_names
    if isinstance(found, BaseException | asyncio.Handle):
        return True
    return kind.__module__.partition(".")[0] not in OWN_PACKAGES


def _unhook(future: asyncio.Future[Any]) -> None:
    """Break the reference cycle of a task and what it waits for, so that both are freed at once."""
    if not future.done():
        for callback, _ in tuple(getattr(future, "_callbacks", None) or ()):
            future.remove_done_callback(callback)


class LiveLoops:
    """The loops of this process, for its end: shutting down must not run an agent's ``finally`` either."""

    def __init__(self) -> None:
        self._loops: weakref.WeakSet[DeterministicLoop] = weakref.WeakSet()
        atexit.register(self.silence_all)

    def add(self, loop: DeterministicLoop) -> None:
        """Register a new loop. Without a lock, which a fork could leave locked; the interpreter's own suffices."""
        self._loops.add(loop)

    def silence_all(self) -> None:
        """Mark or keep alive everything that is still suspended; drops nothing."""
        for loop in self._snapshot():
            if loop.is_running():
                continue  # in a daemon thread, which stops where it is
            roots = loop.held()
            if not silence(loop, roots):
                keep_alive(roots)

    def _snapshot(self) -> list[DeterministicLoop]:
        while True:
            try:
                return list(self._loops)
            except RuntimeError:  # another thread started a run meanwhile
                continue


live_loops = LiveLoops()
