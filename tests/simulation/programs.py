"""Random agents: a program is JSON, one agent interprets it, hypothesis shrinks it.

A program that is not ``order_dependent`` has a meaning of its own, whatever completes
first; ``meaning`` says it without asyncio, without steps and without a store.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from decimal import Decimal
from typing import Any

from hypothesis import strategies as st

from paidonce import Retry, StepFailed, agent, now, record_usage, step, tool, uuid
from paidonce_models.money import NANOUSD_PER_USD

Program = list[Any]

PRICE_NANOUSD = 1_000
PRICE_USD = Decimal(PRICE_NANOUSD) / NANOUSD_PER_USD
"""Of a step's body."""
RETRY_AFTER_SECONDS = 2.0

failures_before: ContextVar[int] = ContextVar("failures_before")
"""How often the step that runs has failed before: what its script is read at."""


class Boom(Exception):
    """The only way a program fails, so that it does not matter which of its parts failed first."""

    def __init__(self) -> None:
        super().__init__("boom")


class Again(Exception):
    """A failure that the step's policy covers."""


class OutOfTime(Exception):
    """The body takes longer than its step may."""


def play(label: int, script: str) -> int:
    """A step's body: ``r`` fails and is tried again, ``f`` fails for good, ``t`` runs out of time, ``o`` succeeds."""
    if label:  # some steps cost nothing, as most tools do
        record_usage(cost_usd=PRICE_USD)
    sign = script[failures_before.get()]
    if sign == "t":
        raise OutOfTime
    if sign == "r":
        raise Again
    if sign == "f":
        raise Boom
    return label


RETRY = Retry(max_attempts=9, base_seconds=RETRY_AFTER_SECONDS, cap_seconds=RETRY_AFTER_SECONDS, retry_on=(Again,))


@step(name="simulated.work", retry=RETRY, max_lost=1000)
def work(label: int, script: str) -> int:
    """A step."""
    return play(label, script)


@tool(name="simulated.look_up", retry=RETRY, max_lost=1000, queue="tools")
def look_up(label: int, script: str) -> int:
    """A tool, on a queue of its own."""
    return play(label, script)


@agent(name="simulated.interpret")
async def interpret(program: list[Any]) -> Any:
    """Any program."""
    return await evaluate(program)


async def evaluate(program: Program) -> Any:
    """The value of a program, or ``Boom``."""
    return await PARTS[program[0]](*program[1:])


async def _awaited(coroutine: Awaitable[Any]) -> Any:
    try:
        return await coroutine
    except StepFailed:
        raise Boom from None


async def _shown(part: Program) -> Any:
    try:
        return await evaluate(part)
    except Boom:
        return "failed"


async def _value(value: int) -> int:
    return value


async def _raise() -> None:
    raise Boom


async def _sleep(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "slept"


async def _stamp() -> str:
    await work(int(now().timestamp() * 1000) % 1000, "o")
    await work(uuid().int % 1000, "o")
    return "stamped"


async def _sequence(parts: list[Program]) -> list[Any]:
    return [await evaluate(part) for part in parts]


async def _loop(times: int, part: Program) -> list[Any]:
    return [await evaluate(part) for _ in range(times)]


async def _gather(parts: list[Program]) -> list[Any]:
    return list(await asyncio.gather(*map(evaluate, parts)))


async def _settle(parts: list[Program]) -> list[Any]:
    results = await asyncio.gather(*map(evaluate, parts), return_exceptions=True)
    return ["failed" if isinstance(result, BaseException) else result for result in results]


async def _group(parts: list[Program]) -> list[Any]:
    parent = asyncio.current_task()
    assert parent is not None
    cancelled = parent.cancelling()
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(evaluate(part)) for part in parts]
    except BaseExceptionGroup:
        # Before Python 3.13 a group that fails leaves its own cancellation behind, and lets that of a timeout around it
        # escape as a CancelledError.
        while sys.version_info < (3, 13) and parent.cancelling() > cancelled:
            parent.uncancel()
        raise Boom from None
    return [task.result() for task in tasks]


async def _first(parts: list[Program]) -> bool:
    tasks = [asyncio.ensure_future(evaluate(part)) for part in parts]
    done, rest = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)
    return bool(done)


async def _first_result(parts: list[Program]) -> list[Any]:
    tasks = [asyncio.ensure_future(_shown(part)) for part in parts]
    done, rest = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in rest:
        task.cancel()
    return [[index, task.result()] for index, task in enumerate(tasks) if task in done]


async def _as_completed(parts: list[Program]) -> list[Any]:
    results = [await each for each in asyncio.as_completed([_shown(part) for part in parts])]
    return sorted(results, key=json.dumps)


async def _semaphore(at_once: int, parts: list[Program]) -> list[Any]:
    semaphore = asyncio.Semaphore(at_once)

    async def one(part: Program) -> Any:
        async with semaphore:
            return await evaluate(part)

    return list(await asyncio.gather(*map(one, parts)))


async def _queue(consumers: int, parts: list[Program]) -> list[Any]:
    queue: asyncio.Queue[tuple[int, Program] | None] = asyncio.Queue()
    results: list[Any] = [None] * len(parts)
    # Every consumer comes to an end: one that survives its cancellation would wait for ever, on any loop.
    for entry in [*enumerate(parts), *[None] * consumers]:
        queue.put_nowait(entry)

    async def consume() -> None:
        while (entry := await queue.get()) is not None:
            index, part = entry
            try:
                results[index] = await _shown(part)
            finally:
                queue.task_done()
        queue.task_done()

    tasks = [asyncio.ensure_future(consume()) for _ in range(consumers)]
    await queue.join()
    await asyncio.wait(tasks)
    return results


