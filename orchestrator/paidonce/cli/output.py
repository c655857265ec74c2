"""Standard output and standard error of the command line.

Standard output carries results only: with ``--json`` exactly one JSON document, else text for people. Everything
else (logs, warnings, progress, errors) goes to standard error.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import click
from rich.console import Console

from paidonce_models.errors import PaidonceError

T = TypeVar("T")
MOST_CHARACTERS_OF_A_CELL: Final = 500
FIRST_ROWS_SHOWN: Final = 50
LAST_ROWS_SHOWN: Final = 450
AnyCommand = TypeVar("AnyCommand", bound=Callable[..., Any])


def json_option(command: AnyCommand) -> AnyCommand:
    """The ``--json`` option that every command has; the argument is ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document on standard output.")(command)


def print_json(document: object) -> None:
    """Write one JSON document as UTF-8, whatever the terminal's encoding; indented where a person looks at it."""
    indent = 2 if sys.stdout.isatty() else None
    try:
        data = json.dumps(document, ensure_ascii=False, indent=indent).encode()
    except UnicodeEncodeError:  # a lone surrogate, which only an escape can carry
        data = json.dumps(document, indent=indent).encode()
    click.echo(data)


def error_document(error: PaidonceError, extra: Mapping[str, object] | None = None) -> dict[str, object]:
    """What ``--json`` prints for an error; ``extra`` stands beside it."""
    return {"error": error.to_json(), **({} if extra is None else extra)}


def foreign_error_document(error: BaseException, code: str, message: str) -> dict[str, object]:
    """What ``--json`` prints for an error that is none of ours."""
    return {"error": {"type": type(error).__name__, "code": code, "message": message, "details": {}}}


def interruption_document(interruption: BaseException) -> dict[str, object]:
    """What ``--json`` prints when a signal ended the command."""
    return foreign_error_document(interruption, "interrupted", "interrupted; what was submitted is stored and goes on")


def say(message: str) -> None:
    """A line for people, on standard error."""
    click.echo(message, err=True)


def say_error(message: str) -> None:
    """An error for people, on standard error."""
    click.secho(f"Error: {message}", err=True, fg="red")


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
