"""``forbid_nondeterminism``: detects what an agent must not do between two awaits, with its line.

Owns the detection of clocks, randomness, I/O and threads used by an agent's own code,
directly or through a library. A profile function on the current thread detects clocks,
randomness and threads, an audit hook I/O. Each finding is attributed to the nearest frame
of user code; code that Paidonce, logging or the import system runs for its own purposes
is exempt. For tests only: profiling slows Python down.

Not detected: what C code calls without Python in between (a pydantic
``default_factory=datetime.now``, ``numpy.random``) and the order of sets. Replaying the
run and comparing detects what matters of that.
"""

from __future__ import annotations

import datetime
import dis
import gc
import os
import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Final

from paidonce.replay import ordering
from paidonce_models.errors import NotReplayable
from paidonce_workers.capture import http_tap, threads
from paidonce_workers.capture import wrapping as layers

USE_NOW: Final = "use paidonce.now(), which is the recorded time"
USE_SLEEP: Final = "use `await asyncio.sleep(...)`, which is durable"
USE_RANDOM: Final = "use paidonce.random(), which is the same on every replay"
USE_UUID: Final = "use paidonce.uuid(), which is the same on every replay"
USE_STEP: Final = "move it into a @step"

FORBIDDEN_FUNCTIONS: Final = {
    **dict.fromkeys(
        (
            f"time.{name}{suffix}"
            for name in ("time", "monotonic", "perf_counter", "process_time", "thread_time", "clock_gettime")
            for suffix in ("", "_ns")
        ),
        USE_NOW,
    ),
    "time.sleep": USE_SLEEP,
    f"{os.name}.urandom": USE_RANDOM,
    f"{os.name}.getrandom": USE_RANDOM,
    "_uuid.generate_time_safe": USE_UUID,
    **dict.fromkeys(("_thread.start_new_thread", "_thread.start_joinable_thread"), USE_STEP),
    **dict.fromkeys((f"{os.name}.{name}" for name in ("stat", "lstat", "access")), USE_STEP),
}
"""Built-in functions by the module that defines them, with the remedy. ``os.name`` is ``posix`` on our platforms."""

CLOCKS_WITHOUT_ARGUMENT: Final = {"localtime": 1, "gmtime": 1, "ctime": 1, "asctime": 1, "strftime": 2}
"""Functions of ``time`` that read the clock only if they get fewer arguments than this."""

CALL: Final = dis.opmap["CALL"]

DATE_METHODS: Final = {"now", "utcnow", "today"}

FORBIDDEN_EVENTS: Final = ("open", "socket.", "subprocess.", "os.", "sqlite3.", "builtins.input")
"""Prefixes of the audit events that are I/O (https://docs.python.org/3/library/audit_events.html)."""

ALLOWED_EVENTS: Final = ("os.putenv", "os.unsetenv", "socket.__del__")

SEED: Final = random.Random.seed.__code__

EXEMPT_PACKAGES: Final = frozenset(
    {
        *("paidonce", "paidonce_models", "paidonce_workers"),
        *("logging", "warnings", "linecache", "traceback"),
        *("importlib", "_frozen_importlib", "_frozen_importlib_external", "zipimport"),
        *("_pytest", "pluggy", "coverage", "pdb", "bdb"),
    }
)
"""Packages that read clocks and files for their own purposes, without effect on a replay."""

TRANSPARENT_MODULES: Final = frozenset({each.__name__ for each in (ordering, layers, threads, http_tap)})
"""Parts of Paidonce that are called on behalf of others: they wrap ``Thread.start`` and HTTP requests."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One use of something that a replay cannot repeat."""

    used: str
    file: str
    line: int
    function: str
    remedy: str

    @property
    def message(self) -> str:
        """The finding in one line: where, what, the remedy."""
        return f"{self.file}:{self.line} in {self.function}: {self.used} is not the same on replay; {self.remedy}"


