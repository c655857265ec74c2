"""Tables of the command line and the consoles that show them; not in ``output``, as rich takes a while to import."""

from __future__ import annotations

from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from paidonce_models.privacy.visible_text import visible


class SafeTable(Table):
    """A table whose cells come from the store: each is one line with control characters escaped."""

    def add_row(self, *cells: RenderableType | None, **options: Any) -> None:
        """As ``Table.add_row``; texts are never markup."""
        super().add_row(*(_safe_cell(cell) for cell in cells), **options)

    def add_column(self, header: RenderableType = "", *rest: Any, **options: Any) -> None:
        """As ``Table.add_column``; a view's columns and a tag's name are headings."""
        super().add_column(_safe_cell(header) or "", *rest, **options)


def _safe_cell(cell: RenderableType | None) -> RenderableType | None:
    if isinstance(cell, Text):
        return Text(visible(cell.plain), style=cell.style)
    return Text(visible(cell)) if isinstance(cell, str) else cell


def error_console() -> Console:
    """The console for progress; a terminal only if standard error is one."""
    return Console(stderr=True, highlight=False)


def output_console() -> Console:
    """The console for tables on standard output; without a terminal nothing is cut off."""
    console = Console(highlight=False, markup=False, emoji=False)
    return console if console.is_terminal else Console(highlight=False, markup=False, emoji=False, width=200)
