"""Agents with the mistakes people make."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import httpx

from paidonce import agent, step


class Opaque:
    """A type that nothing can encode."""


@step
def gives_opaque() -> Any:
    return Opaque()


@step
def takes_anything(value: Any) -> str:
    return repr(value)


@agent
async def opaque_result() -> Any:
    return await gives_opaque()


@agent
async def opaque_return() -> Any:
    return Opaque()


@agent
async def opaque_argument() -> str:
    return await takes_anything(Opaque())


@agent
async def fetches_with_httpx(port: int) -> int:
    async with httpx.AsyncClient() as client:
        response = await client.get(f"http://127.0.0.1:{port}/")  # the line to be named: httpx
        return response.status_code


@agent
async def opens_a_connection(port: int) -> None:
    await asyncio.open_connection("127.0.0.1", port)  # the line to be named: open_connection


@agent
async def goes_to_a_thread() -> None:
    await asyncio.to_thread(socket.gethostname)  # the line to be named: to_thread


@agent
async def swallows_the_refusal() -> str:
    try:
        await asyncio.to_thread(socket.gethostname)  # the line to be named: swallowed
    except Exception:  # noqa: BLE001 - the mistake: it hides the refusal
        pass
    return "as if nothing had happened"


@agent
async def spins(limit: int) -> int:
    total = 0
    while total < limit:
        total += 1  # the line to be named: spins
    return total


@agent
async def waits_for_nothing() -> None:
    await asyncio.Event().wait()


@agent
async def strict(number: int, label: str = "none") -> str:
    return f"{number} {label}"
