"""The agents that do the workloads on Paidonce, loaded by ``paidonce worker benchmarks.agents``."""

from __future__ import annotations

import asyncio

from benchmarks.values import step_result, turn_text
from paidonce import agent, record_usage, step


@step
def no_op(run: int, position: int, result_bytes: int) -> str:
    """Do nothing and return a text."""
    return step_result(run, position, result_bytes)


@step
def no_op_with_a_call(run: int, position: int, result_bytes: int) -> str:
    """Do nothing, record a paid call, and return a text."""
    record_usage(provider="openai", model="gpt-4o-mini", input_tokens=1_000, output_tokens=200)
    return step_result(run, position, result_bytes)


@step(breaker=True)
def no_op_behind_a_breaker(run: int, position: int, result_bytes: int) -> str:
    """The same behind a circuit breaker that the fleet shares."""
    return str(no_op_with_a_call.fn(run, position, result_bytes))


@step
async def wait(run: int, position: int, result_bytes: int, wait_seconds: float) -> str:
    """Wait as a call of a model does."""
    await asyncio.sleep(wait_seconds)
    return step_result(run, position, result_bytes)


@step
def turn(run: int, turn_bytes: int, messages: list[str]) -> str:
    """One turn of a conversation: its argument is everything said so far."""
    return turn_text(run, len(messages) + 1, turn_bytes)


@agent
async def chain(run: int, steps: int, wait_seconds: float, result_bytes: int) -> int:
    """Each step after the one before."""
    for position in range(1, steps + 1):
        if wait_seconds:
            await wait(run, position, result_bytes, wait_seconds)
        else:
            await no_op(run, position, result_bytes)
    return steps


@agent
async def chain_with_calls(run: int, steps: int, wait_seconds: float, result_bytes: int) -> int:
    """As ``chain``, with a paid call in each step."""
    for position in range(1, steps + 1):
        await no_op_with_a_call(run, position, result_bytes)
    return steps


@agent
async def chain_with_breakers(run: int, steps: int, wait_seconds: float, result_bytes: int) -> int:
    """As ``chain_with_calls``, with a breaker on each step."""
    for position in range(1, steps + 1):
        await no_op_behind_a_breaker(run, position, result_bytes)
    return steps


@agent
async def gather(run: int, steps: int, wait_seconds: float, result_bytes: int) -> int:
    """All steps at once."""
    return len(await asyncio.gather(*(no_op(run, position, result_bytes) for position in range(1, steps + 1))))


@agent
async def conversation(run: int, steps: int, wait_seconds: float, result_bytes: int) -> int:
    """A list of messages that grows by one each turn."""
    messages: list[str] = []
    for _ in range(steps):
        messages.append(await turn(run, result_bytes, messages))
    return len(messages)
