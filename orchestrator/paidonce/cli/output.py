"""Standard output and standard error of the command line.

Standard output carries results only: with ``--json`` exactly one JSON document, else text for people. Everything
else (logs, warnings, progress, errors) goes to standard error.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import click
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from paidonce_models.errors import PaidonceError
from paidonce_models.masking import mask, mask_values
from paidonce_models.safe_logs import make_safe
from paidonce_models.visible_text import UNSAFE_WITHIN_LINES, visible, visible_lines

T = TypeVar("T")
MOST_CHARACTERS_OF_A_CELL: Final = 500
FIRST_ROWS_SHOWN: Final = 50
LAST_ROWS_SHOWN: Final = 450
AnyCommand = TypeVar("AnyCommand", bound=Callable[..., Any])


def json_option(command: AnyCommand) -> AnyCommand:
    """The ``--json`` option that every command has; the argument is ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document on standard output.")(command)


def print_json(document: object) -> None:
    """Write one JSON document as UTF-8, whatever the terminal's encoding; indented where a person looks at it.

    It is exact: whatever a terminal could obey or hide is an escape of JSON's own, which a parser turns back.
    """
    indent = 2 if sys.stdout.isatty() else None
    text = json.dumps(document, ensure_ascii=False, indent=indent)
    click.echo(UNSAFE_WITHIN_LINES.sub(_json_escape, text).encode())


def _json_escape(match: re.Match[str]) -> str:
    return json.dumps(match[0])[1:-1]


def error_document(error: PaidonceError, extra: Mapping[str, object] | None = None) -> dict[str, object]:
    """What ``--json`` prints for an error; ``extra`` stands beside it."""
    told = error.to_json()
    told = {**told, "message": mask(error.message), "details": mask_values(error.details)}
    return {"error": told, **({} if extra is None else extra)}


def foreign_error_document(error: BaseException, code: str, message: str) -> dict[str, object]:
    """What ``--json`` prints for an error that is none of ours."""
    return {"error": {"type": type(error).__name__, "code": code, "message": mask(message), "details": {}}}


def interruption_document(interruption: BaseException) -> dict[str, object]:
    """What ``--json`` prints when a signal ended the command."""
    return foreign_error_document(interruption, "interrupted", "interrupted; what was submitted is stored and goes on")


def say(message: str) -> None:
    """A line for people, on standard error; one line whatever is in it, and no credential."""
    click.echo(visible(mask(message)), err=True)


def say_error(message: str, lines: Sequence[str] = ()) -> None:
    """An error for people, on standard error, on one line; below it ``lines`` that explain it, such as a log's end."""
    click.secho("\n".join(visible(mask(line)) for line in (f"Error: {message}", *lines)), err=True, fg="red")


def tell(line: str = "") -> None:
    """A line for people, on standard output; what it quotes of the store is on this one line."""
    click.echo(visible(line))


def tell_lines(text: str, *, end: str = "\n") -> None:
    """Text of several lines for people, on standard output: line feeds stay, nothing else that a terminal obeys."""
    click.echo(visible_lines(text) + end, nl=False)


def print_exact(text: str) -> None:
    """SQL or CSV: to a file or another program exactly as it is, to a terminal without what that obeys."""
    click.echo(visible_lines(text) if sys.stdout.isatty() else text, nl=False)


class SafeTable(Table):
    """A table whose cells come from the store; each is one line without anything that a terminal obeys."""

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


def shortened(text: str, most: int = MOST_CHARACTERS_OF_A_CELL) -> str:
    """A text as a table shows it: its beginning where it is long. Laying out megabytes takes a table seconds."""
    return text if len(text) <= most else f"{text[:most]}… ({len(text):,} characters; --json shows all)"


def first_and_last(rows: Sequence[T]) -> tuple[Sequence[T], Sequence[T]]:
    """All rows and none, or the first and the last of many: a table of 10,000 rows takes seconds to lay out."""
    if len(rows) <= FIRST_ROWS_SHOWN + LAST_ROWS_SHOWN:
        return rows, ()
    return rows[:FIRST_ROWS_SHOWN], rows[-LAST_ROWS_SHOWN:]


def tags_text(tags: Mapping[str, str]) -> str:
    """Tags as a table shows them."""
    return shortened(" ".join(f"{shortened(name)}={shortened(value)}" for name, value in tags.items()))


def configure_logging() -> None:
    """Warnings and worse go to standard error, one line each."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(message)s")
    make_safe(logging.getLogger().handlers)
