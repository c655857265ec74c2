"""Parses what users write on the command line: a run's input and its tags."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from paidonce.settings import load_settings
from paidonce_models.errors import InvalidInput, PayloadTooLarge
from paidonce_models.payloads.encoding import decode_json

AnyCommand = TypeVar("AnyCommand", bound=Callable[..., Any])
MOST_ROWS = 1_000_000
"""The largest value of ``--limit`` and similar options."""
LAST_STEP = 2**31 - 1
"""The last position of a step that a store can hold."""


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
            raise InvalidInput(f"--tag {name:.80}: given twice with different values; keep one")
        tags[name] = value
    return tags


def read_file(name: str, where: str) -> bytes:
    """A file that was named on the command line, ``-`` for standard input. Raises ``InvalidInput``.

    No further than a value may be large, which is seen before a byte of it is parsed.
    """
    limit = load_settings().max_payload_bytes
    try:
        if name == "-":
            data = sys.stdin.buffer.read(limit + 1)
        else:
            with Path(name).open("rb") as file:
                data = file.read(limit + 1)
    except OSError as error:
        raise InvalidInput(f"{where}: {error.strerror}; check the path") from None
    if len(data) > limit:
        raise PayloadTooLarge(
            f"{where}: more than {limit:,} bytes; raise PAIDONCE_MAX_PAYLOAD_BYTES, or store the value elsewhere and "
            "pass its address"
        )
    return data


def _read_input(given: str) -> tuple[bytes, str]:
    if given == "-":
        where = "--input from standard input"
        return read_file(given, where), where
    if given.startswith("@"):
        where = f"--input {given}"
        return read_file(given[1:], where), where
    return given.encode("utf-8", "surrogateescape"), "--input"


def _described(data: bytes, value: object = None) -> str:
    """What was found, without repeating it: an input may be a secret, and standard error is somebody's log."""
    if not data.strip():
        return "nothing"
    kind = {list: "an array", str: "a text", int: "a number", float: "a number", bool: "true or false"}.get(type(value))
    if b"NaN" in data or b"Infinity" in data:
        kind = "NaN or Infinity, which are no JSON, in text"
    return f"{'null' if data.strip() == b'null' else kind or 'text'} of {len(data):,} bytes"