class Guard:
    """The findings of one ``forbid_nondeterminism`` block."""

    def __init__(self, entered_from: FrameType | None) -> None:
        self.findings: list[Finding] = []
        self._entered_from = entered_from

    def profile(self, frame: FrameType, event: str, argument: object) -> None:
        """The profile function: checks each call of a built-in, and unseeded ``random.Random()``."""
        if event == "c_call":
            found = forbidden_builtin(argument) or clock_without_argument(argument, frame)
            if found is not None:
                # asyncio's loops read clocks for scheduling, which is allowed.
                self.report(frame, *found, exempt=EXEMPT_PACKAGES | {"asyncio"})
        elif event == "call" and frame.f_code is SEED and frame.f_locals.get("a") is None:
            self.report(frame, "random.Random() without a seed", USE_RANDOM, exempt=EXEMPT_PACKAGES)

    def audit(self, event: str, arguments: tuple[object, ...]) -> None:
        """The audit hook: I/O."""
        if not event.startswith(FORBIDDEN_EVENTS) or event in ALLOWED_EVENTS:
            return
        what = f"{event}({arguments[0]!r})" if event == "open" and arguments else event
        self.report(sys._getframe(2), what, USE_STEP, exempt=EXEMPT_PACKAGES)

    def report(self, frame: FrameType, primitive: str, remedy: str, *, exempt: frozenset[str]) -> None:
        """Attribute it to the nearest user code on the stack, unless an exempt package comes before that."""
        entry: FrameType | None = None
        current: FrameType | None = frame
        while current is not None:
            module = str(current.f_globals.get("__name__", ""))
            package = module.partition(".")[0]
            if current.f_code in _collectors():
                return  # callbacks of the garbage collector run in the middle of any code
            if module not in TRANSPARENT_MODULES:
                if package in exempt:
                    return
                if is_user_code(current, package):
                    break
                entry = current
            current = current.f_back
        if current is None or self._is_importing(current):
            return
        used = primitive if "(" in primitive else f"{primitive}()"
        if entry is not None:
            library = str(entry.f_globals.get("__name__", "?"))
            used = f"{library}.{entry.f_code.co_name}(), which uses {used},"
            remedy = USE_UUID if library == "uuid" else remedy
        finding = Finding(
            used=used,
            file=current.f_code.co_filename,
            line=current.f_lineno,
            function=current.f_code.co_qualname,
            remedy=remedy,
        )
        self.findings.append(finding)
        raise NotReplayable(finding.message)

    def error(self) -> NotReplayable:
        """All findings in one error."""
        return NotReplayable("; ".join(dict.fromkeys(finding.message for finding in self.findings)))

    def _is_importing(self, frame: FrameType) -> bool:
        """Whether the code runs because the block imports a module: it runs once per process, replay or not."""
        current: FrameType | None = frame
        while current is not None and current is not self._entered_from:
            if current.f_globals.get("__name__") in ("importlib._bootstrap", "_frozen_importlib"):
                return True
            current = current.f_back
        return False


def _collectors() -> set[object]:
    """The code of the functions that the garbage collector calls."""
    return {getattr(callback, "__code__", None) for callback in gc.callbacks}


def forbidden_builtin(function: object) -> tuple[str, str] | None:
    """The name of a built-in that reads a clock, randomness or the file system, and the remedy."""
    name = getattr(function, "__name__", "")
    owner = getattr(function, "__self__", None)
    if owner is None or isinstance(owner, type(sys)):
        full_name = f"{getattr(function, '__module__', '')}.{name}"
        remedy = FORBIDDEN_FUNCTIONS.get(full_name)
        return None if remedy is None else (full_name.replace(f"{os.name}.", "os.", 1), remedy)
    if isinstance(owner, type) and issubclass(owner, datetime.date) and name in DATE_METHODS:
        return f"{owner.__name__}.{name}", USE_NOW
    # The functions of the module `random` are methods of one shared, unseeded generator.
    if owner is getattr(random, "_inst", None):
        return f"random.{name}", USE_RANDOM
    return None


def clock_without_argument(function: object, frame: FrameType) -> tuple[str, str] | None:
    """``time.strftime("%Y")`` and the like in the current call of ``frame``: the clock is their default.

    The number of arguments is an operand of the call's instruction, the same in Python 3.11 to 3.13; a call with
    ``*arguments`` is another instruction, and is assumed to pass them all.
    """
    name = getattr(function, "__name__", "")
    expected = CLOCKS_WITHOUT_ARGUMENT.get(name)
    if expected is None or getattr(function, "__module__", "") != "time":
        return None
    code, at = frame.f_code.co_code, frame.f_lasti
    given = code[at + 1] if code[at] == CALL else expected
    return (f"time.{name}() without a time", USE_NOW) if given < expected else None


def is_user_code(frame: FrameType, package: str) -> bool:
    """Whether a frame is neither the standard library's, nor an installed package's, nor generated."""
    file = frame.f_code.co_filename
    if package == "__main__":
        return True
    if package in sys.stdlib_module_names or file.startswith("<"):
        return False
    return "site-packages" not in file and "dist-packages" not in file


class _Active(threading.local):
    """The guards of this thread, innermost last; an audit hook cannot be removed, so it checks here."""

    def __init__(self) -> None:
        self.guards: list[Guard] = []


_active = _Active()
_hook_lock = threading.Lock()
_hook_installed = threading.Event()


def _audit_hook(
    event: str, arguments: tuple[object, ...], *, is_finalizing: Callable[[], bool] = sys.is_finalizing
) -> None:
    if is_finalizing():  # a default, as by now the names of this module may be None
        return
    guards = _active.guards
    if guards and event.startswith(FORBIDDEN_EVENTS):
        guards[-1].audit(event, arguments)


def _install_audit_hook() -> None:
    with _hook_lock:
        if not _hook_installed.is_set():
            sys.addaudithook(_audit_hook)
            _hook_installed.set()


@contextmanager
def forbid_nondeterminism() -> Iterator[Guard]:
    """Raise ``NotReplayable`` if user code on this thread uses a clock, randomness, I/O or a thread.

    The error names the function used, the file and line, and the remedy. It is raised at
    the use, and again at the end of the block if the code swallowed it. Reading
    ``os.environ``, logging, seeded generators and imports are allowed.
    """
    _install_audit_hook()
    guard = Guard(sys._getframe(2))
    before = sys.getprofile()
    _active.guards.append(guard)
    sys.setprofile(guard.profile)
    try:
        yield guard
    except Exception as error:
        # What follows from a swallowed finding is less informative than the finding.
        if guard.findings and not isinstance(error, NotReplayable):
            raise guard.error() from error
        raise
    finally:
        sys.setprofile(before)
        _active.guards.remove(guard)
    if guard.findings:
        raise guard.error()
