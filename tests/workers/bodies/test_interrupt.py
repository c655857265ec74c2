"""Interrupting threads, deadlines, and the runner of step bodies built on both."""

import asyncio
import contextvars
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from paidonce_models.errors import PaidonceError, StepInterrupt
from paidonce_workers.bodies import interrupt
from paidonce_workers.bodies.body_runner import BodyCancelled, BodyExited, BodyRunner, BodyTimedOut
from paidonce_workers.bodies.deadlines import Deadlines
from paidonce_workers.bodies.interrupt import (
    CancelInterrupt,
    HandBackInterrupt,
    Reason,
    TaskScope,
    ThreadScope,
    TimeoutInterrupt,
    call_interruptibly,
    current_task_scope,
    interrupts_deferred,
    shielded,
)
from tests.services.waiting import wait_until

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id")


def spin_for_ever() -> None:
    """Never blocks in C, so an interrupt strikes at once."""
    while True:
        sum(range(10))


async def wait_for_ever() -> None:
    await asyncio.Event().wait()


@pytest.fixture
def runner() -> Iterator[BodyRunner]:
    runner = BodyRunner(cancel_grace_seconds=0.3)
    yield runner
    runner.close()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as threads:
        yield threads


def start(
    threads: ThreadPoolExecutor, runner: BodyRunner, key: str, *, is_async: bool, timeout_seconds: float | None = None
) -> "Future[object]":
    future = threads.submit(
        runner.run,
        key,
        wait_for_ever if is_async else spin_for_ever,
        is_async=is_async,
        timeout_seconds=timeout_seconds,
        label=f"m.{key}",
    )
    wait_until(lambda: key in runner.running() or future.done(), f"{key} runs")
    return future


def act_once(begun: threading.Event, act: Callable[[], object], threads: ThreadPoolExecutor) -> None:
    def wait_and_act() -> None:
        assert begun.wait(60)
        act()

    threads.submit(wait_and_act)


# --- scopes -------------------------------------------------------------------------------------------------------


def test_an_interrupt_strikes_the_scope_and_comes_out_of_it(threads: ThreadPoolExecutor) -> None:
    scope, begun = ThreadScope(), threading.Event()

    def body() -> None:
        begun.set()
        spin_for_ever()

    act_once(begun, lambda: scope.throw(CancelInterrupt), threads)
    with pytest.raises(CancelInterrupt):
        call_interruptibly(scope, body)


def test_an_interrupt_after_the_end_is_refused_and_strikes_nobody() -> None:
    scope = ThreadScope()
    assert call_interruptibly(scope, lambda: 7) == 7
    assert not scope.throw(CancelInterrupt)


# One may strike in a finalizer that the garbage collector runs here, where Python swallows it with this warning.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_interrupts_at_the_end_of_a_task_never_strike_what_the_thread_does_next() -> None:
    """Sends up to three interrupts at every moment around the end of a short body, thousands of times."""
    scopes: list[ThreadScope] = []
    stop = threading.Event()

    def interrupt_whatever_runs() -> None:
        while not stop.is_set():
            if scopes:
                scope = scopes[-1]
                for kind in (CancelInterrupt, TimeoutInterrupt, HandBackInterrupt):
                    scope.throw(kind)

    struck = kept = outside = 0
    interrupter = threading.Thread(target=interrupt_whatever_runs)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    interrupter.start()
    try:
        began = time.monotonic()
        while (lasted := time.monotonic() - began) < 1.5 or (not (struck and kept) and lasted < 60):
            try:
                scope = ThreadScope()
                scopes[:] = [scope]
                try:
                    call_interruptibly(scope, lambda: sum(sum(range(20)) for _ in range(20)))
                    kept += 1
                except StepInterrupt:
                    struck += 1
                sum(range(300))  # the thread's next task
            except StepInterrupt:
                outside += 1
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        interrupter.join()
    assert outside == 0
    assert struck
    assert kept


# --- deferring ----------------------------------------------------------------------------------------------------


def test_a_deferred_interrupt_strikes_at_the_end_of_the_outermost_block() -> None:
    scope, reached = ThreadScope(), []

    def body() -> None:
        with interrupts_deferred:
            with interrupts_deferred:
                assert scope.throw(CancelInterrupt)
                sum(range(1000))
            reached.append("between")
            sum(range(1000))
            reached.append("end")
        reached.append("behind")

    with pytest.raises(CancelInterrupt):
        call_interruptibly(scope, body)
    assert reached == ["between", "end"]


