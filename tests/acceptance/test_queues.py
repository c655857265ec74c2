"""Steps are Celery tasks: routed by queue, named after their function, seen by Celery's own tools, on both pools."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery

from tests.acceptance.agents.stepping import inline, loop_blocker, step_in_step
from tests.acceptance.site import RUN_SECONDS, Site
from tests.services.waiting import wait_until

pytestmark = pytest.mark.slow

FLOW = "tests.acceptance.agents.flow"
ROUTED = """
import os
from paidonce import agent, step, tool

@step
def here() -> int:
    return os.getpid()

@tool(queue="side")
def aside() -> int:
    return os.getpid()

@agent
async def routed() -> list[int]:
    return [await here(), await aside(), await here()]
"""


def test_a_step_runs_where_its_queue_is_served(site: Site) -> None:
    (site.folder / "routed.py").write_text(ROUTED)
    main = site.own_worker("routed", arguments=["--concurrency", "2"])
    run = site.stranger.submit("routed", {})
    wait_until(
        lambda: [step.state for step in run.steps()] == ["succeeded", "scheduled"], "it waits aside", RUN_SECONDS
    )
    side = site.own_worker("routed", arguments=["--queues", "side"])
    assert run.result(RUN_SECONDS) == [main.process.pid, side.process.pid, main.process.pid]


def test_a_run_that_came_before_its_worker_begins_on_the_agents_own_queue(site: Site) -> None:
    text = ROUTED.replace("@agent", '@agent(queue="brains")')
    (site.folder / "routed.py").write_text(text)
    run = site.stranger.submit("routed", {})
    assert run.view().queue == "paidonce.default"
    brains = site.own_worker("routed", arguments=["--queues", "brains"])
    wait_until(lambda: run.view().queue == "paidonce.brains" and run.steps(), "it begins", RUN_SECONDS)
    side = site.own_worker("routed", arguments=["--queues", "default,side"])
    pids = run.result(RUN_SECONDS)
    assert pids == [side.process.pid] * 3 and brains.process.pid not in pids


def test_tools_run_inline_in_steps(shared: Site) -> None:
    run = shared.client.submit(inline, {"word": "hi"})
    assert run.result(RUN_SECONDS) == ["HI", "HI", "HI"]
    assert len(run.steps()) == 2


def test_a_step_in_a_step_is_refused(shared: Site) -> None:
    in_async, in_def = shared.client.submit(step_in_step).result(RUN_SECONDS)
    for told in (in_async, in_def):
        assert "was called inside a step; only tools run inside a step" in told
        assert "plain_step.fn(...)" in told


def test_a_blocked_event_loop_is_reported_by_name(shared: Site) -> None:
    assert shared.client.submit(loop_blocker, {"seconds": 3.0}).result(RUN_SECONDS) == "done"

    def said() -> str:
        return next(
            (line for line in shared.workers[0].log.splitlines() if "the event-loop thread has been" in line), ""
        )

    assert "blocked for" in wait_until(said, "the worker says so")
    log = shared.workers[0].log
    assert "blocks_the_loop" in log and "stepping.py:" in log


def test_celerys_tools_show_the_step_and_whose_it_is(shared: Site) -> None:
    from paidonce.broker.celery_app import build_celery_app

    app = build_celery_app(shared.client.settings)
    run = shared.client.submit("waits_for_async", {"name": "inspected"})
    shared.wait_noted("inspected began")
    inspect: Any = app.control.inspect(timeout=10, limit=1)  # of the one worker

    def active_of_run() -> list[dict[str, Any]]:
        active = [task for tasks in (inspect.active() or {}).values() for task in tasks]
        return [task for task in active if task["kwargs"].get("run") == run.id]

    try:
        (shown,) = wait_until(active_of_run, "the worker shows it")
        answer = wait_until(inspect.registered, "the worker says what it holds")
        registered = {name for names in answer.values() for name in names}
    finally:
        run.cancel()
        shared.wait_state(run, "cancelled")
        app.close()
    assert shown["name"] == "tests.acceptance.agents.cancelling.endless_async"
    assert shown["kwargs"] == {"run": run.id, "agent": "waits_for_async", "step": 1}
    assert {f"{FLOW}.double", "paidonce.submit", "paidonce.advance"} <= registered


def test_prefork_runs_steps_in_children_that_renew_their_leases(site: Site) -> None:
    worker = site.worker(FLOW, arguments=["--pool", "prefork", "--concurrency", "2"], lease_seconds="8")
    assert site.stranger.submit("gathers", {"count": 6}).result(RUN_SECONDS) == [0, 2, 4, 6, 8, 10]
    run = site.stranger.submit("draws_twice", {})
    long = site.stranger.submit("limits", {"seconds": 9.0})
    assert len(run.result(RUN_SECONDS)) == 2
    assert long.result(RUN_SECONDS) == "gave up after 2"
    assert [(step.attempts, step.lost) for step in (*run.steps(), *long.steps())] == [(1, 0)] * 3
    worker_of_steps = run.steps()[0].worker
    assert worker_of_steps is not None and f":{worker.process.pid}:" not in worker_of_steps
    assert worker.stop() == 0


SEQUENCE = """
import os, time
from paidonce import agent, step

