"""Agents that use asyncio as its documentation shows: each must work durably."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import paidonce
from paidonce import StepFailed, StepTimedOut, agent, current_step, step
from tests.acceptance.agents.journal import note


@step
def double(number: int) -> int:
    return 2 * number


@step
async def wait_and_return(value: str, seconds: float) -> str:
    note(f"began {value}")
    await asyncio.sleep(seconds)
    note(f"ended {value}")
    return value


@step
async def wait_for_the_end_of_its_worker(value: str) -> str:
    note(f"began {value}")
    await asyncio.sleep(600 if current_step().attempt == 1 else 0)
    return value


@step
def explode(message: str) -> None:
    raise ValueError(message)


@step(timeout=0.3)
async def too_slow() -> None:
    await asyncio.sleep(60)


@agent
async def gathers(count: int) -> list[int]:
    return await asyncio.gather(*(double(number) for number in range(count)))


@agent
async def groups(count: int) -> list[int]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(double(number)) for number in range(count)]
    return [task.result() for task in tasks]


@agent
async def group_fails() -> list[str]:
    told: list[str] = []
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(wait_and_return("a sibling", 30))
            group.create_task(explode("in a group"))
    except* StepFailed as failures:
        told += [str(failure) for failure in failures.exceptions]
    return told


@agent
async def limits(seconds: float) -> str:
    try:
        async with asyncio.timeout(seconds):
            return await wait_and_return("in time", 30)
    except TimeoutError:
        return f"gave up after {await double(1)}"


@agent
async def races() -> list[str]:
    tasks = {asyncio.create_task(wait_and_return(f"racer {n}", seconds)) for n, seconds in ((1, 30.0), (2, 0.05))}
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    return [task.result() for task in done]


@agent
async def naps(seconds: float) -> list[float]:
    started = paidonce.now()
    before = await double(1)
    await asyncio.sleep(seconds)
    after = await double(before)
    return [after, (paidonce.now() - started).total_seconds()]


@agent
async def branches(limit: int) -> list[int]:
    seen: list[int] = []
    number = 1
    while number < limit:
        number = await double(number) if number % 3 else await double(number + 1)
        seen.append(number)
    return seen


@agent
async def handles_failures() -> dict[str, object]:
    told: dict[str, object] = {}
    try:
        await explode("on purpose")
    except StepFailed as error:
        told |= {"type": error.error_type, "message": error.error_message, "attempts": error.attempts}
    try:
        await too_slow()
    except StepTimedOut as error:
        told["timed_out"] = isinstance(error, TimeoutError)
    try:
        await too_slow()
    except TimeoutError as error:
        told["as_timeout_error"] = error.__class__.__name__
    return told


@agent
async def does_not_handle() -> None:
    await explode("nobody catches this")


@agent
async def leaf(number: int) -> int:
    return await double(number)


@agent
async def family(count: int) -> int:
    return sum(await asyncio.gather(*(leaf(number) for number in range(count))))


@agent
async def failing_family() -> str:
    try:
        await does_not_handle()
    except StepFailed as error:
        return error.error_message
    return "not told"


@agent
async def nested(levels: int) -> int:
    """``levels`` counts the children below this run."""
    return 0 if levels == 0 else 1 + await nested(levels - 1)


@agent
async def draws() -> list[list[object]]:
    """What is drawn before and after steps; replayed from the log by a worker with a cold cache."""
    drawn: list[list[object]] = []
    for number in range(3):
        drawn.append([paidonce.now().isoformat(), str(paidonce.uuid()), paidonce.random()])
        await double(number)
    await asyncio.sleep(1.0)
    return drawn


@agent
async def draws_twice() -> list[str]:
    first = str(paidonce.uuid())
    await wait_and_return("between the draws", 2.0)
    return [first, str(paidonce.uuid())]


@agent
async def draws_around_a_kill() -> list[str]:
    first = str(paidonce.uuid())
    await wait_for_the_end_of_its_worker("between the draws")
    return [first, str(paidonce.uuid())]


@dataclass
class Plan:
    queries: list[str]
    notes: dict[str, int] = field(default_factory=dict)


@step
def make_plan(question: str) -> Plan:
    return Plan(queries=question.split(), notes={"words": len(question.split())})


@agent(name="inquiry")
async def research(question: str, depth: int = 1) -> Plan:
    plan = await make_plan(question)
    plan.notes["depth"] = depth
    return plan


@agent
async def takes_anything(*numbers: int, **words: str) -> list[object]:
    return [sum(numbers), *sorted(words.items())]


@agent
async def leaves_tasks() -> str:
    asyncio.create_task(wait_and_return("left behind", 30))  # noqa: RUF006 - on purpose
    return str(await double(4))