def test_a_deferred_interrupt_strikes_also_where_the_block_raises_or_is_a_function() -> None:
    scope = ThreadScope()

    @interrupts_deferred
    def fails() -> None:
        scope.throw(TimeoutInterrupt)
        raise ZeroDivisionError

    with pytest.raises(TimeoutInterrupt) as caught:
        call_interruptibly(scope, fails)
    assert isinstance(caught.value.__context__, ZeroDivisionError)


def test_deferring_is_for_the_innermost_scope_and_outside_of_any_it_does_nothing() -> None:
    outer, inner = ThreadScope(), ThreadScope()

    def body() -> str:
        with interrupts_deferred:
            return "done"

    def nested() -> str:
        call_interruptibly(inner, body)
        with interrupts_deferred:
            outer.throw(CancelInterrupt)
            return "too late"

    assert body() == "done"
    with pytest.raises(CancelInterrupt):
        call_interruptibly(outer, nested)
    assert body() == "done"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ordinary_conditions_survive_interrupts_at_any_moment_where_these_are_deferred() -> None:
    """``threading.Condition`` is entered in Python code: an interrupt there would leave it locked for ever."""
    condition, scopes, stop = threading.Condition(threading.Lock()), [ThreadScope()], threading.Event()
    inside = struck = 0

    def body() -> None:
        nonlocal inside
        while True:
            with interrupts_deferred, condition:
                inside += 1
                inside -= 1

    def interrupt_whatever_runs() -> None:
        while not stop.is_set():
            scopes[-1].throw(CancelInterrupt)
            time.sleep(0.0002)

    interrupter = threading.Thread(target=interrupt_whatever_runs)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    interrupter.start()
    try:
        began = time.monotonic()
        while (lasted := time.monotonic() - began) < 1.5 or (struck <= 50 and lasted < 60):
            scopes[:] = [ThreadScope()]
            try:
                call_interruptibly(scopes[-1], body)
            except CancelInterrupt:
                struck += 1
            assert inside == 0
            assert condition.acquire(timeout=0)
            condition.release()
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        interrupter.join()
    assert struck > 50


# --- deadlines ----------------------------------------------------------------------------------------------------


def test_deadlines_are_called_in_order_by_one_thread_and_cancelled_ones_never() -> None:
    deadlines = Deadlines()
    called: list[tuple[str, str]] = []

    def note(name: str) -> None:
        called.append((name, threading.current_thread().name))

    last = deadlines.add(600, lambda: note("last"))
    deadlines.add(0.02, lambda: note("due before what the thread waits for"))
    wait_until(lambda: called, "it was called")
    last.cancel()

    busy, all_given = threading.Event(), threading.Event()

    def keep_busy() -> None:
        busy.set()
        all_given.wait(60)

    deadlines.add(0, keep_busy)
    assert busy.wait(60)
    given = time.monotonic()
    with pytest.MonkeyPatch.context() as patch:  # they are given at one moment, however busy the machine is
        patch.setattr(time, "monotonic", lambda: given)
        deadlines.add(0.10, lambda: note("second"))
        deadlines.add(0.05, lambda: note("first")).cancel()
        deadlines.add(0.02, lambda: note("third of those given, first due"))
    all_given.set()
    wait_until(lambda: len(called) == 3, "both deadlines were called")
    assert called == [
        ("due before what the thread waits for", "paidonce-deadlines"),
        ("third of those given, first due", "paidonce-deadlines"),
        ("second", "paidonce-deadlines"),
    ]


