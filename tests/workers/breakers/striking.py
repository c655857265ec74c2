"""Interrupts struck at chosen bytecodes: what ``PyThreadState_SetAsyncExc`` does at a moment that nobody can choose.

CPython looks for interrupts when a function begins, when a loop goes back and
when a call into C has returned. A trace function that raises at those places,
one after the other, tries them all; random real interrupts try a few. Where interrupts are deferred none strikes, as
``ThreadScope.throw`` sends none then, but for the one that was on its way when the block was entered.
"""

from __future__ import annotations

import dis
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from paidonce_workers.bodies import interrupt

LOOKS_FOR_INTERRUPTS = frozenset({"RESUME", "CALL", "CALL_KW", "CALL_FUNCTION_EX", "JUMP_BACKWARD"})
LONGEST_SECONDS = 20.0


class Struck(BaseException):
    """As the interrupts of steps, no ``Exception``."""


class Victim(threading.Thread):
    """Calls ``act`` and is struck at the place of this number; places are counted from 0."""

    def __init__(self, act: Callable[[], object], at: int, within: tuple[str, ...]) -> None:
        super().__init__(daemon=True)
        self._within = within
        self._act = act
        self._at = at
        self._last: dict[FrameType, str] = {}
        self._scope = interrupt.ThreadScope()
        self.places = 0
        self.ended_with: type[BaseException] | None = None
        self.struck_in = "nowhere"

    def run(self) -> None:
        """The thread."""
        self._scope.open()
        sys.settrace(self._enter)
        try:
            self._act()
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.ended_with = type(error)
        finally:
            sys.settrace(None)
            self._last.clear()
            self._scope.close()

    def _enter(self, frame: FrameType, event: str, argument: Any) -> Any:
        del event, argument
        if not any(part in frame.f_code.co_filename for part in self._within) or _is_where_python_swallows(frame):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._step

    def _step(self, frame: FrameType, event: str, argument: Any) -> Any:
        del argument
        if event != "opcode":
            return self._step
        before, self._last[frame] = self._last.get(frame), dis.opname[frame.f_code.co_code[frame.f_lasti]]
        if before in LOOKS_FOR_INTERRUPTS and not self._is_deferred_in(frame):
            self.places += 1
            if self.places == self._at + 1:
                self.struck_in = f"{frame.f_code.co_filename}:{frame.f_lineno} ({frame.f_code.co_name})"
                raise Struck
        return self._step

    def _is_deferred_in(self, frame: FrameType) -> bool:
        is_entering = frame.f_code is type(interrupt.interrupts_deferred).__enter__.__code__
        if is_entering and frame.f_locals.get("before") == 0:
            return False
        return self._scope._deferrals > 0


def _is_where_python_swallows(frame: FrameType | None) -> bool:
    """In finalizers, and where asyncio hands a result over, Python itself logs what is raised and goes on."""
    while frame is not None:
        if frame.f_code.co_name in ("__del__", "_remove", "_set_state"):
            return True
        frame = frame.f_back
    return False


def strike(act: Callable[[], object], at: int, within: tuple[str, ...]) -> Victim:
    """Call it in a thread of its own that is struck there, and wait for the thread's end."""
    victim = Victim(act, at, within)
    victim.start()
    victim.join(LONGEST_SECONDS)
    assert not victim.is_alive(), f"it hangs, struck in {victim.struck_in}"
    return victim


def strike_everywhere(act: Callable[[], object], *, within: tuple[str, ...]) -> Iterator[Victim]:
    """Strike one call after the other, each at a later place, until one ends by itself.

    Only in code whose file has one of these parts in its name.
    """
    at = 0
    while True:
        victim = strike(act, at, within)
        if victim.struck_in == "nowhere":
            return
        yield victim
        at += 1
