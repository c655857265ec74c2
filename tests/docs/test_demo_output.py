"""The demo's output in the README is real: played again, it has the same shape."""

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "paste_demo_output"
# What differs between two plays: ids, ports, processes, seconds, tokens and the money they make.
DIFFERENT_EACH_TIME = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}|\d{8}-\d{6}-\d+|\$?\d[\d,]*(\.\d+)?")


def lines_of(block: str) -> set[str]:
    """The story without its numbers, and without which state of a step was caught by a look."""
    lines = set()
    for line in block.splitlines():
        step = re.match(r"  step +\d+  (.*?) {2,}", line)
        if step:
            lines.add(f"step {re.sub(r'[0-9]+', '#', step[1])}")
        elif not line.startswith(("│ ", "╭", "╰")) or "[…]" in line:
            plain = re.sub(r"\S*/bin/paidonce", "paidonce", line)
            lines.add(re.sub(r"[ ─]+", " ", DIFFERENT_EACH_TIME.sub("#", plain)).strip())
    return lines


def bill_of(block: str) -> dict[str, str]:
    """Name and value of each line of the bill."""
    rows = re.findall(r"^│ (\S.*?) +│ (.*?) +│$", block, re.MULTILINE)
    return dict(rows)


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    """The script's functions."""
    return runpy.run_path(str(SCRIPT))


def test_the_pasted_output_shows_that_nothing_finished_was_paid_twice(script: dict[str, Any]) -> None:
    block = script["pasted"]()
    bill = bill_of(block)
    assert "No finished step was paid twice." in block
    assert bill["finished steps requested again"] == "0"
    assert bill["steps paid"] == "26 (14 model calls, 12 tool calls)"
    assert "SIGKILL to worker 1" in block


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.timeout(300)
def test_the_demo_played_again_has_the_shape_of_the_pasted_output(script: dict[str, Any], tmp_path: Path) -> None:
    played, pasted = script["excerpt"](script["play_demo"](tmp_path)), script["pasted"]()
    assert lines_of(played) == lines_of(pasted)
    for name in ("steps paid", "finished steps requested again"):
        assert bill_of(played)[name] == bill_of(pasted)[name]
    assert bill_of(played).keys() == bill_of(pasted).keys()
