"""What the workers of the fuzz hold: an agent whose runs must all succeed, and a task that must never run."""

from __future__ import annotations

import os
from pathlib import Path

from celery import shared_task

from paidonce import agent, step

CANARY = "FUZZ_CANARY"
"""The file that tells of a foreign task that was executed."""


@step
def plus_one(number: int) -> int:
    """A step that takes no time."""
    return number + 1


@agent
async def good(number: int) -> int:
    """Two steps, one after the other."""
    return await plus_one(await plus_one(number))


@shared_task(name="tests.fuzz.foreign")
def foreign(*_: object, **__: object) -> None:
    """Registered with Celery in every worker that holds this module, and none of Paidonce's tasks."""
    with Path(os.environ[CANARY]).open("a", encoding="utf-8") as file:
        file.write("executed\n")