@step
def number(of: int) -> int:
    return of

@step
def last() -> str:
    while not os.path.exists("go on"):
        time.sleep(0.05)
    return "done"

@agent
async def sequence(steps: int) -> str:
    for of in range(steps):
        await number(of)
    return await last()
"""


@contextlib.contextmanager
def events_of(app: Celery) -> Iterator[list[dict[str, Any]]]:
    """What the workers tell whoever listens, as Flower does."""
    seen: list[dict[str, Any]] = []
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": seen.append})
        listening = threading.Thread(target=receiver.capture, kwargs={"limit": None, "timeout": None, "wakeup": False})
        listening.start()
        try:
            yield seen
        finally:
            receiver.should_stop = True
            listening.join()


@pytest.mark.parametrize("turn_seconds", ["5", "0"])
def test_every_step_of_a_sequence_is_a_task_with_all_its_events(
    make_site: Callable[..., Site], turn_seconds: str
) -> None:
    """Also the steps that their thread goes on with, which no broker has seen."""
    site = make_site(turn_seconds=turn_seconds)
    (site.folder / "sequences.py").write_text(SEQUENCE)
    site.worker("sequences", arguments=["-E", "--concurrency", "2"])
    app = Celery(broker=site.broker_url, set_as_current=False)
    with events_of(app) as seen:

        def of(kind: str) -> list[dict[str, Any]]:
            return [event for event in seen if event["type"] == kind]

        wait_until(lambda: seen, "somebody is heard", RUN_SECONDS)
        run = site.stranger.submit("sequence", {"steps": 12})
        wait_until(lambda: len(of("task-started")) == 14, "the last step runs", RUN_SECONDS)
        inspect: Any = app.control.inspect(timeout=10, limit=1)
        [[active]] = wait_until(inspect.active, "the worker shows it").values()
        (site.folder / "go on").touch()
        assert (active["name"], active["kwargs"]["run"]) == ("sequences.last", run.id)
        assert run.result(RUN_SECONDS) == "done"
        wait_until(lambda: len(of("task-succeeded")) == 14, "an event for each end", RUN_SECONDS)
    received = [event for event in seen if event["type"] == "task-received" and event["name"] == "sequences.number"]
    assert len({event["uuid"] for event in received}) == 12
    for step, event in enumerate(received, 1):
        assert f"step={step}, run={run.id}" in event["kwargs"]
        types = [each["type"] for each in seen if each.get("uuid") == event["uuid"]]
        assert types == ["task-received", "task-started", "task-succeeded"]
