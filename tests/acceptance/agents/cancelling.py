"""Agents to be cancelled."""

from __future__ import annotations

import asyncio
import time

from paidonce import agent, record_usage, step
from tests.acceptance.agents.journal import note


@step
async def endless_async(name: str) -> None:
    record_usage(None, provider="openai", model="gpt-4o-mini", input_tokens=1_000, output_tokens=100)
    note(f"{name} began")
    try:
        await asyncio.sleep(120)
    except asyncio.CancelledError:
        note(f"{name} was stopped at {time.time()}")
        raise


@step
def endless_sync(name: str) -> None:
    note(f"{name} began")
    try:
        while True:
            time.sleep(0.01)
    except BaseException:
        note(f"{name} was stopped at {time.time()}")
        raise


@step
async def tidy_up(name: str) -> str:
    note(f"{name} tidied up")
    return name


@step
async def tidy_slowly(name: str) -> None:
    note(f"{name} tidies slowly")
    await asyncio.sleep(120)


@agent
async def waits_for_async(name: str) -> None:
    try:
        await endless_async(name)
    finally:
        await tidy_up(name)


@agent
async def waits_for_sync(name: str) -> None:
    await endless_sync(name)


@agent
async def parent_of_endless(name: str) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(waits_for_async(f"{name} child 1"))
        group.create_task(waits_for_async(f"{name} child 2"))


@agent
async def never_tidy(name: str) -> None:
    try:
        await endless_async(name)
    finally:
        await tidy_slowly(name)


@agent
async def parent_of_never_tidy(name: str) -> None:
    await never_tidy(name)


@agent
async def sleeps_for_days(name: str) -> None:
    try:
        await asyncio.sleep(3 * 86_400)
    finally:
        await tidy_up(name)


@agent
async def survives(name: str) -> str:
    """Cancelled once, it may still say what it came to."""
    try:
        await endless_async(name)
    except asyncio.CancelledError:
        return await tidy_up(name)
    return "was not cancelled"
