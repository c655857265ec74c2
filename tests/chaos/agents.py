"""Agents of the chaos tests that the drill's own do not cover; loaded by the workers."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import random
import signal
import urllib.request

from paidonce import agent, current_step, step
from paidonce.drill.agents import MAX_LOST, paid_call, paid_call_in_thread


@step(max_lost=MAX_LOST)
def free_call(server: str, number: int, latency_ms: float, answer_bytes: int) -> str:
    """A call that is counted but records no usage: its completion is another statement on PostgreSQL."""
    here = current_step()
    asked = {"run": here.run_id, "step": here.step, "attempt": here.attempt, "number": number}
    body = json.dumps({**asked, "latency_ms": latency_ms, "answer_bytes": answer_bytes}).encode()
    request = urllib.request.Request(f"{server}/call", data=body, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as response:
        return str(json.load(response)["text"])


CALLS = (paid_call, free_call, paid_call_in_thread)


@agent
async def fan_out(server: str, rounds: int, width: int, latency_ms: float) -> int:
    """Rounds of parallel calls: completions that cannot go together with their advance."""
    answers = 0
    for number in range(rounds):
        calls = [CALLS[index % len(CALLS)](server, number * width + index, latency_ms, 50) for index in range(width)]
        answers += len(await asyncio.gather(*calls))
    return answers


@agent
async def free_sequence(server: str, steps: int, latency_ms: float) -> int:
    """Free calls one after the other."""
    for number in range(steps):
        await free_call(server, number, latency_ms, 50)
    return steps


@step(max_lost=MAX_LOST)
async def large_call(server: str, number: int, latency_ms: float, answer_bytes: int) -> str:
    """A paid call whose answer no compression makes small: a full disk has no room for it."""
    text: str = await paid_call.fn(server, number, latency_ms, 50)
    return text + random.Random(number).randbytes(answer_bytes).hex()


@agent
async def large_answers(
    server: str, steps: int, latency_ms: float, answer_bytes: int = 400_000, noise: str = ""
) -> int:
    """Large calls one after the other."""
    answers = 0
    for number in range(steps):
        answers += len(await large_call(server, number, latency_ms, answer_bytes)) > answer_bytes
    return answers


@step
def poison() -> None:
    """Kills the process it runs in."""
    os.kill(os.getpid(), signal.SIGKILL)


@agent
async def poisoned() -> None:
    """Awaits the step above."""
    await poison()


@step(max_lost=MAX_LOST, max_cost_usd="0.00027")
async def capped_call(server: str, number: int, latency_ms: float, answer_bytes: int) -> str:
    """A call that says what it costs at most, which is what it costs."""
    text: str = await paid_call.fn(server, number, latency_ms, answer_bytes)
    return text


@agent
async def capped(server: str, steps: int, latency_ms: float) -> int:
    """Capped calls one after the other."""
    for number in range(steps):
        await capped_call(server, number, latency_ms, 50)
    return steps


@step
def compute(seconds: float) -> float:
    """Holds the GIL for so long, as a regular expression or a C extension may."""
    ctypes.PyDLL(None).usleep(int(seconds * 1e6))
    return seconds


@agent
async def computing(seconds: float) -> float:
    """Awaits the step above."""
    return await compute(seconds)
