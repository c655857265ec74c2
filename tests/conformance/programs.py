"""Small agent-like programs, for showing that a recorded run replays the same anywhere.

Each is an ``async def program(call)``; ``call(name, value, fail=False)`` returns
a coroutine that is resolved with ``value``, or fails, when the driver says so.
What a program returns holds the order in which it saw things happen.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, Protocol


class CallFailed(Exception):
    """What a failed call raises."""


class Call(Protocol):
    """Asks for one call; the coroutine does so when it is first awaited."""

    def __call__(self, name: str, value: Any, *, fail: bool = False) -> Coroutine[Any, Any, Any]: ...


Program = Callable[[Call], Awaitable[Any]]


async def sequence(call: Call) -> Any:
    total = 0
    for number in range(5):
        total += await call("add", number)
    return total


async def loop_until_enough(call: Call) -> Any:
    notes: list[int] = []
    while sum(notes) < 12:
        notes.append(await call("more", len(notes) + 1))
        if len(notes) % 2:
            notes.append(await call("extra", 1))
    return notes


async def gather_in_order(call: Call) -> Any:
    return await asyncio.gather(*(call("part", number) for number in range(7)))


async def gather_with_exceptions(call: Call) -> Any:
    results = await asyncio.gather(
        *(call("part", number, fail=number % 3 == 1) for number in range(7)), return_exceptions=True
    )
    return [repr(result) for result in results]


async def gather_first_failure(call: Call) -> Any:
    try:
        return await asyncio.gather(call("fine", 1), call("broken", 2, fail=True), call("late", 3))
    except CallFailed as error:
        return [str(error), await call("after", 4)]


async def nested_gathers(call: Call) -> Any:
    async def branch(number: int) -> Any:
        first = await call("first", number)
        return await asyncio.gather(call("left", first), call("right", first + 1))

    return await asyncio.gather(*(branch(number) for number in range(4)))


async def wait_first_completed(call: Call) -> Any:
    pending = {asyncio.create_task(call("race", number), name=f"race {number}") for number in range(9)}
    order: list[Any] = []
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        order.append([await call("seen", task.get_name()) for task in done if not task.cancelled()])
        order.append([task.get_name() for task in pending])
        if len(order) > 6:
            for task in pending:
                task.cancel()
    return order


async def wait_first_exception(call: Call) -> Any:
    tasks = [asyncio.create_task(call("work", number, fail=number == 4)) for number in range(8)]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    order = [tasks.index(task) for task in done], [tasks.index(task) for task in pending]
    for task in pending:
        task.cancel()
    await asyncio.wait(tasks)
    return order


async def wait_with_timeout(call: Call) -> Any:
    tasks = [asyncio.create_task(call("slow", number)) for number in range(6)]
    done, pending = await asyncio.wait(tasks, timeout=2.5)
    more = await asyncio.gather(*(call("after", tasks.index(task)) for task in done))
    return more, [await task for task in pending]


async def completed_coroutines(call: Call) -> Any:
    order = []
    for next_done in asyncio.as_completed([call("any", number) for number in range(9)]):
        order.append(await next_done)
        await call("noted", order[-1])
    return order


async def completed_with_timeout(call: Call) -> Any:
    order: list[Any] = []
    try:
        for next_done in asyncio.as_completed([call("any", number) for number in range(5)], timeout=3):
            order.append(await next_done)
    except TimeoutError:
        order.append(await call("too late", len(order)))
    return order


async def task_group(call: Call) -> Any:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(call("member", number)) for number in range(5)]
    return [task.result() for task in tasks]


async def task_group_with_failing_member(call: Call) -> Any:
    order: list[Any] = []

    async def member(number: int) -> None:
        try:
            await call("member", number, fail=number == 3)
        except asyncio.CancelledError:
            order.append(number)
            await call("tidy", number)
            raise

    try:
        async with asyncio.TaskGroup() as group:
            for number in range(9):
                group.create_task(member(number))
    except* CallFailed as errors:
        order.append([str(error) for error in errors.exceptions])
    return order


async def timeout(call: Call) -> Any:
    try:
        async with asyncio.timeout(2):
            return [await call("one", 1), await call("two", 2), await call("three", 3)]
    except TimeoutError:
        return await call("gave up", asyncio.get_running_loop().time())


async def nested_timeouts(call: Call) -> Any:
    said = []
    try:
        async with asyncio.timeout(6):
            for number in range(3):
                try:
                    async with asyncio.timeout(1.5):
                        said.append(await call("inner", number))
                except TimeoutError:
                    said.append(await call("inner late", number))
            said.append(await call("outer", 9))
    except TimeoutError:
        said.append("outer late")
    return said


async def wait_for(call: Call) -> Any:
    said = []
    for number in range(4):
        try:
            said.append(await asyncio.wait_for(call("bounded", number), timeout=1))
        except TimeoutError:
            said.append(await call("late", number))
    return said


async def shield(call: Call) -> Any:
    work = asyncio.create_task(call("keep", 1))
    try:
        async with asyncio.timeout(1):
            await asyncio.shield(work)
    except TimeoutError:
        return ["shielded", await call("meanwhile", 2), await work]
    return work.result()


async def event(call: Call) -> Any:
    ready = asyncio.Event()
    order: list[int] = []

    async def waits(number: int) -> None:
        await ready.wait()
        order.append(await call("after event", number))

    async def sets() -> None:
        await call("before event", 0)
        ready.set()

    await asyncio.gather(*(waits(number) for number in range(5)), sets())
    return order


async def lock(call: Call) -> Any:
    guard = asyncio.Lock()
    order: list[Any] = []

    async def worker(number: int) -> None:
        order.append(await call("before lock", number))
        async with guard:
            order.append(await call("within lock", -number))

    await asyncio.gather(*(worker(number) for number in range(5)))
    return order


async def semaphore(call: Call) -> Any:
    slots = asyncio.Semaphore(2)
    order: list[Any] = []

    async def worker(number: int) -> None:
        async with slots:
            order.append(await call("slot", number))

    async with asyncio.TaskGroup() as group:
        for number in range(7):
            group.create_task(worker(number))
    return order


async def condition(call: Call) -> Any:
    changed = asyncio.Condition()
    stock = 0
    order: list[Any] = []

    async def takes(number: int) -> None:
        nonlocal stock
        async with changed:
            await changed.wait_for(lambda: stock > 0)
            stock -= 1
            order.append(number)
        await call("took", number)

    async def brings() -> None:
        nonlocal stock
        for number in range(4):
            await call("bring", number)
            async with changed:
                stock += 1
                changed.notify()

    await asyncio.gather(*(takes(number) for number in range(4)), brings())
    return order


async def queue(call: Call) -> Any:
    todo: asyncio.Queue[int] = asyncio.Queue(maxsize=2)
    order: list[Any] = []

    async def works(name: str) -> None:
        while True:
            item = await todo.get()
            order.append((name, await call(name, item)))
            todo.task_done()

    workers = [asyncio.create_task(works(f"worker {number}")) for number in range(3)]
    for number in range(8):
        await todo.put(number)
    await todo.join()
    for worker in workers:
        worker.cancel()
    await asyncio.gather(*workers, return_exceptions=True)
    return order


async def sleeps(call: Call) -> Any:
    async def naps(number: int) -> Any:
        await asyncio.sleep(1 + number % 3)
        return await call("awake", number), asyncio.get_running_loop().time()

    return await asyncio.gather(*(naps(number) for number in range(6)), asyncio.sleep(0, "at once"))


async def cancellation_that_tidies_up(call: Call) -> Any:
    said: list[Any] = []

    async def works() -> None:
        try:
            await call("long", 1)
            await call("longer", 2)
        finally:
            said.append(await call("tidy", 3))

    task = asyncio.create_task(works())
    await asyncio.wait([task, asyncio.create_task(call("signal", 0))], return_when=asyncio.FIRST_COMPLETED)
    task.cancel("enough")
    try:
        await task
    except asyncio.CancelledError as error:
        said.append(error.args)
    return said


async def swallowed_cancellation(call: Call) -> Any:
    async def stubborn() -> Any:
        try:
            return await call("first", 1)
        except asyncio.CancelledError:
            return await call("second", 2)

    task = asyncio.create_task(stubborn())
    await call("wait", 0)
    task.cancel()
    return await task


async def pages(call: Call, count: int) -> AsyncIterator[int]:
    try:
        for number in range(count):
            yield await call("page", number)
    finally:
        await call("close", count)


async def async_generator(call: Call) -> Any:
    return [page async for page in pages(call, 4)]


async def unfinished_async_generators(call: Call) -> Any:
    seen = []
    for count in (3, 2, 4):
        async for page in pages(call, count):
            seen.append(page)
            break
    return seen


async def sets_of_tasks(call: Call) -> Any:
    tasks = {asyncio.create_task(call("task", number)) for number in range(12)}
    futures = {
        asyncio.ensure_future(asyncio.gather(call("left", number), call("right", number))) for number in range(6)
    }
    order = [task.get_name() for task in tasks]
    order += [await call("first", await task) for task in tasks]
    order += [await call("pair", sum(await future)) for future in futures]
    return order


async def all_tasks_cancelled(call: Call) -> Any:
    order: list[Any] = []

    async def works(number: int) -> None:
        try:
            await call("work", number)
            await asyncio.sleep(number)
        finally:
            order.append(number)

    for number in range(10):
        asyncio.create_task(works(number))  # noqa: RUF006  # the loop holds it, and that is shown here
    await call("meanwhile", 0)
    for task in asyncio.all_tasks():
        if task is not asyncio.current_task():
            task.cancel()
    await call("then", 1)
    return order


async def callbacks_and_context(call: Call) -> Any:
    order: list[Any] = []
    tasks = [asyncio.create_task(call("told", number)) for number in range(4)]
    for number, task in enumerate(tasks):
        task.add_done_callback(lambda done, number=number: order.append((number, done.result())))  # type: ignore[misc]
    asyncio.get_running_loop().call_later(1, order.append, "timer")
    asyncio.get_running_loop().call_soon(order.append, "soon")
    await asyncio.gather(*tasks)
    await asyncio.sleep(1)
    return order


async def retries_until_it_works(call: Call) -> Any:
    for attempt in range(4):
        try:
            return await asyncio.wait_for(call("flaky", attempt, fail=attempt < 3), timeout=5)
        except (CallFailed, TimeoutError):
            await asyncio.sleep(2**attempt)
    return "gave up"


PROGRAMS: dict[str, Program] = {
    program.__name__: program
    for program in (
        sequence,
        loop_until_enough,
        gather_in_order,
        gather_with_exceptions,
        gather_first_failure,
        nested_gathers,
        wait_first_completed,
        wait_first_exception,
        wait_with_timeout,
        completed_coroutines,
        completed_with_timeout,
        task_group,
        task_group_with_failing_member,
        timeout,
        nested_timeouts,
        wait_for,
        shield,
        event,
        lock,
        semaphore,
        condition,
        queue,
        sleeps,
        cancellation_that_tidies_up,
        swallowed_cancellation,
        async_generator,
        unfinished_async_generators,
        sets_of_tasks,
        all_tasks_cancelled,
        callbacks_and_context,
        retries_until_it_works,
    )
}
