"""Agents of the chaos tests of circuits; loaded by the workers."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from paidonce import agent, tool


@tool
def flapping(folder: str, key: str) -> int:
    """Fails four calls of five, in ways that differ. Counts its calls in files, so that every process counts on."""
    number = 0
    while True:
        try:
            (Path(folder) / str(number)).touch(exist_ok=False)
            break
        except FileExistsError:
            number += 1
    if number % 5 != 4:
        raise (ConnectionResetError, TimeoutError, OSError)[number % 3](f"{key}: call {number}")
    return number


@agent
async def flapper(folder: str, key: str) -> int:
    """Awaits the tool above."""
    return await flapping(folder, key)


@tool(max_lost=4)
def deadly() -> None:
    """Kills the process it runs in."""
    os.kill(os.getpid(), signal.SIGKILL)


@agent
async def deadly_agent() -> None:
    """Awaits the tool above."""
    await deadly()