async def _timeout(seconds: float, part: Program) -> str:
    try:
        async with asyncio.timeout(seconds):
            await evaluate(part)
    except (TimeoutError, Boom):
        pass
    return "in time or not"


async def _timeout_result(seconds: float, part: Program) -> Any:
    try:
        return await asyncio.wait_for(_shown(part), seconds)
    except TimeoutError:
        return "too late"


async def _try(part: Program, handler: Program) -> Any:
    try:
        return await evaluate(part)
    except Boom:
        return ["caught", await evaluate(handler)]


async def _finally(part: Program, after: Program) -> Any:
    try:
        return await evaluate(part)
    finally:
        await evaluate(after)


async def _on_cancel(part: Program, handler: Program) -> Any:
    try:
        return await evaluate(part)
    except asyncio.CancelledError:
        await evaluate(handler)
        raise


async def _spawn(part: Program) -> str:
    asyncio.ensure_future(evaluate(part))  # noqa: RUF006  # left behind on purpose
    return "spawned"


async def _shield(part: Program) -> Any:
    return await asyncio.shield(evaluate(part))


async def _work(label: int, script: str) -> Any:
    return await _awaited(work(label, script))


async def _look_up(label: int, script: str) -> Any:
    return await _awaited(look_up(label, script))


async def _child(part: Program) -> Any:
    return await _awaited(interpret(part))


PARTS: dict[str, Callable[..., Awaitable[Any]]] = {
    "value": _value,
    "raise": _raise,
    "work": _work,
    "look_up": _look_up,
    "sleep": _sleep,
    "stamp": _stamp,
    "child": _child,
    "sequence": _sequence,
    "loop": _loop,
    "gather": _gather,
    "settle": _settle,
    "group": _group,
    "first": _first,
    "first_result": _first_result,
    "as_completed": _as_completed,
    "semaphore": _semaphore,
    "queue": _queue,
    "timeout": _timeout,
    "timeout_result": _timeout_result,
    "try": _try,
    "finally": _finally,
    "on_cancel": _on_cancel,
    "spawn": _spawn,
    "shield": _shield,
}
ORDER_DEPENDENT = {"first_result", "timeout_result"}


def is_order_dependent(program: Any) -> bool:
    """Whether the result may depend on what completes first."""
    if not isinstance(program, list):
        return False
    return (bool(program) and program[0] in ORDER_DEPENDENT) or any(map(is_order_dependent, program))


def meaning(program: Program) -> Any:
    """What a program comes to on a machine that never fails; raises ``Boom``."""
    name, *rest = program
    match name:
        case "value":
            return rest[0]
        case "raise":
            raise Boom
        case "work" | "look_up":
            if not rest[1].endswith("o"):
                raise Boom
            return rest[0]
        case "sleep":
            return "slept"
        case "stamp":
            return "stamped"
        case "first":
            return True
        case "timeout":
            return "in time or not"
        case "spawn":
            return "spawned"
        case "child" | "shield" | "on_cancel":
            return meaning(rest[0])
        case "loop":
            return [meaning(rest[1]) for _ in range(rest[0])]
        case "sequence" | "gather" | "group" | "semaphore":
            return [meaning(part) for part in rest[-1]]
        case "settle" | "queue":
            return [_shown_meaning(part) for part in rest[-1]]
        case "as_completed":
            return sorted((_shown_meaning(part) for part in rest[0]), key=json.dumps)
        case "try":
            try:
                return meaning(rest[0])
            except Boom:
                return ["caught", meaning(rest[1])]
        case "finally":
            try:
                return meaning(rest[0])
            finally:
                meaning(rest[1])
    raise ValueError(f"{name} has no meaning of its own")


def _shown_meaning(part: Program) -> Any:
    try:
        return meaning(part)
    except Boom:
        return "failed"


def _node(name: str, *parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Program]:
    return st.tuples(st.just(name), *parts).map(list)


_seconds = st.sampled_from([0, 0.5, 3, 20, 100])
_scripts = st.sampled_from(["o"] * 10 + ["ro", "ro", "rro", "f", "rf", "t"])
_labels = st.integers(0, 5)
_leaves = st.sampled_from(["work"] * 6 + ["look_up"] * 2 + ["sleep", "sleep", "stamp", "value", "raise"]).flatmap(
    {
        "work": _node("work", _labels, _scripts),
        "look_up": _node("look_up", _labels, _scripts),
        "sleep": _node("sleep", _seconds),
        "stamp": _node("stamp"),
        "value": _node("value", _labels),
        "raise": _node("raise"),
    }.__getitem__
)


def _level(below: st.SearchStrategy[Program], *, order_dependent: bool) -> st.SearchStrategy[Program]:
    several = st.lists(below, min_size=1, max_size=5)
    few = st.integers(1, 2)
    options = [
        _node("sequence", several),
        _node("loop", few, below),
        _node("gather", several),
        _node("settle", several),
        _node("group", several),
        _node("first", several),
        _node("as_completed", several),
        _node("semaphore", few, several),
        _node("queue", few, several),
        _node("timeout", _seconds, below),
        _node("try", below, below),
        _node("finally", below, below),
        _node("on_cancel", below, below),
        _node("spawn", below),
        _node("shield", below),
        _node("child", below),
    ]
    if order_dependent:
        options += [_node("first_result", several), _node("timeout_result", _seconds, below)]
    return st.one_of(options)


def _programs(*, order_dependent: bool) -> st.SearchStrategy[Program]:
    level = _leaves
    for _ in range(2):
        level = st.sampled_from([False, True, True]).flatmap(
            {False: _leaves, True: _level(level, order_dependent=order_dependent)}.__getitem__
        )
    return _level(level, order_dependent=order_dependent)


meaningful_programs = _programs(order_dependent=False)
any_programs = _programs(order_dependent=True)
