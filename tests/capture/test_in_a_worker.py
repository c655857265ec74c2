"""Through a real worker: what the ledger's rows hold in the store is the server's own count."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from paidonce.embedded import stop_embedded
from tests.capture.conftest import CountingServer, ledger_rows
from tests.cli.conftest import Project

pytestmark = pytest.mark.slow

AGENTS = """
import os
import threading

import openai

from paidonce import agent, record_usage, step, tool

BASE = os.environ["OPENAI_BASE_URL"]
SAY = [{"role": "user", "content": "plain"}]
BUSY = [{"role": "user", "content": "busy in a worker"}]


@tool(name="shop.ask")
def ask() -> str:
    with openai.OpenAI(base_url=BASE, api_key="key") as client:
        return client.chat.completions.create(model="gpt-4o-mini", messages=SAY).id


@step(name="shop.think")
async def think() -> str:
    async with openai.AsyncOpenAI(base_url=BASE, api_key="key") as client:
        answer = await client.chat.completions.create(model="gpt-5-mini", messages=BUSY)
        record_usage(answer)
        stream = await client.chat.completions.create(
            model="gpt-4o-mini", messages=SAY, stream=True, stream_options={"include_usage": True}
        )
        async for chunk in stream:
            if chunk.usage is not None:
                record_usage(chunk)
        await ask()
        return answer.id


@step(name="shop.thread")
def in_a_thread() -> int:
    thread = threading.Thread(target=ask.fn)
    thread.start()
    thread.join()
    return 1


@agent(name="shop")
async def shop() -> str:
    first = await think()
    await in_a_thread()
    await ask()
    return first
"""


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Project]:
    (tmp_path / "agents.py").write_text(AGENTS)
    project = Project(tmp_path)
    yield project
    stop_embedded(project.home)


def test_the_ledger_of_a_run_is_the_servers_count(shop: Project, counting_server: CountingServer) -> None:
    shop.environment["OPENAI_BASE_URL"] = f"{counting_server.url}/v1"
    ran = shop.paidonce("run", "agents.py:shop", "--json", PROVIDER_HOSTS=counting_server.hosts)
    assert ran.code == 0, ran.err
    calls = read_calls(shop.home / "paidonce.db")
    assert ledger_rows(calls) == counting_server.rows()
    assert [(call["step"], call["tool"], call["status"], call["http_retry"]) for call in calls] == [
        ("shop.think", None, "failed", 0),
        ("shop.think", None, "failed", 1),
        ("shop.think", None, "ok", 2),
        ("shop.think", None, "ok", 0),
        ("shop.think", "shop.ask", "ok", 0),
        ("shop.thread", None, "ok", 0),
        ("shop.ask", "shop.ask", "ok", 0),
    ]
    bill = ran.document["bill"]
    assert bill["calls"] == len(calls)
    assert bill["input_tokens"] == sum(entry["input_tokens"] or 0 for entry in counting_server.count())


def read_calls(database: Path) -> list[dict[str, Any]]:
    """The rows of ``calls`` as they stand, in the order in which they began."""
    connection = sqlite3.connect(database)
    connection.row_factory = sqlite3.Row
    try:
        return [dict(row) for row in connection.execute("SELECT * FROM calls ORDER BY position, started_at_us, id")]
    finally:
        connection.close()
