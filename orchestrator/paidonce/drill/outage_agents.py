"""The agents of the outage drill: one that reasons about its tool's response, and one that never needs that tool."""

from __future__ import annotations

import asyncio
import json
import urllib.request

from paidonce import StepFailed, agent, current_step, record_usage, step, tool

MAX_THOUGHTS = 500
"""A run that saw so many failures gives up; without a breaker some do."""


def _post(server: str, path: str, asked: dict[str, object]) -> dict[str, object]:
    here = current_step()
    body = json.dumps({**asked, "run": here.run_id, "step": here.step, "attempt": here.attempt}).encode()
    request = urllib.request.Request(f"{server}{path}", data=body, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as response:
        answer: dict[str, object] = json.load(response)
    return answer


@step
async def think(server: str, question: str, failures: int, latency_ms: float) -> str:
    """A model call. ``failures`` of the tool are in the model's input."""
    asked: dict[str, object] = {"failures": failures, "latency_ms": latency_ms}
    await asyncio.to_thread(_post, server, "/call", asked)
    record_usage(provider="openai", model="gpt-4o-mini", input_tokens=1000 + 200 * failures, output_tokens=200)
    return f"look up {question}"


@tool
def look_up(server: str, query: str) -> str:
    """A call of the tool that goes down."""
    return str(_post(server, "/tool", {"query": query})["text"])


@tool
def look_elsewhere(server: str, query: str, latency_ms: float) -> str:
    """A call of a tool that stays up."""
    return str(_post(server, "/call", {"query": query, "latency_ms": latency_ms})["text"])


@agent
async def researcher(server: str, questions: int, latency_ms: float) -> int:
    """Thinks, looks up, thinks again, also about each failure. Returns the number of responses."""
    answers, failures = 0, 0
    while answers < questions and failures < MAX_THOUGHTS:
        query = await think(server, f"question {answers}", failures, latency_ms)
        try:
            await look_up(server, query)
        except StepFailed:
            failures += 1
        else:
            answers += 1
    return answers


@agent
async def bystander(server: str, steps: int, latency_ms: float) -> int:
    """Works with another tool."""
    for number in range(steps):
        await look_elsewhere(server, f"query {number}", latency_ms)
    return steps
