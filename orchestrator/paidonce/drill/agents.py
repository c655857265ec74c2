"""The agents of the crash drill: each step makes one paid call to the counting server."""

from __future__ import annotations

import asyncio
import json
import urllib.request

from paidonce import agent, current_step, record_usage, step

MAX_LOST = 1000
"""No step fails because it was unlucky: a drill with many kills must still see every run finish."""


@step(max_lost=MAX_LOST)
async def paid_call(server: str, number: int, latency_ms: float, answer_bytes: int) -> str:
    """One call from a coroutine; the HTTP request itself runs in a thread."""
    return await asyncio.to_thread(_call, server, number, latency_ms, answer_bytes)


@step(max_lost=MAX_LOST)
def paid_call_in_thread(server: str, number: int, latency_ms: float, answer_bytes: int) -> str:
    """One call from a plain function."""
    return _call(server, number, latency_ms, answer_bytes)


def _call(server: str, number: int, latency_ms: float, answer_bytes: int) -> str:
    here = current_step()
    body = json.dumps(
        {
            "run": here.run_id,
            "step": here.step,
            "attempt": here.attempt,
            "number": number,
            "latency_ms": latency_ms,
            "answer_bytes": answer_bytes,
        }
    ).encode()
    request = urllib.request.Request(f"{server}/call", data=body, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as response:
        answer = json.load(response)
    usage = answer["usage"]
    record_usage(
        provider="openai",
        model=answer["model"],
        input_tokens=usage["input_tokens"],
        output_tokens=usage["output_tokens"],
    )
    return str(answer["text"])


@agent
async def drill_agent(server: str, steps: int, latency_ms: float = 20.0, answer_bytes: int = 200) -> int:
    """``steps`` paid calls in sequence, plain and asynchronous in turn; returns how many responses arrived."""
    answers = 0
    for number in range(steps):
        call = paid_call if number % 2 == 0 else paid_call_in_thread
        text = await call(server, number, latency_ms, answer_bytes)
        answers += text.startswith(f"answer to step {number + 1} ")
    return answers
