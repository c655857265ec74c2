"""Libraries that keep state by thread, in agents: tenacity counts its tries in a `threading.local`."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from paidonce.embedded import stop_embedded
from tests.cli.conftest import Project
from tests.services.waiting import wait_until

RUNS = 12

AGENTS = """
import asyncio
import itertools
import threading

from tenacity import AsyncRetrying, retry, retry_if_exception_type, stop_after_attempt, wait_fixed

from paidonce import StepFailed, agent, step


@step
def shaky(number: int, fails: bool) -> int:
    if fails:
        raise ValueError("again")
    return number


@agent
async def tenacious_retries(number: int) -> list[int]:
    tries = itertools.count(1)

    @retry(retry=retry_if_exception_type(StepFailed), stop=stop_after_attempt(5), wait=wait_fixed(0.05))
    async def asked() -> int:
        return await shaky(number, next(tries) < 4)

    found = [await asked(), asked.statistics["attempt_number"]]
    async for attempt in AsyncRetrying(stop=stop_after_attempt(4), wait=wait_fixed(0.05)):
        with attempt:
            found.append(await shaky(number, attempt.retry_state.attempt_number < 3))
    return found


@agent
async def bound(number: int) -> list[int]:
    kept, lock = threading.local(), threading.RLock()
    kept.number = number
    threads = set()
    with lock:
        for _ in range(4):
            await asyncio.gather(shaky(1, False), shaky(2, False), asyncio.sleep(0.01))
            threads.add(threading.get_ident())
    return [kept.number, len(threads)]
"""


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    (tmp_path / "agents_by_thread.py").write_text(AGENTS)
    made = Project(tmp_path)
    yield made
    stop_embedded(made.home)


def test_retries_of_tenacity_go_on_whichever_thread_has_the_next_event(project: Project) -> None:
    with project.started("worker", "agents_by_thread.py", "--concurrency", "8") as worker:
        wait_until(lambda: " ready." in project.log() or worker.poll() is not None, "the worker is ready", 60)
        client = project.client()
        patient = [client.submit("tenacious_retries", {"number": number}) for number in range(RUNS)]
        bound = [client.submit("bound", {"number": number}) for number in range(RUNS)]
        for number in range(RUNS):
            assert patient[number].result(timeout=50) == [number, 4, number], project.log()
            assert bound[number].result(timeout=50) == [number, 1], project.log()
        client.database.close()
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(30) == 0
