"""Agents whose steps fail, hang, die, are large, or call tools."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import Any

from paidonce import Retry, StepFailed, StepTimedOut, agent, current_step, step, tool
from tests.acceptance.agents.journal import note

MEBIBYTE = 1024 * 1024


@step(retry=Retry(max_attempts=4, base_seconds=0.1, cap_seconds=0.5))
def succeeds_at(attempt: int) -> int:
    if current_step().attempt < attempt:
        raise ConnectionError(f"attempt {current_step().attempt}")
    return current_step().attempt


@step(retry={"max_attempts": 3, "base": 0.05, "retry_on": [TimeoutError]})
def raises_another(message: str) -> None:
    note(f"tried {message}")
    raise ValueError(message)


@step(retry=Retry(max_attempts=2, base_seconds=0.05))
def always_fails(message: str) -> None:
    raise ConnectionError(message)


@step(retry=Retry(max_attempts=2, base_seconds=1e7, cap_seconds=1e7))  # the wait is drawn from all of it
def waits_for_its_retry() -> None:
    note("failed once")
    raise ConnectionError("try me much later")


@agent
async def retried(attempt: int) -> int:
    return await succeeds_at(attempt)


@agent
async def retried_in_vain() -> dict[str, Any]:
    try:
        await always_fails("still away")
    except StepFailed as error:
        return {"attempts": error.attempts, "type": error.error_type, "message": error.error_message}
    return {}


@agent
async def not_retried(message: str) -> int:
    try:
        await raises_another(message)
    except StepFailed as error:
        return error.attempts
    return 0


@agent
async def waits_long() -> None:
    await waits_for_its_retry()


@step(timeout=0.5)
def spins_on() -> None:
    while True:
        time.sleep(0.01)


@step(timeout=0.5)
async def sleeps_on() -> None:
    await asyncio.sleep(120)


@step(timeout=2, retry=Retry(max_attempts=2, base_seconds=0.01))
async def late_once() -> int:
    await asyncio.sleep(120 if current_step().attempt == 1 else 0)
    return current_step().attempt


@agent
async def timed_out() -> list[str]:
    told = []
    for call in (spins_on, sleeps_on):
        try:
            await call()
        except StepTimedOut as error:
            told.append(f"{type(error).__name__} of {error.details['name']}")
    return [*told, str(await late_once())]


@step(max_lost=3)
def kills_its_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@agent(name="poisoned_step")
async def poisoned() -> str:
    try:
        await kills_its_process()
    except StepFailed as error:
        return f"{error.error_type}: {error.error_message}"
    return "not told"


@step
def repeat(text: str, count: int) -> str:
    return text * count


@step
def measure(text: str) -> int:
    return len(text)


@agent
async def carries(size: int) -> int:
    """A value of this many bytes of JSON goes through a result and an argument."""
    return await measure(await repeat("x", size - 2))


@agent
async def returns_large(size: int) -> str:
    return await repeat("x", size - 2)


@agent
async def refused_large(size: int) -> str:
    try:
        await repeat("x", size - 2)
    except StepFailed as error:
        return error.error_message
    return "was taken"


@agent
async def large_argument(size: int) -> str:
    try:
        await measure("x" * size)
    except Exception as error:  # noqa: BLE001 - what it is, is what the test looks at
        return f"{type(error).__name__}: {error}"
    return "was taken"


@tool
def look_up(word: str) -> str:
    return word.upper()


@tool
async def look_up_async(word: str) -> str:
    await asyncio.sleep(0)
    return word.upper()


@step
def plain_step() -> str:
    return "plain"


@step
async def uses_tools_async(word: str) -> list[str]:
    return [await look_up(word), await look_up_async(word)]


@step
def uses_tools(word: str) -> str:
    return look_up.call(word)


@step
async def awaits_a_step() -> str:
    return await plain_step()


@step
def calls_a_step() -> str:
    return plain_step.call()


@agent
async def inline(word: str) -> list[str]:
    return [*await uses_tools_async(word), await uses_tools(word)]


@agent
async def step_in_step() -> list[str]:
    told = []
    for call in (awaits_a_step, calls_a_step):
        try:
            await call()
        except StepFailed as error:
            told.append(f"{error.error_type}: {error.error_message}")
    return told


@step
def blocks_the_loop_thread_not() -> str:
    return "fine"


@step
async def blocks_the_loop(seconds: float) -> str:
    time.sleep(seconds)  # noqa: ASYNC251 - the mistake to be reported
    return "done"


@agent
async def loop_blocker(seconds: float) -> str:
    return await blocks_the_loop(seconds)


@step
def record_order(name: str, seconds: float) -> str:
    note(f"order {name}")
    time.sleep(seconds)
    return name


@agent
async def ordered(name: str, seconds: float = 0.0) -> str:
    return await record_order(name, seconds)
