"""The DBOS side, run by the interpreter of ``.bench-venv``: ``program.py worker|client DATABASE_URL CONCURRENCY``.

Imports nothing of Paidonce. The worker launches and listens until its standard input closes; the client reads one
case per line as JSON, runs it and answers with one line.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

from dbos import DBOS, DBOSClient, DBOSConfig

from benchmarks.values import step_result, turn_text

QUEUE = "bench"
APPLICATION_VERSION = "bench"
POLLING_SECONDS = 0.05


@DBOS.step()
def no_op(run: int, position: int, result_bytes: int) -> str:
    return step_result(run, position, result_bytes)


@DBOS.step()
async def wait(run: int, position: int, result_bytes: int, wait_seconds: float) -> str:
    await asyncio.sleep(wait_seconds)
    return step_result(run, position, result_bytes)


@DBOS.step()
def turn(run: int, turn_bytes: int, messages: list[str]) -> str:
    return turn_text(run, len(messages) + 1, turn_bytes)


@DBOS.workflow()
def chain(run: int, steps: int, wait_seconds: float, result_bytes: int) -> int:
    for position in range(1, steps + 1):
        no_op(run, position, result_bytes)
    return steps


@DBOS.workflow()
async def waiting_chain(run: int, steps: int, wait_seconds: float, result_bytes: int) -> int:
    for position in range(1, steps + 1):
        await wait(run, position, result_bytes, wait_seconds)
    return steps


@DBOS.workflow()
async def gather(run: int, steps: int, wait_seconds: float, result_bytes: int) -> int:
    return len(await asyncio.gather(*(wait(run, p, result_bytes, 0) for p in range(1, steps + 1))))


@DBOS.workflow()
def conversation(run: int, steps: int, wait_seconds: float, result_bytes: int) -> int:
    messages: list[str] = []
    for _ in range(steps):
        messages.append(turn(run, result_bytes, messages))
    return len(messages)


def work(database_url: str, concurrency: int) -> None:
    """Take workflows from the queue until standard input closes."""
    config: DBOSConfig = {
        "name": "bench",
        "system_database_url": database_url,
        "application_version": APPLICATION_VERSION,
        "log_level": "WARNING",
        "run_admin_server": False,
    }
    DBOS(config=config)
    DBOS.launch()
    DBOS.register_queue(QUEUE, worker_concurrency=concurrency, polling_interval_sec=POLLING_SECONDS)
    print("ready", flush=True)
    sys.stdin.read()
    DBOS.destroy()


def produce(database_url: str) -> None:
    """Enqueue each case that comes in and wait for all of its workflows."""
    client = DBOSClient(system_database_url=database_url)
    print("ready", flush=True)
    for line in sys.stdin:
        case = json.loads(line)
        name = {"gather": "gather", "conversation": "conversation"}.get(
            case["shape"], "waiting_chain" if case["wait_seconds"] else "chain"
        )
        handles = [
            client.enqueue(
                {"queue_name": QUEUE, "workflow_name": name, "app_version": APPLICATION_VERSION},
                run,
                case["steps"],
                case["wait_seconds"],
                case["result_bytes"],
            )
            for run in range(1, case["runs"] + 1)
        ]
        began = time.perf_counter()
        results = [handle.get_result(polling_interval_sec=POLLING_SECONDS) for handle in handles]
        answer = {"ok": results == [case["steps"]] * case["runs"], "waited_seconds": time.perf_counter() - began}
        print(json.dumps(answer), flush=True)
    client.destroy()


if __name__ == "__main__":
    if sys.argv[1] == "worker":
        work(sys.argv[2], int(sys.argv[3]))
    else:
        produce(sys.argv[2])
