"""Reads submissions from a file: one JSON object a line, no further ahead than a chunk."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import BinaryIO, Final

from paidonce.runs.many_submissions import Submission
from paidonce_models.errors import InvalidInput, PayloadTooLarge
from paidonce_models.payloads.encoding import decode_json
from paidonce_models.payloads.json_values import JsonValue, shown

NAMES: Final = ("input", "key", "tags", "priority", "queue")
BESIDE_THE_INPUT_BYTES: Final = 64 * 1024
"""What a line may have beyond the largest input: the key, tags, spaces."""
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_EXPECTED: Final = """write one JSON object a line, as in {"input": {"topic": "tabs"}, "key": "req-42"}"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Defaults:
    """What applies to lines that do not say otherwise."""

    tags: dict[str, str]
    priority: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A line that was read; ``number`` counts from 1, blank lines too."""

    number: int
    submission: Submission
    bytes: int


@contextmanager
def opened(name: str) -> Iterator[BinaryIO]:
    """The file, ``-`` for standard input. Raises ``InvalidInput``."""
    if name == "-":
        yield sys.stdin.buffer
        return
    try:
        file = Path(name).open("rb")  # noqa: SIM115 - an error of the block is not one of opening
    except OSError as error:
        raise InvalidInput(f"--from {name}: {error.strerror}; check the path") from None
    with file:
        yield file


def read_lines(file: BinaryIO, name: str, defaults: Defaults, *, max_payload_bytes: int) -> Iterator[Line]:
    """The submissions in order. Raises ``InvalidInput`` or ``PayloadTooLarge`` with the line's number."""
    limit = max_payload_bytes + BESIDE_THE_INPUT_BYTES
    for number in count(1):
        where = f"{name} line {number}"
        try:
            data = file.readline(limit + 1)
        except OSError as error:
            raise InvalidInput(f"{where}: {error.strerror}; check the path") from None
        if not data:
            return
        if len(data) > limit:
            raise PayloadTooLarge(f"{where}: more than {limit:,} bytes; raise PAIDONCE_MAX_PAYLOAD_BYTES", line=number)
        text = data.removeprefix(_BYTE_ORDER_MARK) if number == 1 else data
        if text.strip():
            yield Line(number=number, submission=_submission(text, where, number, defaults), bytes=len(data))


def _submission(data: bytes, where: str, number: int, defaults: Defaults) -> Submission:
    try:
        found = decode_json(data)
    except InvalidInput as error:
        raise InvalidInput(f"{where}: {error.message}; {_EXPECTED}", line=number) from None
    if not isinstance(found, dict):
        raise InvalidInput(f"{where}: expected an object, found {type(found).__name__}; {_EXPECTED}", line=number)
    unknown = sorted(found.keys() - set(NAMES))
    if unknown:
        raise InvalidInput(
            f"{where}: found {', '.join(shown(name) for name in unknown)}; expected {', '.join(NAMES)}, and the "
            "agent's arguments inside of input",
            line=number,
        )
    # Their types are checked with everything else, when they become a run.
    given: dict[str, JsonValue] = {name: value for name, value in found.items() if value is not None}
    tags = given.get("tags", {})
    return Submission(
        input=given.get("input", {}),  # type: ignore[arg-type]  # checked below
        key=given.get("key"),  # type: ignore[arg-type]
        tags={**defaults.tags, **tags} if isinstance(tags, dict) else tags,  # type: ignore[arg-type,dict-item]
        priority=given.get("priority", defaults.priority),  # type: ignore[arg-type]
        queue=given.get("queue"),  # type: ignore[arg-type]
    )
