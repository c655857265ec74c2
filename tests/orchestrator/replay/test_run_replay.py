"""``Machine``: a pure function of the log."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

import paidonce
import paidonce_workers.bodies.interrupt  # noqa: F401 - as in every worker, where it declares C functions of its own
from paidonce import StepFailed, StepTimedOut, agent, step
from paidonce.declarations.declaration import AgentDeclaration
from paidonce.replay.commands import CancelStep, Schedule
from paidonce.replay.run_replay import Machine
from paidonce_models.errors import HistoryMismatch, NotReplayable, SliceTooLong
from paidonce_models.states import RunState
from paidonce_models.store.runs.events import Event, EventKind

SECOND = 1_000_000
START_US = 1_700_000_000 * SECOND


@dataclass
class Note:
    text: str
    seen: int = 0


@step(name="machine.fetch")
def fetch(name: str) -> str: ...


@step(name="machine.note")
def make_note(text: str) -> Note: ...


class Log:
    """Feeds a machine events with running numbers and a clock of its own."""

    def __init__(self, declaration: AgentDeclaration[..., Any], given: dict[str, Any] | None = None, **options: Any):
        self.machine = Machine("run-1", declaration, **options)
        self.events: list[Event] = []
        self.at_us = START_US
        self.feed(EventKind.STARTED, payload=json.dumps(given or {}).encode())

    def feed(self, kind: EventKind, *, after_us: int = 0, **fields: Any) -> Log:
        self.at_us += after_us
        event = Event(seq=len(self.events) + 1, kind=kind, recorded_at_us=self.at_us, **fields)
        self.events.append(event)
        self.machine.feed(event)
        return self

    def succeed(self, position: int, value: Any, *, after_us: int = SECOND) -> Log:
        payload = json.dumps(value).encode()
        return self.feed(EventKind.STEP_SUCCEEDED, after_us=after_us, position=position, attempts=1, payload=payload)

    def fail(self, position: int, *, timed_out: bool = False, attempts: int = 3) -> Log:
        error = {"type": "KeyError", "code": "user_error", "message": "'x'"}
        return self.feed(
            EventKind.STEP_FAILED,
            position=position,
            attempts=attempts,
            data={"error": error, "timed_out": timed_out},
        )

    @property
    def asked(self) -> list[tuple[int, str, Any]]:
        """Position, name and arguments of every step asked for."""
        return [
            (command.position, command.declaration.name, json.loads(bytes(command.arguments)))
            for command in self.machine.commands
            if isinstance(command, Schedule)
        ]

    @property
    def cancelled(self) -> list[int]:
        return [command.position for command in self.machine.commands if isinstance(command, CancelStep)]

    @property
    def result(self) -> Any:
        outcome = self.machine.outcome
        assert outcome is not None and outcome.result is not None, outcome
        return json.loads(bytes(outcome.result))

    @property
    def error(self) -> dict[str, Any]:
        outcome = self.machine.outcome
        assert outcome is not None and outcome.error is not None, outcome
        return outcome.error


def test_a_step_is_asked_for_and_its_result_delivered() -> None:
    @agent
    async def one(name: str) -> str:
        return await fetch(name) + "!"

    log = Log(one, {"name": "a"})
    assert log.asked == [(1, "machine.fetch", {"name": "a"})]
    assert log.machine.suspended_state is RunState.RUNNING
    log.succeed(1, "A")
    assert log.result == "A!"


def test_positions_follow_the_order_of_asking() -> None:
    @agent
    async def several() -> list[str]:
        return await asyncio.gather(*(fetch(name) for name in "abc"))

    log = Log(several)
    assert [position for position, _, _ in log.asked] == [1, 2, 3]
    log.succeed(3, "C").succeed(1, "A").succeed(2, "B")
    assert log.result == ["A", "B", "C"]


def test_the_agent_gets_a_fresh_value_of_the_declared_type() -> None:
    @agent
    async def typed() -> bool:
        note = await make_note("x")
        return isinstance(note, Note) and note == Note("x", 3)

    assert Log(typed).succeed(1, {"text": "x", "seen": 3}).result is True


def test_a_failure_is_always_step_failed() -> None:
    @agent
    async def failing() -> list[Any]:
        try:
            await fetch("a")
        except StepFailed as error:
            return [type(error).__name__, error.error_type, error.error_message, error.attempts]
        return []

    assert Log(failing).fail(1).result == ["StepFailed", "KeyError", "'x'", 3]


def test_a_timed_out_step_is_a_timeout_error_too() -> None:
    @agent
    async def failing() -> str:
        try:
            await fetch("a")
        except TimeoutError as error:
            return type(error).__name__
        return ""

    assert issubclass(StepTimedOut, TimeoutError)
    assert Log(failing).fail(1, timed_out=True).result == "StepTimedOut"


def test_a_completion_after_the_cancellation_of_its_step_is_ignored() -> None:
    @agent
    async def impatient() -> str:
        try:
            async with asyncio.timeout(2):
                return await fetch("a")
        except TimeoutError:
            return await fetch("b")

    log = Log(impatient)
    assert log.machine.wake_at_us is not None
    log.feed(EventKind.TIMER, after_us=3 * SECOND)
    assert log.cancelled == [1]
    log.succeed(1, "too late")
    assert log.machine.outcome is None
    assert log.succeed(2, "B").result == "B"


def test_a_timer_fires_only_as_a_recorded_event() -> None:
    @agent
    async def sleeper() -> float:
        started = paidonce.now()
        await asyncio.sleep(10)
        return (paidonce.now() - started).total_seconds()

    log = Log(sleeper)
    assert log.machine.wake_at_us is not None
    assert 0 <= log.machine.wake_at_us - (START_US + 10 * SECOND) <= 2
    assert log.machine.suspended_state is RunState.WAITING
    log.feed(EventKind.TIMER, after_us=5 * SECOND)
    assert log.machine.outcome is None, "half of the time has passed"
    assert log.feed(EventKind.TIMER, after_us=7 * SECOND).result == 12.0


def test_clock_and_chance_are_the_runs_own() -> None:
    @agent
    async def draws() -> list[str]:
        first = [paidonce.now().isoformat(), str(paidonce.uuid()), str(paidonce.random())]
        await fetch("a")
        return [*first, paidonce.now().isoformat(), str(paidonce.uuid()), str(paidonce.random())]

    first, second = (Log(draws).succeed(1, "A").result for _ in range(2))
    assert first == second
    assert first[0] != first[3] and first[1] != first[4]


def test_cancellation_lets_finally_await_steps() -> None:
    @agent
    async def tidy() -> None:
        try:
            await fetch("a")
        finally:
            await fetch("tidy")

    log = Log(tidy).feed(EventKind.CANCEL, data={"grace_seconds": 60.0})
    assert log.cancelled == [1]
    assert log.asked[-1] == (2, "machine.fetch", {"name": "tidy"})
    log.succeed(2, "done")
    assert log.machine.outcome is not None and log.machine.outcome.state is RunState.CANCELLED


def test_a_second_cancellation_changes_nothing() -> None:
    @agent
    async def tidy() -> None:
        try:
            await fetch("a")
        finally:
            await fetch("tidy")

    log = Log(tidy)
    for _ in range(3):
        log.feed(EventKind.CANCEL, data={"grace_seconds": 60.0})
    assert log.cancelled == [1]
    assert log.machine.outcome is None


def test_the_grace_of_the_event_bounds_finally() -> None:
    @agent
    async def endless() -> None:
        try:
            await fetch("a")
        finally:
            await asyncio.sleep(1_000)

    log = Log(endless).feed(EventKind.CANCEL, data={"grace_seconds": 7.0})
    assert log.machine.wake_at_us is not None and log.machine.wake_at_us <= START_US + 7 * SECOND + 2
    log.feed(EventKind.TIMER, after_us=8 * SECOND)
    assert log.machine.outcome is not None and log.machine.outcome.state is RunState.CANCELLED
    assert "longer than its grace" in log.error["message"]


def test_an_agent_may_survive_its_cancellation() -> None:
    @agent
    async def stubborn() -> str:
        try:
            await fetch("a")
        except asyncio.CancelledError:
            return "survived"
        return ""

    log = Log(stubborn).feed(EventKind.CANCEL, data={})
    assert log.result == "survived"


def test_tasks_left_behind_are_cancelled_and_waited_for() -> None:
    @agent
    async def careless() -> str:
        async def tidy() -> None:
            try:
                await fetch("left")
            finally:
                await fetch("tidy")

        asyncio.create_task(tidy())  # noqa: RUF006 - the point of the test
        await asyncio.sleep(0)
        return "done"

    log = Log(careless)
    assert log.machine.outcome is None
    assert log.cancelled == [1]
    assert log.succeed(2, "x").result == "done"


def test_an_agent_that_exits_has_failed() -> None:
    @agent
    async def exits() -> str:
        await fetch("a")
        sys.exit(3)

    log = Log(exits).succeed(1, "x")
    outcome = log.machine.outcome
    assert outcome is not None and outcome.state is RunState.FAILED
    assert outcome.error == {"type": "SystemExit", "code": "user_error", "message": "3"}


def test_the_exit_of_one_task_ends_the_others_as_in_a_program() -> None:
    seen: list[str] = []

    async def leaves() -> None:
        await fetch("a")
        raise SystemExit("enough")

    async def waits() -> None:
        try:
            await fetch("b")
        finally:
            seen.append(await fetch("c"))
            raise SystemExit("me too")

    @agent
    async def exits() -> str:
        await asyncio.gather(leaves(), waits())
        return "never"

    log = Log(exits).succeed(1, "x")
    assert (log.cancelled, log.machine.outcome, log.asked[-1]) == ([2], None, (3, "machine.fetch", {"name": "c"}))
    outcome = log.succeed(3, "y").machine.outcome
    assert outcome is not None and outcome.state is RunState.FAILED
    assert (outcome.error or {})["message"] == "enough"
    assert seen == ["y"]


@pytest.fixture
def ctrl_c_is_pythons() -> Iterator[None]:
    """As in a terminal; a test run that was started in the background ignores the signal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c_is_pythons")
