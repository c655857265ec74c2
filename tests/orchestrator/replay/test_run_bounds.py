"""What one run may ask for: an endless agent is blocked with nothing lost, and goes on when the limit is raised."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from paidonce import agent, step
from paidonce.replay.bounds import RunBounds
from paidonce.replay.commands import Schedule
from paidonce_models.errors import ReplayError, TooManySteps, TooManyTimers
from paidonce_models.states import RunState
from paidonce_models.store.messages import StepMessage
from paidonce_models.store.recovery.workers import HeldAgent, Registration, register_worker
from paidonce_models.store.runs.events import EventKind
from tests.orchestrator.replay.test_run_replay import Log
from tests.orchestrator.runs.test_advancer import Process, Store


@step(name="bounded.look")
def look(number: int) -> int: ...


@agent(name="bounded-endless")
async def endless() -> None:
    number = 0
    while True:
        number = await look(number)


@agent(name="bounded-stubborn")
async def stubborn() -> None:
    while True:
        try:
            await look(0)
        except Exception:  # noqa: BLE001 - what an agent does that must not be able to hide a refusal
            pass


@agent(name="bounded-wide")
async def wide(calls: int) -> int:
    return len(await asyncio.gather(*(look(number) for number in range(calls))))


@agent(name="bounded-tasks")
async def tasks(count: int) -> None:
    async def nothing() -> None:
        await asyncio.Event().wait()

    await asyncio.gather(*(asyncio.create_task(nothing()) for _ in range(count)))


@agent(name="bounded-sleeper")
async def sleeper() -> None:
    while True:  # noqa: ASYNC110 - an agent that polls, as many do
        await asyncio.sleep(1)


@agent(name="bounded-breeder")
async def breeder(depth: int, children: int) -> int:
    if depth == 0:
        return await look(1)
    return sum(await asyncio.gather(*(breeder(depth - 1, children) for _ in range(children))))


DECLARED = (look, endless, stubborn, wide, tasks, sleeper, breeder)


@pytest.fixture
def store() -> Iterator[Store]:
    made = Store()
    yield made
    made.database.close()


def process(store: Store, **limits: int) -> Process:
    return Process(store, *DECLARED, bounds=RunBounds(**limits))


def go_on(store: Store, worker: Process, run_id: str, steps: int, *, first: int = 1) -> None:
    """Complete so many steps of a sequence, one after the other."""
    for position in range(first, first + steps):
        worker.complete(store.claim(run_id, position), position)


def register(store: Store, declaration: Any, *, signature: str | None = None, **limits: int) -> list[str]:
    """What a worker that starts with these limits lets go on."""
    registration = Registration(
        worker="other",
        namespace="default",
        hostname="h",
        pid=1,
        python_minor="3.11",
        queues=["paidonce.default"],
        agents=[
            HeldAgent(name=declaration.name, version=declaration.version, signature=signature or declaration.signature)
        ],
        steps=["bounded.look"],
        bounds=RunBounds(**limits).by_reason,
    )
    return [
        message.run_id
        for message in store.database.transact(lambda connection: register_worker(connection, registration))
    ]


def test_an_endless_agent_is_blocked_with_its_steps_kept_and_goes_on_when_the_limit_is_raised(store: Store) -> None:
    run_id = store.submit(endless)
    worker = process(store, max_steps=3)
    worker.advance(run_id)
    go_on(store, worker, run_id, 3)

    run = store.run(run_id)
    assert (run.state, run.state_reason) == (RunState.BLOCKED, "too_many_steps")
    assert run.error is not None
    message = str(run.error["message"])
    assert "step 4, at most 3" in message and "PAIDONCE_MAX_STEPS" in message and "bounded-endless" in message
    assert [each.state for each in store.steps(run_id)] == ["succeeded"] * 3

    assert register(store, endless, max_steps=3) == []
    assert register(store, endless, max_steps=2) == []
    assert register(store, endless, max_steps=5) == [run_id]
    larger = process(store, max_steps=5)
    larger.advance(run_id)
    go_on(store, larger, run_id, 2, first=4)
    assert [each.attempts for each in store.steps(run_id)] == [1] * 5  # nothing was paid again
    assert store.run(run_id).state is RunState.BLOCKED


def test_other_code_sets_a_run_going_that_met_a_limit(store: Store) -> None:
    run_id = store.submit(endless)
    worker = process(store, max_steps=1)
    worker.advance(run_id)
    go_on(store, worker, run_id, 1)
    assert store.run(run_id).state is RunState.BLOCKED
    assert register(store, endless, signature="mended", max_steps=1) == [run_id]


# What interrupts its slice may strike in a callback of the garbage collector, where Python swallows it with a warning.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_agent_that_swallows_the_refusal_is_blocked_with_it(store: Store) -> None:
    run_id = store.submit(stubborn)
    worker = Process(store, *DECLARED, bounds=RunBounds(max_steps=2), slice_seconds=0.2)
    worker.advance(run_id)
    go_on(store, worker, run_id, 2)
    assert store.run(run_id).state_reason == "too_many_steps"


def test_a_million_calls_of_one_slice_are_stopped_as_they_are_made() -> None:
    with pytest.raises(TooManySteps, match="at most 50 are allowed") as refused:
        Log(wide, {"calls": 1_000_000}, bounds=RunBounds(max_steps=50), slice_seconds=60.0)
    assert refused.value.details == {"limit": 50}


def test_as_many_steps_as_are_allowed_are_asked_for() -> None:
    log = Log(wide, {"calls": 50}, bounds=RunBounds(max_steps=50))
    assert len([each for each in log.machine.commands if isinstance(each, Schedule)]) == 50


def test_a_million_tasks_of_one_slice_are_stopped_as_they_are_made() -> None:
    with pytest.raises(TooManySteps, match="has 100 unfinished asyncio tasks"):
        Log(tasks, {"count": 1_000_000}, bounds=RunBounds(max_steps=10), slice_seconds=60.0)


def test_an_agent_that_only_sleeps_is_blocked_after_so_many_timers(store: Store) -> None:
    log = Log(sleeper, bounds=RunBounds(max_timers=2))
    for _ in range(2):
        log.feed(EventKind.TIMER, after_us=1_000_001)
    with pytest.raises(TooManyTimers, match=r"woken by a timer 2 times.*PAIDONCE_MAX_TIMERS"):
        log.feed(EventKind.TIMER, after_us=1_000_001)


def test_the_log_warns_once_of_a_run_that_has_become_long(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    run_id = store.submit(endless)
    worker = process(store, max_steps=10, warn_steps=2)
    with caplog.at_level(logging.WARNING):
        worker.advance(run_id)
        go_on(store, worker, run_id, 2)
        other = process(store, max_steps=10, warn_steps=2)
        go_on(store, other, run_id, 2, first=3)
    warned = [record for record in caplog.records if getattr(record, "event", "") == "many_steps"]
    assert [(record.run_id, record.step) for record in warned] == [(run_id, 2)]  # type: ignore[attr-defined]
    assert "10" in warned[0].getMessage() and "PAIDONCE_MAX_STEPS" in warned[0].getMessage()


def test_runs_below_one_root_are_counted_over_all_generations(store: Store) -> None:
    run_id = store.submit(breeder, depth=2, children=2)
    worker = process(store, max_runs=5)
    pending = [run_id]
    while pending:
        pending += [each.run_id for each in worker.advance(pending.pop()) if not isinstance(each, StepMessage)]
    with store.database.read() as connection:
        rows = connection.exec_driver_sql(
            "SELECT id, depth, state, state_reason FROM runs WHERE root_run_id = ? ORDER BY depth, state", (run_id,)
        ).all()
    assert len(rows) == 5  # the root, its two children, and those of one of them
    blocked = [row for row in rows if row.state == "blocked"]
    assert [(row.depth, row.state_reason) for row in blocked] == [(1, "too_many_runs")]
    assert "PAIDONCE_MAX_RUNS" in str((store.run(blocked[0].id).error or {})["message"])

    assert register(store, breeder, max_runs=5) == []
    assert register(store, breeder, max_runs=6) == [blocked[0].id]
    assert len(process(store, max_runs=6).advance(blocked[0].id)) == 2


@pytest.mark.parametrize("kind", [TooManySteps, TooManyTimers])
def test_a_limit_is_an_error_of_replay_that_tells_its_limit(kind: type[TooManySteps]) -> None:
    assert issubclass(kind, ReplayError)
    assert kind("x", limit=7).limit == 7
    assert kind("x").limit == 0
