"""An agent whose step creates a background response and polls for it; loaded by the workers."""

from __future__ import annotations

import time

import httpx

from paidonce import agent, step


@step
def background_research(provider: str) -> str:
    """Ask for work that goes on, and look until it is done."""
    with httpx.Client(base_url=f"{provider}/v1", timeout=30) as client:
        created = client.post("/responses", json={"model": "gpt-4o-mini", "input": "hi", "background": True}).json()
        while True:
            found = client.get(f"/responses/{created['id']}").json()
            if found["status"] == "completed":
                return str(found["id"])
            time.sleep(0.05)


@agent
async def background_researcher(provider: str) -> str:
    """Await the step above."""
    return await background_research(provider)
