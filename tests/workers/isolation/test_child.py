"""A suspect runs alone in a child process: it condemns nobody but itself."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from paidonce import Retry, agent, record_usage, step
from paidonce_models.pricing import PriceBook, PriceRow
from paidonce_models.store.queries import read_step_payloads
from paidonce_models.store.recovery.lost_steps import reclaim_step
from paidonce_models.store.steps.claims import Claim, claim_step
from paidonce_models.store.steps.leases import LeaseKey
from paidonce_workers.bodies.interrupt import Reason
from paidonce_workers.isolation.frames import FrameWriter
from tests.services.waiting import wait_until
from tests.workers import deadly_steps
from tests.workers.stand import LEASE_SECONDS, Stand

HERE = "tests.workers.isolation.test_child"
STARTED = "ISOLATED_STARTED"
pytestmark = pytest.mark.timeout(120)


@step(name="isolated.process")
def process(text: str) -> list[Any]:
    record_usage(None, provider="p", model="m", input_tokens=7, output_tokens=1, cost_usd="0.001")
    return [text, os.getpid()]


@step(name="isolated.async_process")
async def async_process(text: str) -> list[Any]:
    await asyncio.sleep(0)
    return [text, os.getpid()]


@step(name="isolated.fails", retry=Retry(max_attempts=2, retry_on=("IndexError",)))
def fails() -> None:
    record_usage(None, provider="p", model="m", input_tokens=7, output_tokens=1, cost_usd="0.002")
    raise LookupError("in the child")


@step(name="isolated.wavers", retry=Retry(max_attempts=2, retry_on=(LookupError,)))
def wavers() -> None:
    raise KeyError("in the child")


@step(name="isolated.asks")
def asks() -> int:
    answer = {"model": "m", "usage": {"prompt_tokens": 7, "completion_tokens": 1}}
    with httpx.Client(transport=httpx.MockTransport(lambda _: httpx.Response(200, json=answer))) as client:
        client.post("https://api.openai.com/v1/responses", json={"model": "m"})
        return client.post("http://llm.internal/v1/chat/completions", json={"model": "m"}).status_code


@step(name="isolated.dies", max_lost=2)
def dies() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@step(name="isolated.spends_and_dies")
def spends_and_dies() -> None:
    told, write = threading.Event(), FrameWriter.write

    def write_once(self: FrameWriter, content: bytes) -> None:
        write(self, content)
        told.set()
        threading.Event().wait()

    FrameWriter.write = write_once  # type: ignore[method-assign]
    record_usage(None, provider="p", model="m", input_tokens=7, output_tokens=1, cost_usd="0.003")
    assert told.wait(60)
    record_usage(None, provider="p", model="m", input_tokens=7, output_tokens=1, cost_usd="0.004")
    os.kill(os.getpid(), signal.SIGKILL)


@step(name="isolated.leaves_a_thread")
def leaves_a_thread() -> str:
    threading.Thread(target=threading.Event().wait).start()
    return "done"


@step(name="isolated.hangs")
def hangs() -> None:
    Path(os.environ[STARTED]).write_text(str(os.getpid()))
    threading.Event().wait()


@step(name="isolated.gives_a_handle", retry=3)
def gives_a_handle() -> Any:
    record_usage(cost_usd="0.003")
    return {"answer": "paid for", "handle": object()}


def exit_code_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@step(name="isolated.forks")
def forks() -> str:
    pid = os.fork()
    if pid == 0:
        return "child"
    assert exit_code_of(pid) == 0
    return "parent"


@step(name="isolated.forks_async")
async def forks_async() -> str:
    await asyncio.sleep(0)
    pid = os.fork()
    if pid == 0:
        raise ValueError("in the child")
    assert exit_code_of(pid) == 1
    return "parent"


@agent(name="isolates")
async def isolates(name: str) -> Any:
    calls = {
        "process": lambda: process("é"),
        "async_process": lambda: async_process("x"),
        "fails": fails,
        "wavers": wavers,
        "asks": asks,
        "dies": dies,
        "spends_and_dies": spends_and_dies,
        "leaves_a_thread": leaves_a_thread,
        "hangs": hangs,
        "gives_a_handle": gives_a_handle,
        "forks": forks,
        "forks_async": forks_async,
    }
    return await calls[name]()


DECLARATIONS = (
    *(isolates, process, async_process, fails, wavers, asks, dies, spends_and_dies, leaves_a_thread, hangs),
    *(gives_a_handle, forks, forks_async),
)


@pytest.fixture
def stand(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stand]:
    # The child finds this module as a worker's child finds its agents.
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3]))
    with Stand() as made:
        yield made


def lost_twice(stand: Stand, name: str) -> str:
    """A run whose first step has lost two workers that ran others as well."""
    return lost(stand, isolates, {"name": name}, DECLARATIONS)


def lost(stand: Stand, asked: Any, given: dict[str, Any], declarations: Sequence[Any], times: int = 2) -> str:
    """A run whose first step has lost so many workers."""
    run_id = stand.submit(asked, given)
    stand.worker(*declarations).serve(stand.publisher.messages.popleft())
    for _ in range(times):
        claim: Claim | None = stand.database.transact(
            lambda connection: claim_step(
                connection, namespace="default", run_id=run_id, position=1, worker="gone", lease_us=1
            )
        )
        assert claim is not None
        key = LeaseKey(run_id, 1, claim.attempt)
        stand.pass_time(LEASE_SECONDS)
        stand.database.transact(lambda connection, key=key: reclaim_step(connection, key, why="gone", alone=False))  # type: ignore[misc]
    stand.publisher.take()
    return run_id


@pytest.mark.parametrize("name", ["process", pytest.param("async_process", marks=pytest.mark.slow)])
def test_the_body_runs_in_another_process_and_its_result_comes_back(stand: Stand, name: str) -> None:
    run_id = lost_twice(stand, name)
    worker = stand.worker(*DECLARATIONS, modules=(HERE,))
    worker.executor.execute(run_id, 1)
    run = stand.run(run_id)
    assert run.state == "succeeded" and run.result is not None
    assert str(os.getpid()).encode() not in run.result
    assert [attempt.outcome for attempt in stand.attempts(run_id)] == ["lost", "lost", "accepted"]
    if name == "process":
        assert stand.attempts(run_id)[2].cost_nanousd == 1_000_000
        assert run.result.startswith('["é",'.encode())


@pytest.mark.slow
def test_a_result_that_does_not_fit_is_kept_by_the_child_too(stand: Stand) -> None:
    run_id = lost_twice(stand, "gives_a_handle")
    stand.worker(*DECLARATIONS, modules=(HERE,)).executor.execute(run_id, 1)
    attempt = stand.attempts(run_id)[2]
    assert (attempt.outcome, attempt.cost_nanousd) == ("blocked", 3_000_000)
    assert (stand.run(run_id).state, stand.run(run_id).state_reason) == ("blocked", "result_not_storable")
    with stand.database.read() as connection:
        assert b'"answer":"paid for"' in (read_step_payloads(connection, run_id, 1)[1] or b"")


@pytest.mark.slow
def test_what_the_body_raises_comes_back_with_its_traceback_and_spend(stand: Stand) -> None:
    run_id = lost_twice(stand, "fails")
    stand.worker(*DECLARATIONS, modules=(HERE,)).executor.execute(run_id, 1)
    attempt = stand.attempts(run_id)[2]
    assert (attempt.outcome, attempt.cost_nanousd) == ("failed", 2_000_000)
    assert attempt.error is not None and (attempt.error["type"], attempt.error["message"]) == (
        "LookupError",
        "in the child",
    )
    assert attempt.traceback is not None and "test_child.py" in attempt.traceback


@pytest.mark.slow
@pytest.mark.parametrize(("name", "state"), [("fails", "failed"), ("wavers", "retrying")])
def test_retries_are_decided_by_what_was_raised_in_the_child(stand: Stand, name: str, state: str) -> None:
    run_id = lost_twice(stand, name)
    stand.worker(*DECLARATIONS, modules=(HERE,)).executor.execute(run_id, 1)
    assert stand.steps(run_id)[0].state == state


@pytest.mark.slow
def test_requests_of_the_body_are_captured_in_the_child(stand: Stand) -> None:
    run_id = lost_twice(stand, "asks")
    worker = stand.worker(*DECLARATIONS, modules=(HERE,), provider_hosts=(("llm.internal", "openai"),))
    worker.executor.execute(run_id, 1)
    attempt = stand.attempts(run_id)[2]
    assert (attempt.outcome, attempt.calls, attempt.input_tokens) == ("accepted", 2, 14)


@pytest.mark.slow
def test_requests_are_priced_in_the_child_by_the_workers_own_rows(stand: Stand) -> None:
    long_ago = datetime(2020, 1, 1, tzinfo=UTC)
    row = PriceRow(model="m", valid_from=long_ago, input_nanousd_per_mtok=10**6, output_nanousd_per_mtok=2 * 10**6)
    book = PriceBook([row])
    run_id = lost_twice(stand, "asks")
    hosts = (("llm.internal", "openai"),)
    worker = stand.worker(*DECLARATIONS, modules=(HERE,), provider_hosts=hosts, prices=lambda: book)
    worker.executor.execute(run_id, 1)
    assert stand.attempts(run_id)[2].cost_nanousd == 2 * (7 + 2)


@pytest.mark.slow
def test_a_body_that_kills_its_process_loses_the_attempt_and_no_worker(stand: Stand) -> None:
    run_id = lost_twice(stand, "dies")
    worker = stand.worker(*DECLARATIONS, modules=(HERE,))
    worker.executor.execute(run_id, 1)
    attempt = stand.attempts(run_id)[2]
    assert attempt.outcome == "lost"
    assert attempt.error is not None and "killed the process it ran alone in (signal 9, SIGKILL)" in str(attempt.error)
    assert stand.steps(run_id)[0].state == "scheduled"
    worker.executor.execute(run_id, 1)
    assert stand.steps(run_id)[0].state == "failed"
    stand.serve(worker)
    assert stand.run(run_id).state == "failed"


@pytest.mark.slow
def test_what_a_body_spent_a_second_before_it_killed_its_process_is_known(stand: Stand) -> None:
    run_id = lost_twice(stand, "spends_and_dies")
    stand.worker(*DECLARATIONS, modules=(HERE,)).executor.execute(run_id, 1)
    attempt = stand.attempts(run_id)[2]
    assert (attempt.outcome, attempt.calls, attempt.cost_nanousd) == ("lost", 1, 3_000_000)


@pytest.mark.slow
def test_a_thread_that_the_body_leaves_behind_does_not_hold_its_result(stand: Stand) -> None:
    run_id = lost_twice(stand, "leaves_a_thread")
    stand.worker(*DECLARATIONS, modules=(HERE,)).executor.execute(run_id, 1)
    assert stand.run(run_id).result == b'"done"'


@pytest.mark.slow
@pytest.mark.parametrize("name", ["forks", "forks_async"])
def test_what_the_body_forks_does_not_tell_the_steps_result(stand: Stand, name: str) -> None:
    run_id = lost_twice(stand, name)
    stand.worker(*DECLARATIONS, modules=(HERE,)).executor.execute(run_id, 1)
    assert stand.run(run_id).result == b'"parent"'
    assert [attempt.outcome for attempt in stand.attempts(run_id)] == ["lost", "lost", "accepted"]


@pytest.mark.slow
def test_an_interrupt_ends_the_child(stand: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = tmp_path / "started"
    monkeypatch.setenv(STARTED, str(started))
    run_id = lost_twice(stand, "hangs")
    worker = stand.worker(*DECLARATIONS, modules=(HERE,))
    thread = threading.Thread(target=worker.executor.execute, args=(run_id, 1))
    thread.start()
    try:
        wait_until(lambda: started.exists() and started.read_text(), "the child runs the body", 60)
        assert worker.bodies.interrupt(LeaseKey(run_id, 1, 3), Reason.HANDED_BACK)
    finally:
        thread.join(60)
    assert not thread.is_alive()
    assert not psutil.pid_exists(int(started.read_text()))
    attempt = stand.attempts(run_id)[2]
    assert attempt.outcome == "cancelled" and attempt.error is not None and attempt.error["code"] == "handed_back"
    assert stand.steps(run_id)[0].lost == 2


DEADLY = (deadly_steps.deadly, deadly_steps.harmless, deadly_steps.dies, deadly_steps.lives)
DEATHS = {
    "segfault": "signal 11, SIGSEGV",
    "exit 0": "exit status 0",
    "kill": "signal 9, SIGKILL",
    "terminate": "signal 15, SIGTERM",
    "exit in a thread": "exit status 4",
    "kill the parent": "signal 9, SIGKILL",
    "kill the group": "signal 9, SIGKILL",
    "die and leave a child": "exit status 5",
}


@pytest.mark.slow
@pytest.mark.parametrize("how", DEATHS)
def test_each_way_to_die_is_told_apart_and_kills_nobody_else(stand: Stand, how: str) -> None:
    run_id = lost(stand, deadly_steps.deadly, {"how": how}, DEADLY)
    stand.worker(*DEADLY, modules=("tests.workers.deadly_steps",)).executor.execute(run_id, 1)
    attempt = stand.attempts(run_id)[2]
    assert attempt.outcome == "lost" and attempt.error is not None
    assert f"killed the process it ran alone in ({DEATHS[how]})" in str(attempt.error["message"])
    assert stand.column("steps", "blamed", run_id) == 1
    left = [
        process for process in psutil.process_iter(["cmdline"]) if deadly_steps.LEFT in (process.info["cmdline"] or ())
    ]
    _, alive = psutil.wait_procs(left, timeout=30)
    assert not alive


@pytest.mark.slow
@pytest.mark.parametrize("how", ["closes everything", "writes junk everywhere"])
def test_what_a_body_does_to_its_descriptors_does_not_hide_its_result(stand: Stand, how: str) -> None:
    run_id = lost(stand, deadly_steps.harmless, {"how": how}, DEADLY)
    stand.worker(*DEADLY, modules=("tests.workers.deadly_steps",)).executor.execute(run_id, 1)
    assert stand.steps(run_id)[0].state == "succeeded", stand.attempts(run_id)[2].error


@pytest.mark.slow
def test_a_memory_limit_of_its_own_is_the_failure_of_the_body(stand: Stand) -> None:
    run_id = lost(stand, deadly_steps.harmless, {"how": "runs out of memory"}, DEADLY)
    stand.worker(*DEADLY, modules=("tests.workers.deadly_steps",)).executor.execute(run_id, 1)
    attempt = stand.attempts(run_id)[2]
    assert attempt.outcome == "failed" and attempt.error is not None and attempt.error["type"] == "MemoryError"
