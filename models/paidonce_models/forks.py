"""What a fork does to the objects of a process: which run a hook before it, and which belong to the parent.

A forked child has copies of everything, and of one thread. Connections are then shared: a response to one process may
reach the other. Locks that another thread held stay locked. So objects that have either register here what the child
must forget; they are held weakly, and each acts independently. A child never closes what it forgets: a farewell to the
server, a socket shutdown or a closed SQLite file would affect the parent as well. ``leave_to_parent`` keeps such
objects from being collected, even when the interpreter ends.

A fork that bypasses Python (uWSGI without ``lazy-apps`` or ``py-call-uwsgi-fork-hooks``) runs no hooks. Then
``notice_fork``, which is called before a connection is used, runs the hooks of ``in_child``.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, Final, TypeVar

T = TypeVar("T")

_Actions = dict[int, tuple[weakref.ref[Any], Callable[[Any], object]]]
_keys: Final = itertools.count()
_before: Final[_Actions] = {}
_in_parent: Final[_Actions] = {}
_in_child: Final[_Actions] = {}


def before_fork(owner: T, wait: Callable[[T], object], then: Callable[[T], object]) -> None:
    """Call ``wait`` before each fork and ``then`` after it in the parent, also if the fork has failed.

    The first owner registered waits first and comes last in the parent. An owner that is created or dropped while a
    process forks gets only one of the two calls: they must not count.
    """
    _note(_before, owner, wait)
    _note(_in_parent, owner, then)


def in_child(owner: T, forget: Callable[[T], object]) -> None:
    """Call ``forget`` in each forked child, in the order of registration, before anything else runs."""
    _note(_in_child, owner, forget)


class _Process:
    """Which process this is, as far as it was noticed."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self.lock = threading.Lock()
        self.pid = os.getpid()


_process: Final = _Process()


def notice_fork() -> None:
    """In a child whose fork bypassed Python, run the hooks of ``in_child`` first; does nothing elsewhere."""
    if os.getpid() == _process.pid:
        return
    with _process.lock:
        if os.getpid() != _process.pid:
            _run(_in_child)
            _process.pid = os.getpid()


def _begin_child() -> None:
    _process.begin()
    _run(_in_child)


def leave_to_parent(*shared: object) -> None:
    """Never let these be collected in this process, nor what they hold: their finalizers would affect the parent."""
    for each in shared:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(each))


def _note(actions: _Actions, owner: Any, action: Callable[[Any], object]) -> None:
    key = next(_keys)
    actions[key] = (weakref.ref(owner, lambda _: actions.pop(key, None)), action)


def _run(actions: _Actions, *, backwards: bool = False) -> None:
    asked = list(actions.values())
    for reference, action in reversed(asked) if backwards else asked:
        owner = reference()
        if owner is None:
            continue
        try:
            action(owner)
        except Exception as error:  # noqa: BLE001 - the others have their turn; it is reported as Python does
            _report(error, action)


def _report(error: Exception, action: Callable[[Any], object]) -> None:
    name = getattr(action, "__qualname__", "an action")
    os.write(2, f"paidonce: {name} failed at a fork: {type(error).__name__}\n".encode())


os.register_at_fork(
    before=lambda: _run(_before),
    after_in_parent=lambda: _run(_in_parent, backwards=True),
    after_in_child=_begin_child,
)
