"""Standard output and standard error of the command line.

Standard output carries results only: with ``--json`` exactly one JSON document (``submit --from``: one a line), else
text for people. Everything
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

from paidonce_models.errors import PaidonceError
from paidonce_models.privacy.masking import mask, mask_values
from paidonce_models.privacy.safe_logs import make_safe
from paidonce_models.privacy.visible_text import UNSAFE_WITHIN_LINES, visible, visible_lines

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


def print_json_line(document: object) -> None:
    """Write one of many JSON documents, each on a line."""
    click.echo(UNSAFE_WITHIN_LINES.sub(_json_escape, json.dumps(document, ensure_ascii=False)).encode())


def _json_escape(match: re.Match[str]) -> str:
    return json.dumps(match[0])[1:-1]


def error_document(error: PaidonceError, extra: Mapping[str, object] | None = None) -> dict[str, object]:
    """What ``--json`` prints for an error, with ``extra`` beside it."""
    told = error.to_json()
    told = {**told, "message": mask(error.message), "details": mask_values(error.details)}
    return {"error": told, **({} if extra is None else extra)}


def foreign_error_document(error: BaseException, code: str, message: str) -> dict[str, object]:
    """What ``--json`` prints for an error that is not a ``PaidonceError``."""
    return {"error": {"type": type(error).__name__, "code": code, "message": mask(message), "details": {}}}


def interruption_document(interruption: BaseException) -> dict[str, object]:
    """What ``--json`` prints when a signal ended the command."""
    return foreign_error_document(interruption, "interrupted", "interrupted; submitted runs are stored and continue")


def say(message: str) -> None:
    """A line for people, on standard error: always one line, with credentials masked."""
    click.echo(visible(mask(message)), err=True)


def say_error(message: str, lines: Sequence[str] = ()) -> None:
    """An error for people, on standard error, on one line; below it ``lines`` that explain it, such as a log's end."""
    click.secho("\n".join(visible(mask(line)) for line in (f"Error: {message}", *lines)), err=True, fg="red")


def tell(line: str = "") -> None:
    """A line for people, on standard output: always one line, whatever it quotes from the store."""
    click.echo(visible(line))


def tell_lines(text: str, *, end: str = "\n") -> None:
    """Several lines for people, on standard output: keeps line feeds, escapes whatever else steers a terminal."""
    click.echo(visible_lines(text) + end, nl=False)


def print_exact(text: str) -> None:
    """SQL or CSV: exact for a file or a program, with control characters escaped for a terminal."""
    click.echo(visible_lines(text) if sys.stdout.isatty() else text, nl=False)


def shortened(text: str, most: int = MOST_CHARACTERS_OF_A_CELL) -> str:
    """A text as a table shows it: only its beginning if it is long, because laying out megabytes takes seconds."""
    return text if len(text) <= most else f"{text[:most]}… ({len(text):,} characters; --json shows all)"


def first_and_last(rows: Sequence[T]) -> tuple[Sequence[T], Sequence[T]]:
    """All rows and none, or the first and the last of many, because laying out 10,000 rows takes seconds."""
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
