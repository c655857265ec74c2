"""What is written on the command line, as values: a run's input and its tags."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from paidonce_models.encoding import decode_json
from paidonce_models.errors import InvalidInput

AnyCommand = TypeVar("AnyCommand", bound=Callable[..., Any])


def submission_options(command: AnyCommand) -> AnyCommand:
    """The options of ``run`` and ``submit``: ``given_input``, ``key``, ``given_tags``."""
    options = (
        click.option(
            "--input",
            "given_input",
            metavar="JSON",
            default="{}",
            help="The agent's arguments by name, as a JSON object; @FILE reads a file, - standard input.  "
            "[default: {}]",
        ),
        click.option("--key", help="The same key and agent give the same run, whatever its state."),
        click.option("--tag", "given_tags", metavar="NAME=VALUE", multiple=True, help="A tag; may be repeated."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def parse_input(given: str) -> dict[str, object]:
    """The JSON object behind ``--input``. Raises ``InvalidInput`` naming what was found and how to write it."""
    data, where = _read_input(given)
    try:
        value = decode_json(data)
    except InvalidInput as error:
        raise InvalidInput(
            f"{where}: {error.message}; found {_described(data)}. Write a JSON object and quote it for the shell, "
            """as in --input '{"question": "why?"}'"""
        ) from None
    if not isinstance(value, dict):
        raise InvalidInput(
            f"{where}: expected a JSON object of the agent's arguments by name, found {_described(data, value)}; "
            """write it as in --input '{"question": "why?"}'"""
        )
    return dict(value)


def parse_tags(given: Sequence[str]) -> dict[str, str]:
    """``NAME=VALUE`` pairs as a dictionary. Raises ``InvalidInput``."""
    tags: dict[str, str] = {}
    for text in given:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise InvalidInput(f"--tag with {len(text)} characters: expected NAME=VALUE, as in --tag user=u1")
        if tags.get(name, value) != value:
            raise InvalidInput(f"--tag {name}: given twice with different values; keep one")
        tags[name] = value
    return tags


def _read_input(given: str) -> tuple[bytes, str]:
    if given == "-":
        return sys.stdin.buffer.read(), "--input from standard input"
    if given.startswith("@"):
        try:
            return Path(given[1:]).read_bytes(), f"--input {given}"
        except OSError as error:
            raise InvalidInput(f"--input {given}: {error.strerror}; check the path") from None
    return given.encode("utf-8", "surrogateescape"), "--input"


def _described(data: bytes, value: object = None) -> str:
    """What was found, without repeating it: an input may be a secret, and standard error is somebody's log."""
    if not data.strip():
        return "nothing"
    kind = {list: "an array", str: "a text", int: "a number", float: "a number", bool: "true or false"}.get(type(value))
    if b"NaN" in data or b"Infinity" in data:
        kind = "NaN or Infinity, which are no JSON, in text"
    return f"{'null' if data.strip() == b'null' else kind or 'text'} of {len(data):,} bytes"
