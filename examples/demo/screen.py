"""Shows the run while it happens: a live table on a terminal, plain lines anywhere else.

Owns the appearance and nothing else. `Screen.show` may be called as often as one likes.
"""

from collections.abc import Sequence
from datetime import UTC, datetime

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from examples.demo.observation import SeenStep
from paidonce_models.money import usd_string
from paidonce_models.states import StepState

REFRESH_PER_SECOND = 8
LINES_AROUND_TABLE = 12


class Screen:
    """Prints what happens; a context in which the table is live."""

    def __init__(self, console: Console) -> None:
        """Nothing is shown before the context is entered."""
        self._console = console
        self._live = (
            Live(console=console, refresh_per_second=REFRESH_PER_SECOND, vertical_overflow="crop")
            if console.is_terminal
            else None
        )
        self._told: dict[int, str] = {}
        self._killed_at: datetime | None = None

    def __enter__(self) -> "Screen":
        """Start the live table at the bottom of the terminal."""
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop it and leave the last table on the screen."""
        if self._live is not None:
            self._live.stop()

    def say(self, text: str, style: str = "") -> None:
        """Print a line above the table."""
        self._console.print(Text(text, style=style))

    def mark_kill(self) -> None:
        """From now on, show finished steps as kept and running ones as cut off."""
        self._killed_at = datetime.now(UTC)

    def show(self, steps: Sequence[SeenStep]) -> None:
        """Show the steps as they are now."""
        if self._live is not None:
            self._live.update(self._table(steps))
            return
        for step in steps:
            words, _ = self._state(step)
            if step.is_paid and step.attempts and self._told.get(step.position) != words:
                self._told[step.position] = words
                self.say(f"  step {step.position:>2}  {step.label:<28} {words}")

    def _table(self, steps: Sequence[SeenStep]) -> Table:
        paid = [step for step in steps if step.is_paid]
        tools = [step for step in steps if not step.is_paid]
        done = sum(step.is_finished for step in tools)
        caption = f"and {len(tools)} searches and fetches, {done} of them finished"
        table = Table(caption=caption, caption_justify="left", expand=False)
        table.add_column("step", justify="right")
        table.add_column("model call", min_width=28)
        table.add_column("state", min_width=34)
        table.add_column("tokens", justify="right", min_width=6)
        table.add_column("cost", justify="right", min_width=10)
        for step in paid[-max(4, self._console.height - LINES_AROUND_TABLE) :]:
            words, style = self._state(step)
            tokens = "" if step.tokens is None else f"{step.tokens:,}"
            cost = "" if step.cost_nanousd is None else usd_string(step.cost_nanousd)
            table.add_row(str(step.position), escape(step.label), Text(words, style=style), tokens, cost)
        return table

    def _state(self, step: SeenStep) -> tuple[str, str]:
        """The text and colour for a step's state."""
        before_kill = self._killed_at is not None and (
            (step.finished_at is not None and step.finished_at < self._killed_at)
            or (step.finished_at is None and step.claimed_at is not None and step.claimed_at < self._killed_at)
        )
        if step.is_finished and before_kill:
            return "paid, kept", "green"
        if step.is_finished and step.lost:
            return f"paid in attempt {step.attempts}, after a lost one", "yellow"
        if step.is_finished:
            return "paid", "green"
        if step.state is StepState.RUNNING and before_kill:
            return "cut off; its worker is dead", "bold red"
        if step.state is StepState.RUNNING and step.attempts > 1:
            return f"calling the model, attempt {step.attempts}", "yellow"
        if step.state is StepState.RUNNING:
            return "calling the model", "cyan"
        return str(step.state), "dim"
