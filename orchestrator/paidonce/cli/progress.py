"""The steps of a run as they happen, on standard error: a table on a terminal, else one line for each change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from paidonce.cli.output import say
from paidonce.cli.tables import SafeTable, error_console
from paidonce_models.store.queries import StepView

STYLES = {
    "succeeded": "green",
    "running": "cyan",
    "retrying": "yellow",
    "held": "yellow",
    "parked": "yellow",
    "failed": "red",
    "cancelled": "dim",
}
_LINES_AROUND_THE_TABLE = 6
_FEWEST_ROWS = 5


class Progress(Protocol):
    """Shows a run while a command waits for it."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def show(self, run_state: str, steps: Sequence[StepView]) -> None:
        """The run as it is now."""


def progress_for_this_terminal() -> Progress:
    """A live table where standard error is a terminal, else plain lines."""
    console = error_console()
    return LiveProgress(console) if console.is_terminal else PlainProgress()


class PlainProgress:
    """One line for each change of a step, for logs and pipes."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[str, int]] = {}
        self._run_state = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Nothing is open."""

    def show(self, run_state: str, steps: Sequence[StepView]) -> None:
        """Print what is new since the last time."""
        for step in steps:
            now = (step.state, step.attempts)
            if self._seen.get(step.step) != now:
                self._seen[step.step] = now
                say(f"step {step.step} {step.name}: {step.state}{_remarks(step, quoting=False)}")
        if run_state != self._run_state:
            self._run_state = run_state
            say(f"run: {run_state}")


class LiveProgress:
    """A live table of the newest steps; older ones are only counted."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=False)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, run_state: str, steps: Sequence[StepView]) -> None:
        """Redraw the table."""
        self._live.update(self._picture(run_state, steps), refresh=True)

    def _picture(self, run_state: str, steps: Sequence[StepView]) -> RenderableType:
        rows = max(_FEWEST_ROWS, self._console.height - _LINES_AROUND_THE_TABLE)
        table = SafeTable("step", "name", "state", "time", box=None, pad_edge=False)
        for step in steps[-rows:]:
            state = Text(f"{step.state}{_remarks(step)}", style=STYLES.get(step.state, ""))
            table.add_row(str(step.step), Text(step.name), state, _seconds(step))
        counts = Counter(step.state for step in steps)
        summary = ", ".join(f"{count} {state}" for state, count in counts.items()) or "no steps yet"
        return Group(table, Text(f"run {run_state}: {summary}", style="bold"))


def _remarks(step: StepView, *, quoting: bool = True) -> str:
    """What is unusual about a step; without ``quoting``, only the type of its error, as in a log."""
    remarks = []
    if step.attempts > 1:
        remarks.append(f"attempt {step.attempts}")
    if step.lost:
        remarks.append(f"{step.lost} lost")
    if step.waits_for is not None:
        remarks.append(step.waits_for)
    elif step.error is not None:
        words = f": {str(step.error.get('message', ''))[:200]}" if quoting else ""
        remarks.append(f"{step.error.get('type', 'Error')}{words}")
    return f" ({', '.join(remarks)})" if remarks else ""


def _seconds(step: StepView) -> str:
    if step.started_at is None:
        return ""
    end = step.finished_at if step.finished_at is not None else datetime.now(UTC)
    return f"{max(0.0, (end - step.started_at).total_seconds()):.1f} s"
