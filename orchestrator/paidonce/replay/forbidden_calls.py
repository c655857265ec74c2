"""What a replay loop refuses, by name.

Owns the list of loop methods that cannot be replayed and the search for the agent's own
line in a stack. Must never let one of them through: an input that is not in the event
history would be missing on replay. ``ReplayLoop`` is built on ``RefusingLoop``; the
machine blocks the run on ``loop.refusals``, whatever the agent did with the exception.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterable, Iterator
from types import CodeType, FrameType
from typing import Any, NoReturn

from paidonce_models.errors import NotReplayable, ReplayError

LOOP_MARK = "__replay_loop__"
"""A global of the module that runs slices, which identifies its frames."""
OWN_PACKAGES = frozenset({"paidonce", "paidonce_models", "paidonce_workers"})
FRAME_ATTRIBUTES = ("cr_frame", "gi_frame", "ag_frame")
AWAIT_ATTRIBUTES = ("cr_await", "gi_yieldfrom", "ag_await")
INSTALLED_FOLDERS = ("/site-packages/", "/dist-packages/", "\\site-packages\\")


def refused(name: str) -> Callable[..., NoReturn]:
    """A loop method that raises ``NotReplayable`` when it is called, before anything is awaited."""

    def method(self: RefusingLoop, *args: object, **kwargs: object) -> NoReturn:
        self.refuse(f"loop.{name}()")

    method.__name__ = name
    method.__qualname__ = f"RefusingLoop.{name}"
    method.__doc__ = f"Refused: ``{name}`` cannot be replayed; raises ``NotReplayable``."
    return method


class RefusingLoop(asyncio.AbstractEventLoop):
    """The part of a replay loop that refuses, and records it."""

    refusals: list[ReplayError]

    def suspended_creators(self) -> Iterable[object]:
        """The coroutines of the tasks that created the current one, the nearest first."""
        return ()

    def refuse(self, what: str) -> NoReturn:
        """Record and raise that the agent used ``what``, which cannot be replayed."""
        error = describe_refusal(what, sys._getframe(1), self.suspended_creators())
        self.refusals.append(error)
        raise error

    run_forever = refused("run_forever")
    run_until_complete = refused("run_until_complete")
    stop = refused("stop")
    run_in_executor = refused("run_in_executor")  # type: ignore[assignment]  # generic in its arguments
    set_default_executor = refused("set_default_executor")
    getaddrinfo = refused("getaddrinfo")
    getnameinfo = refused("getnameinfo")
    create_connection = refused("create_connection")
    create_server = refused("create_server")
    sendfile = refused("sendfile")
    start_tls = refused("start_tls")
    create_unix_connection = refused("create_unix_connection")
    create_unix_server = refused("create_unix_server")
    connect_accepted_socket = refused("connect_accepted_socket")
    create_datagram_endpoint = refused("create_datagram_endpoint")
    connect_read_pipe = refused("connect_read_pipe")
    connect_write_pipe = refused("connect_write_pipe")
    subprocess_shell = refused("subprocess_shell")
    subprocess_exec = refused("subprocess_exec")
    add_reader = refused("add_reader")  # type: ignore[assignment]  # generic in its arguments
    remove_reader = refused("remove_reader")
    add_writer = refused("add_writer")  # type: ignore[assignment]  # generic in its arguments
    remove_writer = refused("remove_writer")
    sock_recv = refused("sock_recv")
    sock_recv_into = refused("sock_recv_into")
    sock_recvfrom = refused("sock_recvfrom")
    sock_recvfrom_into = refused("sock_recvfrom_into")
    sock_sendall = refused("sock_sendall")
    sock_sendto = refused("sock_sendto")
    sock_connect = refused("sock_connect")
    sock_accept = refused("sock_accept")
    sock_sendfile = refused("sock_sendfile")
    add_signal_handler = refused("add_signal_handler")  # type: ignore[assignment]  # generic in its arguments
    remove_signal_handler = refused("remove_signal_handler")
    set_task_factory = refused("set_task_factory")
    set_exception_handler = refused("set_exception_handler")
    set_debug = refused("set_debug")


def describe_refusal(what: str, frame: FrameType | None, creators: Iterable[object] = ()) -> NotReplayable:
    """The error for ``what``, called somewhere above ``frame``.

    Names the agent's file and line and, if a library is between the agent's line and the
    loop, what that line called. ``creators`` are the suspended coroutines that led to the
    task: a library that starts its own tasks has the agent's line in one of those.
    """
    frames = [each for each in _frames_of_slice(frame) if not _is_ours(each)]
    found = _authors_line(frames)
    outermost = frames[-1] if frames else None
    for creator in creators:
        if found is not None:
            break
        frames = [each for each in reversed(suspended_frames(creator)) if not _is_ours(each)]
        found = _authors_line(frames)
        outermost = frames[-1] if frames else outermost
    if found is None and outermost is not None:
        found = outermost, None  # the agent itself is an installed package
    if found is None:
        return NotReplayable(f"{what} cannot be replayed; move it into a @step", call=what)
    line, callee = found
    called = what if callee is None else f"{_called_name(callee)}() ({what})"
    return refusal_at(called, line.f_code.co_filename, line.f_lineno)


def _frames_of_slice(frame: FrameType | None) -> Iterator[FrameType]:
    """The stack from the inside out, limited to the agent: below the slice is the worker."""
    left_the_loop = False
    while frame is not None:
        in_loop = LOOP_MARK in frame.f_globals
        if in_loop and left_the_loop:
            return
        left_the_loop = left_the_loop or not _is_ours(frame)
        yield frame
        frame = frame.f_back


def _authors_line(frames: Iterable[FrameType]) -> tuple[FrameType, FrameType | None] | None:
    """The author's innermost frame and what it called; ``frames`` from the inside out."""
    callee: FrameType | None = None
    for frame in frames:
        if is_authors_code(frame.f_code, frame.f_globals):
            return frame, callee
        callee = frame
    return None


