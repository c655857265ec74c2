"""What a fork does to the objects of a process: who waits for it, and who must leave what to the parent.

A forked child has copies of everything and of one thread. Connections are then shared: what one process says on them
the other is answered. Locks that another thread held stay locked. So objects that have either say here what the child
is to forget; they are held weakly, and each acts on its own. A child never closes what it leaves: a farewell to the
server, a shut-down socket or an SQLite file that is closed would be the parent's as well. ``leave_to_parent`` keeps
such objects from being collected, even when the interpreter ends.

A fork that does not go through Python (uWSGI without ``lazy-apps``) runs only what is said ``in_child``.
"""

from __future__ import annotations

import ctypes
import itertools
import os
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
    """``wait`` is called before each fork, ``then`` after it in the parent, also where the fork has failed.

    Who asked first waits first and is the last in the parent. An owner that is made, or dropped, while a process forks
    has only one of the two: they must not count.
    """
    _note(_before, owner, wait)
    _note(_in_parent, owner, then)


def in_child(owner: T, forget: Callable[[T], object]) -> None:
    """``forget`` is called in each forked child, in the order in which it was asked for, before anything else runs."""
    _note(_in_child, owner, forget)


def leave_to_parent(*shared: object) -> None:
    """Never let these be collected in this process, nor what they hold: their finalizers would reach the parent."""
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
    after_in_child=lambda: _run(_in_child),
)
