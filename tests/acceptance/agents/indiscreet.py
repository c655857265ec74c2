"""Agents whose errors, threads, tasks and results quote what they were given."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import Any

from paidonce import StepFailed, agent, current_step, step


class Quoting:
    """A value that nothing can encode, and whose text is its content."""

    def __init__(self, content: str) -> None:
        self.content = content

    def __repr__(self) -> str:
        return f"Quoting({self.content})"


@step
def fails(secret: str) -> str:
    raise ValueError(f"no answer to {secret}")


@step
async def fails_async(secret: str) -> str:
    raise RuntimeError(f"no answer to {secret}", {"prompt": secret})


@step
def returns_what_has_no_json(secret: str) -> Any:
    return Quoting(secret)


@step
def exits(secret: str) -> str:
    raise SystemExit(f"enough of {secret}")


@step
def leaves_a_failing_thread(secret: str) -> str:
    def fail() -> None:
        raise LookupError(secret)

    thread = threading.Thread(target=fail, name="left-behind")
    thread.start()
    thread.join()
    return secret


@step
async def leaves_a_failing_task(secret: str) -> str:
    async def fail(told: str) -> None:
        raise LookupError(told)

    task = asyncio.get_running_loop().create_task(fail(secret))
    await asyncio.sleep(0.05)
    del task
    asyncio.get_running_loop().call_soon(lambda told: 1 // 0, secret)
    await asyncio.sleep(0.05)
    return secret


@step
def kills_its_process_until_it_is_alone(secret: str) -> str:
    if current_step().attempt <= 2:
        os._exit(1)
    thread = threading.Thread(target=lambda: Quoting(secret).absent)  # type: ignore[attr-defined]  # on purpose
    thread.start()
    thread.join()
    raise ValueError(f"alone with {secret}")


STEPS = {
    each.fn.__name__: each
    for each in (
        fails, fails_async, returns_what_has_no_json, exits, leaves_a_failing_thread, leaves_a_failing_task,
    )
}  # fmt: skip


@agent
async def indiscreet(secret: str, which: str) -> str:
    try:
        return await STEPS[which](secret)
    except StepFailed as error:
        raise RuntimeError(f"{which} failed: {error.error_message}") from error


@agent
async def deadly(secret: str) -> str:
    return await kills_its_process_until_it_is_alone(secret)


@step
def calls_a_service(address: str) -> str:
    raise ConnectionError(f"401 for {address}, header Authorization: Bearer abcdefgh12345678, tenant-pin=4711")


@agent
async def tells_what_it_saw(address: str) -> str:
    """What the agent sees of the failed step, live and on replay."""
    try:
        return await calls_a_service(address)
    except StepFailed as error:
        await asyncio.sleep(0.2)
        return error.error_message