def _is_ours(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0] in OWN_PACKAGES


def refusal_at(called: str, file: str, line: int) -> NotReplayable:
    """The error for ``called`` at a known line of the agent."""
    return NotReplayable(
        f"{called} at {file}:{line} cannot be replayed; move it into a @step", call=called, file=file, line=line
    )


def is_authors_code(code: CodeType, module_globals: dict[str, Any]) -> bool:
    """Whether a frame belongs to the agent's author: not to Python, to Paidonce or to an installed library."""
    top = str(module_globals.get("__name__", "")).partition(".")[0]
    if top in OWN_PACKAGES or (top in sys.stdlib_module_names and top != "__main__"):
        return False
    file = code.co_filename
    return not file.startswith("<frozen ") and not any(folder in file for folder in INSTALLED_FOLDERS)


def suspended_frames(coroutine: object) -> list[FrameType]:
    """The frames of a suspended coroutine's chain of awaits, from the outside in."""
    frames: list[FrameType] = []
    while coroutine is not None:
        frames += [each for name in FRAME_ATTRIBUTES if (each := getattr(coroutine, name, None)) is not None]
        coroutine = next(
            (each for name in AWAIT_ATTRIBUTES if (each := getattr(coroutine, name, None)) is not None), None
        )
    return frames


def where_suspended(coroutine: object) -> tuple[str, int] | None:
    """File and line at which the author's code in a suspended coroutine waits."""
    frames = suspended_frames(coroutine)
    found = _authors_line(reversed(frames))
    frame = found[0] if found is not None else next(iter(frames), None)
    return None if frame is None else (frame.f_code.co_filename, frame.f_lineno)


def where_running(frame: FrameType | None) -> tuple[str, int] | None:
    """File and line of the author's innermost frame in a running slice."""
    found = _authors_line(_frames_of_slice(frame))
    return None if found is None else (found[0].f_code.co_filename, found[0].f_lineno)


def _called_name(frame: FrameType) -> str:
    module = str(frame.f_globals.get("__name__", ""))
    package = module.partition(".")[0]
    return f"{package}.{frame.f_code.co_qualname}" if package else frame.f_code.co_qualname
