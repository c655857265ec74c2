"""Steps whose bodies fork in every way that Python has; each says how its child has ended."""

import asyncio
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import billiard

from paidonce import agent, record_usage, step

FORK = multiprocessing.get_context("fork")
COUNT_SOCKETS = """
import os
names = [os.readlink(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd") if number != "3"]
print(sum(name.startswith("socket:") or ".db" in name for name in names if os.path.basename(name) != "fd"))
"""


def fork(child: Callable[[], object]) -> int:
    """The exit code of a child that calls this and goes on as its parent does."""
    pid = os.fork()
    if pid == 0:
        child()
        return -1
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def square(number: int) -> int:
    return number * number


def fail() -> None:
    raise ValueError("in the child")


def pay() -> None:
    record_usage(None, provider="openai", model="gpt-4o-mini", input_tokens=1_000, output_tokens=50)


@step
def exits() -> int:
    pay()
    return fork(lambda: sys.exit(7))


@step
def raises() -> int:
    return fork(fail)


@step
def returns() -> int:
    return fork(pay)


@step
def vanishes() -> int:
    return fork(lambda: os._exit(9))


@step
async def returns_async() -> int:
    return fork(lambda: None)


@step
async def exits_async() -> int:
    return fork(lambda: sys.exit(8))


@step
async def awaits_in_the_child() -> int:
    code = fork(lambda: None)
    if code == -1:
        await asyncio.sleep(0)
        await asyncio.sleep(600)
    return code


@step
async def runs_a_loop_in_the_child() -> int:
    return fork(lambda: asyncio.run(asyncio.sleep(0)))


@step
async def forks_in_a_thread() -> int:
    return await asyncio.to_thread(fork, lambda: sys.exit(6))


@step
def terminates() -> int | None:
    process = FORK.Process(target=time.sleep, args=(600,))
    process.start()
    process.terminate()
    process.join()
    return process.exitcode


@step
def pools() -> list[int]:
    with ProcessPoolExecutor(2, mp_context=FORK) as pool:
        return list(pool.map(square, range(5)))


@step
def billiards() -> int | None:
    process = billiard.Process(target=square, args=(2,))
    process.start()
    process.join()
    return process.exitcode


@step
def starts_a_program() -> int:
    done = subprocess.run(
        [sys.executable, "-c", COUNT_SOCKETS], close_fds=False, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@agent
async def forker(pool: str) -> dict[str, object]:
    steps = [exits, raises, returns, vanishes, starts_a_program]
    steps += [returns_async, exits_async, awaits_in_the_child, runs_a_loop_in_the_child, forks_in_a_thread]
    if pool == "threads":  # a pool child of Celery is daemonic, which multiprocessing allows no children
        steps += [terminates, pools, billiards]
    return {each.name.rpartition(".")[2]: await each() for each in steps}


@step
def work(number: int) -> int:
    return number + 1


@agent
async def worker(number: int) -> int:
    for _ in range(4):
        number = await work(number)
    return number