def test_a_callback_that_fails_does_not_end_the_timer_thread(caplog: pytest.LogCaptureFixture) -> None:
    deadlines = Deadlines()
    called = threading.Event()
    deadlines.add(0, lambda: 1 // 0)
    deadlines.add(0.01, called.set)
    assert called.wait(60)
    assert "a deadline's callback failed" in caplog.text


def test_cancelled_deadlines_do_not_pile_up() -> None:
    deadlines = Deadlines()
    for _ in range(5_000):
        deadlines.add(900, spin_for_ever).cancel()
    assert len(deadlines) == 0
    assert len(deadlines._heap) < 1_200


# --- bodies -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_async", [False, True], ids=["def", "async def"])
def test_a_body_that_runs_out_of_time_is_stopped(runner: BodyRunner, is_async: bool) -> None:
    with pytest.raises(BodyTimedOut, match=r"m\.slow ran longer than its timeout of 0\.05 s") as caught:
        runner.run(
            "k",
            wait_for_ever if is_async else spin_for_ever,
            is_async=is_async,
            timeout_seconds=0.05,
            label="m.slow",
        )
    assert not isinstance(caught.value, TimeoutError)
    assert runner.running() == []
    assert len(runner.deadlines) <= 1, "only the grace's check may still stand there"


@pytest.mark.parametrize("is_async", [False, True], ids=["def", "async def"])
def test_a_body_sees_arguments_and_context_and_returns_its_value(runner: BodyRunner, is_async: bool) -> None:
    def body(first: int, *, second: int) -> tuple[str, int]:
        seen = request_id.get()
        request_id.set("changed by the body")
        return seen, first + second

    async def async_body(first: int, *, second: int) -> tuple[str, int]:
        return body(first, second=second)

    request_id.set("r1")
    value = runner.run(
        "k",
        async_body if is_async else body,
        (1,),
        {"second": 2},
        is_async=is_async,
        timeout_seconds=None,
        label="m.adds",
    )
    assert value == ("r1", 3)
    assert request_id.get() == "r1"


@pytest.mark.parametrize("is_async", [False, True], ids=["def", "async def"])
def test_a_timeout_error_of_the_bodys_own_is_its_own(runner: BodyRunner, is_async: bool) -> None:
    def body() -> None:
        raise TimeoutError("the provider took too long")

    async def async_body() -> None:
        body()

    with pytest.raises(TimeoutError, match="the provider took too long"):
        runner.run("k", async_body if is_async else body, is_async=is_async, timeout_seconds=60, label="m.x")


@pytest.mark.parametrize("is_async", [False, True], ids=["def", "async def"])
@pytest.mark.parametrize("reason", [Reason.CANCELLED, Reason.HANDED_BACK])
def test_another_thread_stops_a_body_for_a_reason(
    runner: BodyRunner, threads: ThreadPoolExecutor, is_async: bool, reason: Reason
) -> None:
    future = start(threads, runner, "k", is_async=is_async)
    assert runner.interrupt("k", reason)
    with pytest.raises(BodyCancelled) as caught:
        future.result(60)
    assert caught.value.reason is reason
    assert not runner.interrupt("k", reason), "it has ended"


def test_a_def_body_whose_interrupt_was_swallowed_is_interrupted_again(threads: ThreadPoolExecutor) -> None:
    """As in a finalizer or a callback of a weak reference, which Python lets no exception out of."""
    runner, begun, swallowed = BodyRunner(cancel_grace_seconds=0.05), threading.Event(), threading.Event()

    def body() -> None:
        try:
            begun.set()
            while True:
                time.sleep(0.001)
        except StepInterrupt:
            swallowed.set()
        while True:
            time.sleep(0.001)

    act_once(begun, lambda: runner.interrupt("k", Reason.TIMED_OUT), threads)
    future = threads.submit(runner.run, "k", body, is_async=False, timeout_seconds=600, label="m.x")
    assert swallowed.wait(60)
    with pytest.raises(BodyTimedOut):
        future.result(60)
    runner.close()


def test_only_the_body_of_the_key_is_stopped(runner: BodyRunner, threads: ThreadPoolExecutor) -> None:
    futures = {key: start(threads, runner, key, is_async=key in "cd") for key in "abcd"}
    runner.interrupt("b")
    runner.interrupt("d")
    for key in "bd":
        with pytest.raises(BodyCancelled):
            futures[key].result(60)
    assert sorted(str(key) for key in runner.running()) == ["a", "c"]
    assert sorted(str(key) for key in runner.interrupt_all(Reason.HANDED_BACK)) == ["a", "c"]
    for key in "ac":
        with pytest.raises(BodyCancelled):
            futures[key].result(60)


def test_the_first_reason_stays(runner: BodyRunner, threads: ThreadPoolExecutor) -> None:
    hold = threading.Event()
    future = threads.submit(runner.run, "k", hold.wait, (60,), is_async=False, timeout_seconds=None, label="m.x")
    wait_until(lambda: "k" in runner.running(), "it runs")
    runner.interrupt("k", Reason.FENCED)
    runner.interrupt("k", Reason.CANCELLED)
    hold.set()
    # It was blocked in C until now: either its value got out first, or the first reason did.
    try:
        assert future.result(60) is True
    except BodyCancelled as stopped:
        assert stopped.reason is Reason.FENCED


def test_a_value_that_arrives_although_the_body_was_stopped_is_kept(
    runner: BodyRunner, threads: ThreadPoolExecutor
) -> None:
    begun = threading.Event()

    def finishes_anyway() -> str:
        try:
            begun.set()
            spin_for_ever()
        except TimeoutInterrupt:
            pass
        return "paid"

    act_once(begun, lambda: runner.interrupt("k", Reason.TIMED_OUT), threads)
    assert runner.run("k", finishes_anyway, is_async=False, timeout_seconds=600, label="m.x") == "paid"


def test_what_a_body_raises_while_it_is_stopped_counts_as_being_stopped(
    runner: BodyRunner, threads: ThreadPoolExecutor
) -> None:
    begun = threading.Event()

    def fails_while_cleaning_up() -> None:
        try:
            begun.set()
            spin_for_ever()
        finally:
            raise ValueError("cleaning up failed")

    act_once(begun, lambda: runner.interrupt("k", Reason.TIMED_OUT), threads)
    with pytest.raises(BodyTimedOut) as caught:
        runner.run("k", fails_while_cleaning_up, is_async=False, timeout_seconds=600, label="m.x")
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize("is_async", [False, True], ids=["def", "async def"])
def test_a_body_that_would_end_the_process_is_an_ordinary_failure(runner: BodyRunner, is_async: bool) -> None:
    def leave() -> None:
        raise SystemExit(3)

    async def async_leave() -> None:
        leave()

    with pytest.raises(BodyExited, match="raised SystemExit, which would end the worker"):
        runner.run("k", async_leave if is_async else leave, is_async=is_async, timeout_seconds=60, label="m.x")


def test_an_async_body_that_cancels_itself_is_an_ordinary_failure(runner: BodyRunner) -> None:
    async def cancel_itself() -> None:
        raise asyncio.CancelledError

    with pytest.raises(BodyExited, match="cancelled itself"):
        runner.run("k", cancel_itself, is_async=True, timeout_seconds=60, label="m.x")


def test_an_async_body_that_ignores_its_cancellation_is_abandoned(
    runner: BodyRunner, threads: ThreadPoolExecutor
) -> None:
    begun, let_go = threading.Event(), threading.Event()

    async def stubborn() -> None:
        begun.set()  # before that a cancellation cannot be ignored
        while not let_go.is_set():
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                pass

    act_once(begun, lambda: runner.interrupt("k", Reason.TIMED_OUT), threads)
    with pytest.raises(BodyTimedOut) as caught:
        runner.run("k", stubborn, is_async=True, timeout_seconds=600, label="m.stubborn")
    let_go.set()
    assert caught.value.abandoned


def test_a_def_body_blocked_in_c_is_named_and_stopped_when_the_call_returns(
    runner: BodyRunner, threads: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    begun, hold = threading.Event(), threading.Event()

    def blocks_then_goes_on() -> None:
        begun.set()
        hold.wait(60)
        spin_for_ever()

    act_once(begun, lambda: runner.interrupt("k", Reason.TIMED_OUT), threads)
    future = threads.submit(
        runner.run, "k", blocks_then_goes_on, is_async=False, timeout_seconds=600, label="m.blocks (run r1, step 3)"
    )
    wait_until(lambda: "m.blocks (run r1, step 3) was stopped" in caplog.text, "the blocked body is named")
    hold.set()
    with pytest.raises(BodyTimedOut):
        future.result(60)


def test_the_same_key_twice_at_once_is_refused(runner: BodyRunner, threads: ThreadPoolExecutor) -> None:
    future = start(threads, runner, "k", is_async=True)
    with pytest.raises(PaidonceError, match="is already running in this process"):
        runner.run("k", spin_for_ever, is_async=False, timeout_seconds=1, label="m.x")
    assert runner.interrupt("k")
    with pytest.raises(BodyCancelled):
        future.result(60)


def test_fifty_async_bodies_run_at_once(runner: BodyRunner) -> None:
    running = 0
    all_run = asyncio.Event()

    async def body(number: int) -> int:
        nonlocal running
        running += 1
        if running == 50:
            all_run.set()
        await all_run.wait()
        return number

    with ThreadPoolExecutor(50) as fifty:
        values = fifty.map(
            lambda number: runner.run(
                number, body, (number,), is_async=True, timeout_seconds=60, label=f"m.body {number}"
            ),
            range(50),
        )
        assert list(values) == list(range(50))


# --- inside a Celery task -----------------------------------------------------------------------------------------


def test_what_interrupts_the_task_goes_to_its_body_and_leaves_the_task_whole(
    runner: BodyRunner, threads: ThreadPoolExecutor
) -> None:
    scope, begun = TaskScope(), threading.Event()

    def body() -> None:
        begun.set()
        spin_for_ever()

    def task() -> str:
        token = current_task_scope.set(scope)
        try:
            runner.run("k", body, is_async=False, timeout_seconds=None, label="m.x")
        except BodyCancelled as stopped:
            return f"completed as {stopped.reason}"
        finally:
            current_task_scope.reset(token)
        return "not stopped"

    act_once(begun, lambda: scope.interrupt(Reason.REVOKED), threads)
    assert call_interruptibly(scope, task) == "completed as revoked"


def test_what_arrives_while_the_task_claims_stops_its_body_at_once(runner: BodyRunner) -> None:
    scope = TaskScope()
    began: list[str] = []

    def task() -> str:
        token = current_task_scope.set(scope)
        try:
            with shielded():
                assert scope.interrupt(Reason.HANDED_BACK), "kept"
                try:
                    runner.run("k", began.append, ("began",), is_async=False, timeout_seconds=None, label="m.x")
                except BodyCancelled as stopped:
                    return f"completed as {stopped.reason}"
                return "not stopped"
        finally:
            current_task_scope.reset(token)

    assert call_interruptibly(scope, task) == "completed as handed_back"
    assert began == []


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_runs_and_stops_bodies_of_its_own(runner: BodyRunner, threads: ThreadPoolExecutor) -> None:
    future = start(threads, runner, "the parent's", is_async=True, timeout_seconds=30)
    child = os.fork()
    if child == 0:
        try:
            if runner.running():
                os._exit(3)
            for is_async in (False, True):
                body = wait_for_ever if is_async else spin_for_ever
                try:
                    runner.run("k", body, is_async=is_async, timeout_seconds=0.05, label="m.x")
                except BodyTimedOut:
                    continue
                os._exit(4)
            os._exit(0)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert runner.interrupt("the parent's")
    with pytest.raises(BodyCancelled):
        future.result(60)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_that_is_forked_while_its_body_is_being_interrupted_does_not_wait_for_that() -> None:
    """The thread that holds the scope's lock does not exist in the child."""
    scope, holds, forked = ThreadScope(), threading.Event(), threading.Event()

    def hold() -> None:
        with scope._lock:
            holds.set()
            forked.wait(30)

    def body() -> int:
        holder = threading.Thread(target=hold)
        holder.start()
        holds.wait(30)
        child = os.fork()
        if child == 0:
            try:
                with interrupts_deferred:
                    os._exit(0)
            finally:
                os._exit(2)
        try:
            wait_until(lambda: os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT), "the child ends")
        finally:
            os.kill(child, signal.SIGKILL)
            forked.set()
            holder.join()
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    assert call_interruptibly(scope, body) == 0


def test_an_interrupt_that_a_finalizer_swallowed_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the thread that absorbs it on the way out would spin for ever."""
    send, sent = interrupt._set_async_exc, []

    def lose_the_first(ident: int, kind: object) -> int:
        sent.append(kind)
        return 1 if len(sent) == 1 else int(send(ident, kind))

    monkeypatch.setattr(interrupt, "_set_async_exc", lose_the_first)
    interrupt._absorb(threading.get_ident(), TimeoutInterrupt)
    assert len(sent) == 2