@pytest.mark.parametrize("on_main_thread", [True, False])
def test_a_keyboard_interrupt_is_a_persons_only_where_ctrl_c_raises_it(on_main_thread: bool) -> None:
    @agent
    async def interrupted() -> str:
        raise KeyboardInterrupt

    if on_main_thread:
        with pytest.raises(KeyboardInterrupt):
            Log(interrupted)
        return
    with ThreadPoolExecutor(1) as threads:
        outcome = threads.submit(Log, interrupted).result().machine.outcome
    assert outcome is not None and outcome.error is not None
    assert (outcome.state, outcome.error["type"]) == (RunState.FAILED, "KeyboardInterrupt")


def test_an_agent_that_can_never_go_on_is_blocked() -> None:
    @agent
    async def stuck() -> None:
        await asyncio.Event().wait()

    assert Log(stuck).machine.suspended_state is RunState.BLOCKED


def test_input_that_does_not_fit_fails_the_run() -> None:
    @agent
    async def strict(number: int, note: Note | None = None) -> int:
        return number

    assert Log(strict, {"number": "many"}).error["code"] == "invalid_input"
    assert Log(strict, {"numbr": 1}).error["code"] == "invalid_input"
    assert Log(strict, {"number": 1, "note": {"txt": ""}}).error["code"] == "invalid_input"
    assert Log(strict, {"number": 1, "note": {"text": ""}}).result == 1


