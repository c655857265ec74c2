"""What checkers infer of declarations: plain and async functions, decorators with and without arguments.

``make lint`` runs mypy and pyright, both strict, over this folder; nothing here is executed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from datetime import datetime
from decimal import Decimal
from typing import assert_type

from paidonce import CurrentStep, Retry, agent, current_step, now, record_usage, step, tool


@step
async def search(query: str, *, most: int = 10) -> list[str]:
    assert_type(current_step(), CurrentStep)
    assert_type(fetch.call("https://example.org"), bytes)
    assert_type(await look_up("x"), dict[str, int])
    record_usage(None, provider="openai", model="gpt-4o-mini", input_tokens=1, output_tokens=1)
    return [query] * most


@step
def rank(pages: list[str]) -> float:
    return float(len(pages))


@step(retry=Retry(max_attempts=3), timeout="10s", max_cost_usd=Decimal("0.1"))
async def judge(page: str) -> bool:
    return bool(page)


@step(name="counting", retry=3)
def count(page: str) -> int:
    return len(page)


@tool
def fetch(url: str) -> bytes:
    return url.encode()


@tool(breaker={"window": "10s"}, when_open="raise")
async def look_up(word: str) -> dict[str, int]:
    return {word: 1}


@agent(version="2", budget_usd="1.50")
async def summarise(pages: list[str]) -> str:
    return pages[0]


@agent
async def research(question: str, depth: int = 1) -> dict[str, float]:
    pages = await search(question, most=3)
    assert_type(pages, list[str])
    assert_type(await rank(pages), float)
    assert_type(await judge("x"), bool)
    assert_type(await count("x"), int)
    assert_type(await fetch("x"), bytes)
    assert_type(await look_up("x"), dict[str, int])
    assert_type(await summarise(pages), str)
    assert_type(await research(question, depth + 1), dict[str, float])
    assert_type(now(), datetime)

    assert_type(await asyncio.gather(search("a"), rank(pages)), tuple[list[str], float])
    assert_type(await asyncio.gather(judge("a"), count("a"), fetch("a")), tuple[bool, int, bytes])
    assert_type(
        await asyncio.gather(search("a"), summarise(pages), research("b")), tuple[list[str], str, dict[str, float]]
    )
    assert_type(await asyncio.gather(*(rank([page]) for page in pages)), list[float])
    found = await asyncio.gather(rank(pages), count("a"), return_exceptions=True)
    assert_type(found, tuple[float | BaseException, int | BaseException])
    async with asyncio.TaskGroup() as group:
        task = group.create_task(rank(pages))
    assert_type(task.result(), float)
    assert_type(asyncio.create_task(count("a")), asyncio.Task[int])
    assert_type(await asyncio.wait_for(judge("a"), 3), bool)

    search(1)  # type: ignore[arg-type, unused-coroutine]  # pyright: ignore[reportArgumentType, reportUnusedCoroutine]
    await search("a", least=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    rank(pages)  # type: ignore[unused-coroutine]  # pyright: ignore[reportUnusedCoroutine]
    return {"rank": task.result()}


async def unit_test() -> None:
    assert_type(rank.fn(["x"]), float)
    assert_type(count.fn("x"), int)
    assert_type(fetch.fn("x"), bytes)
    work: Coroutine[object, None, list[str]] = search.fn("x")
    assert_type(await work, list[str])
    assert_type(await research.fn("x"), dict[str, float])
    assert_type(await asyncio.gather(search.fn("x"), judge.fn("y")), tuple[list[str], bool])
    rank.fn("x", 1)  # type: ignore[call-arg, arg-type]  # pyright: ignore[reportCallIssue]
