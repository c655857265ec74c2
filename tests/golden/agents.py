"""The agents of the golden histories. Never change one: its history was recorded with this code."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import paidonce
from paidonce import Retry, StepFailed, StepTimedOut, agent, step, tool


@dataclass
class Finding:
    text: str
    score: float = 0.5
    tags: list[str] = field(default_factory=list)


@step(name="golden.double")
def double(number: int) -> int:
    return 2 * number


@step(name="golden.echo")
async def echo(text: str) -> str:
    return text


@step(name="golden.slow")
async def slow(text: str) -> str:
    return text


@tool(name="golden.find")
def find(query: str, limit: int = 3) -> list[Finding]:
    return [Finding(f"{query} {number}", tags=[query]) for number in range(limit)]


@step(name="golden.fail", retry=Retry(max_attempts=2, base_seconds=1.0))
def fail(message: str) -> None:
    raise ValueError(message)


@agent(name="golden-sequence")
async def sequence(count: int) -> int:
    total = 1
    for _ in range(count):
        total = await double(total)
    return total


@agent(name="golden-gather")
async def gathers(words: list[str]) -> list[str]:
    return await asyncio.gather(*(echo(word) for word in words))


@agent(name="golden-group")
async def group() -> list[str]:
    told: list[str] = []
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(slow("never seen"))
            tasks.create_task(fail("in the group"))
    except* StepFailed as failures:
        told += [str(failure) for failure in failures.exceptions]
    return [*told, await echo("after")]


@agent(name="golden-first-completed")
async def first_completed() -> list[str]:
    tasks = {asyncio.create_task(call(text)) for call, text in ((slow, "c"), (echo, "a"), (echo, "b"))}
    order: list[str] = []
    while tasks:
        done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        order += [task.result() for task in done]
        if len(order) == 2:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            break
    return order


@agent(name="golden-as-completed")
async def as_completed() -> list[str]:
    return [await each for each in asyncio.as_completed([slow("x"), echo("y"), echo("z")])]


@agent(name="golden-timeout")
async def timeouts() -> list[str]:
    told: list[str] = []
    for seconds in (5.0, 500.0):
        try:
            async with asyncio.timeout(seconds):
                told.append(await slow(f"within {seconds}"))
        except TimeoutError:
            told.append(f"not within {seconds}")
    try:
        told.append(await asyncio.wait_for(slow("waited for"), 7.0))
    except TimeoutError:
        told.append("waited in vain")
    return told


@agent(name="golden-sleep")
async def sleeps() -> list[object]:
    began = paidonce.now()
    await asyncio.gather(asyncio.sleep(30), asyncio.sleep(10), echo("meanwhile"))
    await asyncio.sleep(0)
    await asyncio.sleep(86_400)
    return [began.isoformat(), (paidonce.now() - began).total_seconds()]


@agent(name="golden-failures")
async def failures() -> list[str]:
    told: list[str] = []
    try:
        await fail("caught")
    except StepTimedOut:
        told.append("timed out")
    except StepFailed as error:
        told.append(f"{error.error_type} {error.error_message} {error.attempts}")
    await fail("not caught")
    return told


@agent(name="golden-child")
async def child(number: int) -> int:
    if number == 2:
        await fail("the second child")
    return await double(number)


@agent(name="golden-family")
async def family() -> list[object]:
    results = await asyncio.gather(*(child(number) for number in range(4)), return_exceptions=True)
    return [str(result) for result in results]


@agent(name="golden-draws")
async def draws() -> list[object]:
    drawn: list[object] = [str(paidonce.uuid()), paidonce.random()]
    await echo("between")
    return [*drawn, str(paidonce.uuid()), paidonce.random(), paidonce.now().isoformat()]


@agent(name="golden-cancelled")
async def cancelled(name: str) -> str:
    try:
        await asyncio.gather(slow(name), slow("another"), child(1))
    finally:
        await echo(f"tidy {name}")
    return "not reached"


@agent(name="golden-values")
async def values(question: str, *, limit: int = 2) -> list[Finding]:
    found = await find(question, limit)
    found.append(Finding(await echo("späť ☕ \u2028"), score=0.1, tags=[]))
    return sorted(found, key=lambda each: each.text)


@agent(name="golden-tools-of-asyncio")
async def tools_of_asyncio() -> list[str]:
    queue: asyncio.Queue[str | None] = asyncio.Queue(maxsize=1)
    lock, ready, seen = asyncio.Lock(), asyncio.Event(), list[str]()

    async def produce() -> None:
        for text in ("one", "two", "three"):
            await queue.put(await echo(text))
        ready.set()
        await queue.put(None)

    async def consume() -> None:
        while (text := await queue.get()) is not None:
            async with lock:
                seen.append(await slow(text))

    async def numbers() -> AsyncIterator[int]:
        for number in range(3):
            yield await double(number)

    left = asyncio.create_task(slow("left behind"))
    await asyncio.gather(produce(), consume(), ready.wait())
    seen.append(str([number async for number in numbers()]))
    await asyncio.shield(echo("shielded"))
    seen.append(str(left.done()))
    return seen