def test_a_recorded_result_that_no_longer_fits_is_a_mismatch() -> None:
    @agent
    async def typed() -> None:
        await make_note("x")

    with pytest.raises(HistoryMismatch, match="its recorded result no longer fits the code"):
        Log(typed).succeed(1, {"text": 5, "more": 1})


def test_a_gap_in_the_log_is_refused() -> None:
    @agent
    async def one() -> None:
        await fetch("a")

    log = Log(one)
    with pytest.raises(HistoryMismatch, match="event 3 follows 1"):
        log.machine.feed(Event(seq=3, kind=EventKind.TIMER, recorded_at_us=START_US))


def test_io_is_refused_whatever_the_agent_does_with_the_refusal() -> None:
    @agent
    async def hides() -> str:
        try:
            await asyncio.to_thread(print)
        except Exception:  # noqa: BLE001 - the mistake
            pass
        return "nothing happened"

    with pytest.raises(NotReplayable, match=r"test_run_replay\.py:\d+"):
        Log(hides)


def test_a_slice_that_does_not_end_is_interrupted_in_a_process_that_has_workers_code() -> None:
    @agent
    async def spins() -> None:
        while True:
            pass

    with pytest.raises(SliceTooLong, match=r"test_run_replay\.py:\d+"):
        Log(spins, slice_seconds=0.1)


def test_agents_nest_no_deeper_than_allowed() -> None:
    @agent
    async def nested() -> str:
        return await nested()

    assert Log(nested, depth=9).machine.suspended_state is RunState.WAITING
    assert Log(nested, depth=10).error["type"] == "TooDeep"
    assert "PAIDONCE_MAX_DEPTH" in Log(nested, depth=3, max_depth=3).error["message"]


def test_an_exception_group_keeps_its_members() -> None:
    @agent
    async def group() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fetch("a"))
            tasks.create_task(fetch("b"))

    log = Log(group).fail(1)
    assert log.error["type"] == "ExceptionGroup"
    assert [each["type"] for each in log.error["errors"]] == ["StepFailed"]


def test_confirmed_commands_are_forgotten() -> None:
    @agent
    async def two() -> None:
        await fetch("a")
        await fetch("b")

    log = Log(two).succeed(1, "A")
    log.machine.confirm(1)
    assert [position for position, _, _ in log.asked] == [2]
    assert log.machine.unconfirmed_position == 2


@pytest.mark.parametrize("orders", [("first", "second"), ("second", "first")])
def test_the_same_log_gives_the_same_commands(orders: tuple[str, str]) -> None:
    @agent
    async def racing() -> list[str]:
        tasks = {asyncio.create_task(fetch(name)) for name in ("first", "second", "third")}
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        return [await fetch(f"after {(await task)}") for task in done]

    def run() -> tuple[list[tuple[int, str, Any]], list[int]]:
        log = Log(racing)
        for name in orders:
            log.succeed(1 if name == "first" else 2, name)
        log.succeed(4, "end")
        return log.asked, log.cancelled

    assert run() == run()
    assert run()[0][-1][2] == {"name": f"after {orders[0]}"}


def test_discarding_runs_nothing_of_the_agent() -> None:
    ran: list[str] = []

    @agent
    async def loud() -> None:
        try:
            await fetch("a")
        finally:
            ran.append("finally")
            await fetch("b")

    log = Log(loud)
    log.machine.discard()
    del log
    assert ran == []
