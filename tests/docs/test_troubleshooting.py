"""The page on troubleshooting: its headings are messages that the code has, each with a cause and a remedy."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from paidonce_models.errors import ReplayError, ResultNotStorable, StatementRefused, StepDoesNotFit, type_registry
from tests.docs.readme_file import ROOT

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
HEADINGS = re.findall(r"^### `+ ?(.*?) ?`+$", PAGE, re.MULTILINE)
HOLE = "…"
SOURCES = ("models/paidonce_models", "orchestrator/paidonce", "workers/paidonce_workers")


@functools.cache
def messages() -> str:
    """Every text in the code, one a line, with a hole for whatever is put into it."""
    return "\n".join(text for source in SOURCES for path in (ROOT / source).rglob("*.py") for text in texts_of(path))


def texts_of(path: Path) -> Iterator[str]:
    """The literals of a module; an f-string is one literal with holes."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield flat(node.value)
        elif isinstance(node, ast.JoinedStr):
            yield flat("".join(str(part.value) if isinstance(part, ast.Constant) else HOLE for part in node.values))


def flat(text: str) -> str:
    """In one line, with ``%s`` and its like as holes."""
    return re.sub(rf"(?:%[sdr]|%\.\d+f|{HOLE})+", HOLE, " ".join(text.split()))


@pytest.mark.parametrize("heading", HEADINGS)
def test_a_heading_is_a_message_of_the_code(heading: str) -> None:
    parts = [re.escape(part) for part in heading.split(HOLE)]
    assert re.search(r"[^\n]*?".join(parts), messages()), "no message of the code has these words"


def test_every_heading_has_a_cause_and_a_remedy() -> None:
    bodies = re.split(r"^### .*$", PAGE, flags=re.MULTILINE)[1:]
    assert len(bodies) == len(HEADINGS) > 50
    for heading, body in zip(HEADINGS, bodies, strict=True):
        assert re.match(r"\s*\*\*Cause:\*\* .+\n\n\*\*Remedy:\*\* .+", body), heading


def test_every_reason_to_block_a_run_is_in_the_table() -> None:
    reasons = {
        error.code
        for error in type_registry.values()
        if issubclass(error, ReplayError | ResultNotStorable | StepDoesNotFit | StatementRefused)
    } - {"replay", "bound_reached"}
    listed = set(re.findall(r"^\| `(\w+)` \| \[", PAGE, re.MULTILINE))
    assert listed == reasons | {"deadlock", "no_worker"}
