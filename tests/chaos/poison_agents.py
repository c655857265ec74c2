"""Steps that kill their process in every way, and paid ones beside them that have done nothing."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import time

from paidonce import agent, step
from paidonce.drill.agents import paid_call

KINDS = {
    "segfault": "signal 11, SIGSEGV",
    "exit 0": "exit status 0",
    "exit 3": "exit status 3",
    "abort": "signal 6, SIGABRT",
    "kill": "signal 9, SIGKILL",
}
"""How each kind of death is told."""


@step(max_lost=2)
def dies(kind: str, number: int) -> int:
    """Kills the process it runs in; ``number`` makes each input another one."""
    time.sleep(0.4 + number % 3 * 0.2)  # so that a death takes many with it, and few are enough
    if kind == "segfault":
        ctypes.string_at(0)
    elif kind == "abort":
        os.abort()
    elif kind == "kill":  # as the kernel does where memory is out
        os.kill(os.getpid(), signal.SIGKILL)
    else:
        os._exit(int(kind.removeprefix("exit ")))
    return number


@agent
async def doomed(kind: str, number: int) -> int:
    """Awaits the step above."""
    return await dies(kind, number)


@step
async def innocent_call(server: str, number: int, latency_ms: float) -> str:
    """A paid call that may be lost as often as any step by default."""
    text: str = await paid_call.fn(server, number, latency_ms, 50)
    return text


@agent
async def innocent(server: str, steps: int, latency_ms: float) -> int:
    """Paid calls one after the other."""
    for number in range(steps):
        await innocent_call(server, number, latency_ms)
    return steps


@agent
async def ends_between_awaits(kind: str, server: str) -> int:
    """Pays for two calls; its own code ends the process before the first, after it, or after both at once."""
    if kind == "at once":
        os._exit(3)
    await innocent_call(server, 1, 100)
    if kind == "after a step":
        os.kill(os.getpid(), signal.SIGKILL)
    await asyncio.gather(innocent_call(server, 2, 100), innocent_call(server, 3, 100))
    if kind == "after two at once":
        ctypes.string_at(0)
    return 3
