"""The pool in a real worker process on real brokers, and how it becomes the default."""

import os
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from celery import Celery
from celery.concurrency.prefork import TaskPool as PreforkPool

from paidonce_models.errors import ConfigurationError, StepInterrupt
from paidonce_workers.pools.thread_pool import TaskPool
from paidonce_workers.process.worker_parts import WorkerParts
from paidonce_workers.startup.worker_program import choose_pool, pool_for
from tests.services import fork_server
from tests.services.fork_server import ForkedProcess
from tests.services.waiting import PATIENCE, wait_until

# A worker that is only looked at, by whoever runs the tests.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::celery.exceptions.SecurityWarning")]

ROOT = Path(__file__).parents[3]


class ToyWorker:
    """A worker process of ``toy_worker`` and its log."""

    def __init__(self, broker_url: str, folder: Path) -> None:
        self.broker_url = broker_url
        self.log = folder / "toy.log"
        self.output = folder / "worker.log"
        self.process: ForkedProcess | None = None
        self.client = Celery("toy", broker=broker_url)
        self.client.conf.update(task_default_queue="paidonce.toy", task_ignore_result=True)
        if broker_url.startswith("amqp"):
            self.client.conf.task_default_queue_type = "quorum"

    def start(self, *arguments: str, drain_seconds: float = 20) -> None:
        """Returns when it is ready."""
        self.log.touch()
        roots = [str(ROOT), *(str(ROOT / name) for name in ("models", "orchestrator", "workers"))]
        environment = {
            **os.environ,
            "TOY_BROKER": self.broker_url,
            "TOY_LOG": str(self.log),
            "TOY_DRAIN_SECONDS": str(drain_seconds),
            "PYTHONPATH": os.pathsep.join(roots),
            "PYTHONFAULTHANDLER": "1",
        }
        command = ["-A", "tests.workers.toy_worker", "worker", "-l", "INFO", "-n", f"{uuid.uuid4().hex}@%h", *arguments]
        with self.output.open("ab") as output:
            self.process = fork_server.start(
                "celery",
                command,
                folder=ROOT,
                environment=environment,
                stdout=output.fileno(),
                stderr=output.fileno(),
            )
        self.wait_for_output(" ready.", 30)

    def send(self, name: str, *args: Any, **options: Any) -> str:
        """Send a task; returns its id."""
        task_id = uuid.uuid4().hex
        self.client.send_task(f"toy.{name}" if "." not in name else name, args=args, task_id=task_id, **options)
        return task_id

    def wait_for(self, line: str, seconds: float = 15) -> None:
        """Wait for a line of the toy's log."""
        wait_until(lambda: line in self.lines(), f"{line!r} in {self.log}", seconds)

    def wait_for_output(self, text: str, seconds: float = 15) -> None:
        """Wait for a text in what the worker printed."""

        def printed() -> bool:
            if self.process is not None and self.process.poll() is not None and text not in self.printed():
                raise AssertionError(f"the worker ended:\n{self.printed()[-3000:]}")
            return text in self.printed()

        wait_until(printed, f"{text!r} in {self.output}", seconds)

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines()

    def printed(self) -> str:
        return self.output.read_text() if self.output.exists() else ""

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait_for_end(self, seconds: float) -> int:
        assert self.process is not None
        try:
            return self.process.wait(PATIENCE * seconds)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)  # prints what each thread does
            self.process.wait(5)
            raise AssertionError(
                f"the worker did not end within {PATIENCE * seconds} s:\n{self.printed()[-6000:]}"
            ) from None

    def messages_waiting(self) -> int:
        """How many messages are ready in the queue (none are counted that a worker holds)."""
        with self.client.connection_for_write() as connection:
            queue = self.client.amqp.queues["paidonce.toy"](connection.default_channel)
            try:
                return int(queue.queue_declare(passive=True).message_count)
            except connection.channel_errors:  # Redis knows no empty queue
                return 0

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
        self.client.close()


@pytest.fixture(params=["redis", pytest.param("rabbitmq", marks=pytest.mark.service)])
def broker_url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
def worker(broker_url: str, tmp_path: Path) -> Iterator[ToyWorker]:
    worker = ToyWorker(broker_url, tmp_path)
    yield worker
    worker.close()


# --- which pool ---------------------------------------------------------------------------------------------------


def pool_chosen_by(app: Celery, *arguments: str) -> tuple[object, object]:
    """The pool and concurrency that ``celery worker ARGUMENTS`` would use, without starting anything."""
    seen: list[tuple[object, object]] = []

    def do_not_start(self: Any) -> None:
        seen.append((self.pool_cls, self.concurrency))

    app.Worker.start = do_not_start
    app.Worker.exitcode = 0
    try:
        app.worker_main(["worker", *arguments])
    except (click.exceptions.Exit, SystemExit):
        pass
    return seen[0]


@pytest.fixture
def app() -> Iterator[Celery]:
    app = Celery("choice", broker="memory://", set_as_current=False)
    choose_pool(app, WorkerParts())
    yield app
    app.close()


@pytest.mark.parametrize(
    ("arguments", "pool", "concurrency"),
    [
        ((), TaskPool, 16),
        (("-c", "3"), TaskPool, 3),
        (("-P", "threads"), TaskPool, 16),
        (("--pool=threads", "-c", "5"), TaskPool, 5),
        (("-P", "prefork"), PreforkPool, os.cpu_count()),
        (("--pool=prefork", "--concurrency=3"), PreforkPool, 3),
        (("-P", "processes"), PreforkPool, os.cpu_count()),
    ],
    ids=lambda value: " ".join(value) or "no flag" if isinstance(value, tuple) else "",
)
def test_our_threads_are_the_default_and_a_pool_that_is_asked_for_is_given(
    app: Celery, arguments: tuple[str, ...], pool: type, concurrency: int
) -> None:
    assert pool_chosen_by(app, *arguments) == (pool, concurrency)


def test_a_configured_pool_or_concurrency_is_kept(app: Celery) -> None:
    app.conf.worker_concurrency = 4
    assert pool_chosen_by(app) == (TaskPool, 4)
    app.conf.worker_pool = "prefork"
    assert pool_for(app, None) is TaskPool, "Celery's default"
    app.conf.worker_pool = "solo"
    with pytest.raises(ConfigurationError, match="--pool solo"):
        pool_for(app, None)


# --- in a worker process ------------------------------------------------------------------------------------------


def test_tasks_run_in_named_threads_and_limits_of_celery_stop_them(worker: ToyWorker) -> None:
    worker.start()
    worker.send("where", "thread")
    worker.send("plain", "soft", 60, soft_time_limit=0.2)
    worker.send("plain", "hard", 60, time_limit=0.2)
    worker.send("step", "def step", 60, time_limit=0.2)
    worker.send("step", "async step", 60, "async", time_limit=0.2)
    worker.send("step", "own timeout", 60, "async", 0.2)
    worker.send("exits", "sys.exit")
    for line in (
        "soft soft limit",
        "hard TimeoutInterrupt",
        "def step timed out",
        "async step timed out",
        "own timeout timed out",
        "sys.exit exits",
    ):
        worker.wait_for(line)
    assert any(line.startswith("thread paidonce-worker_") for line in worker.lines())
    worker.wait_for_output("Hard time limit (0.2s) exceeded for toy.plain")
    worker.signal(signal.SIGTERM)
    assert worker.wait_for_end(15) == 0
    assert worker.messages_waiting() == 0, "every message was acknowledged"


def test_revoke_with_terminate_stops_tasks_and_the_bodies_of_steps(worker: ToyWorker) -> None:
    worker.start()
    ids = [
        worker.send("plain", "plain", 60),
        worker.send("step", "def step", 60),
        worker.send("step", "async step", 60, "async"),
    ]
    for tag in ("plain", "def step", "async step"):
        worker.wait_for(f"{tag} began")
    worker.client.control.revoke(ids, terminate=True)
    for line in ("plain CancelInterrupt", "def step revoked", "async step revoked"):
        worker.wait_for(line)
    worker.send("where", "the next task")
    wait_until(lambda: any("the next task" in line for line in worker.lines()), "the worker goes on")
    worker.signal(signal.SIGTERM)
    assert worker.wait_for_end(15) == 0
    assert worker.messages_waiting() == 0


def test_fifty_async_bodies_wait_together(worker: ToyWorker) -> None:
    worker.start("-c", "50")
    for number in range(50):
        worker.send("step", f"s{number}", 2.0, "async")
    wait_until(lambda: sum("began" in line for line in worker.lines()) == 50, "all fifty run", 15)
    began = time.monotonic()
    wait_until(lambda: sum("ended" in line for line in worker.lines()) == 50, "all fifty have ended", 15)
    assert time.monotonic() - began < 10


def test_sigterm_lets_tasks_end(worker: ToyWorker) -> None:
    worker.start()
    worker.send("step", "short", 1.5, "async")
    worker.send("plain", "plain", 1.5)
    worker.wait_for("short began")
    worker.wait_for("plain began")
    worker.signal(signal.SIGTERM)
    assert worker.wait_for_end(15) == 0
    assert {"short ended", "plain ended"} <= set(worker.lines())
    assert worker.messages_waiting() == 0


def test_sigterm_hands_back_what_does_not_end_and_leaves_behind_what_is_blocked(worker: ToyWorker) -> None:
    worker.start(drain_seconds=0.5)
    worker.send("step", "def step", 60)
    worker.send("step", "async step", 60, "async")
    worker.send("plain", "plain", 60)
    worker.send("step", "blocked", 60, "blocked")
    for tag in ("def step", "async step", "plain", "blocked"):
        worker.wait_for(f"{tag} began")
    worker.signal(signal.SIGTERM)
    assert worker.wait_for_end(15) == 0
    assert {
        "def step handed_back",
        "async step handed_back",
        "plain HandBackInterrupt",
        "drain expired ['blocked']",
    } <= set(worker.lines())
    assert "blocked ended" not in worker.lines()
    assert "1 task(s) are blocked in calls that Python cannot interrupt: toy.step[" in worker.printed()
    # The two steps were completed as handed back; the other two messages are the broker's again.
    wait_until(lambda: worker.messages_waiting() == 2, "both messages are back in the queue")


@pytest.mark.parametrize("pool", ["threads", "prefork"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_second_signal_ends_the_drain_and_hands_back(redis_url: str, tmp_path: Path, pool: str, number: int) -> None:
    worker = ToyWorker(redis_url, tmp_path)
    try:
        worker.start("-P", pool, "-c", "3", drain_seconds=300)
        kinds = {"def step": "def", "async step": "async", "blocked": "blocked"}
        for tag, kind in kinds.items():
            worker.send("step", tag, 200, kind)
        for tag in kinds:
            worker.wait_for(f"{tag} began")
        worker.signal(signal.SIGTERM)
        worker.wait_for_output("Warm shutdown")
        time.sleep(1)  # nobody's finger is quicker; a doubled signal counts once
        assert not any("handed_back" in line for line in worker.lines()), "the first one waits for what runs"
        worker.signal(number)
        assert worker.wait_for_end(20) == 0
        assert {"def step handed_back", "async step handed_back"} <= set(worker.lines())
        # A thread that is blocked in C cannot be interrupted; a child's main thread can.
        assert ("blocked handed_back" in worker.lines()) == (pool == "prefork")
    finally:
        worker.close()


def test_a_signal_that_comes_twice_at_once_is_one(redis_url: str, tmp_path: Path) -> None:
    worker = ToyWorker(redis_url, tmp_path)
    try:
        worker.start("-c", "2")
        worker.send("step", "short", 2.0, "async")
        worker.wait_for("short began")
        worker.signal(signal.SIGTERM)
        worker.signal(signal.SIGTERM)
        assert worker.wait_for_end(20) == 0
        assert "short ended" in worker.lines()
    finally:
        worker.close()


def test_a_third_signal_ends_the_worker_at_once(redis_url: str, tmp_path: Path) -> None:
    worker = ToyWorker(redis_url, tmp_path)
    try:
        worker.start("-c", "2", drain_seconds=300)
        worker.send("step", "blocked", 200, "blocked")
        worker.wait_for("blocked began")
        for _ in range(3):
            worker.signal(signal.SIGTERM)
            time.sleep(0.4)  # longer than a doubled signal
            if worker.process is not None and worker.process.poll() is not None:
                break
        assert worker.wait_for_end(20) in (0, 143), "by the second or the third"
    finally:
        worker.close()


def test_a_cold_shutdown_hands_back_at_once(worker: ToyWorker) -> None:
    worker.start()
    worker.send("step", "async step", 60, "async")
    worker.send("step", "def step", 60)
    worker.wait_for("async step began")
    worker.wait_for("def step began")
    worker.signal(signal.SIGQUIT)
    assert worker.wait_for_end(15) is not None
    assert {"async step handed_back", "def step handed_back"} <= set(worker.lines())


def test_prefork_children_run_and_time_out_bodies(worker: ToyWorker) -> None:
    worker.start("-P", "prefork", "-c", "2")
    worker.send("step", "def step", 60, "def", 0.2)
    worker.send("step", "async step", 60, "async", 0.2)
    worker.wait_for("def step timed out")
    worker.wait_for("async step timed out")
    worker.signal(signal.SIGTERM)
    assert worker.wait_for_end(20) == 0
    assert worker.messages_waiting() == 0


def test_prefork_children_hand_back_what_does_not_end_and_the_deaf_are_killed(worker: ToyWorker) -> None:
    worker.start("-P", "prefork", "-c", "4", drain_seconds=0.5)
    kinds = {"def step": "def", "async step": "async", "blocked": "blocked", "deaf": "deaf"}
    for tag, kind in kinds.items():
        worker.send("step", tag, 60, kind)
    for tag in kinds:
        worker.wait_for(f"{tag} began")
    worker.signal(signal.SIGTERM)
    worker.wait_for_end(25)
    lines = set(worker.lines())
    # The signal ends even a blocking sleep, which a thread of the other pool would sit out.
    assert {"def step handed_back", "async step handed_back", "blocked handed_back"} <= lines
    assert not {"deaf handed_back", "deaf ended"} & lines
    assert "did not end; their steps are reclaimed" in worker.printed()


# --- callbacks ----------------------------------------------------------------------------------------------------


@pytest.fixture
def pool() -> Iterator[TaskPool]:
    app = Celery("unit", broker="memory://", set_as_current=False)
    choose_pool(app, WorkerParts(drain_seconds=5))
    pool = TaskPool(4, app=app)
    pool.start()
    yield pool
    pool.stop()
    app.close()


def apply(pool: TaskPool, target: Callable[[], object], **options: Any) -> list[tuple[str, object]]:
    """Run a target to its end; what was called back, in order."""
    called: list[tuple[str, object]] = []
    job = pool.apply_async(
        target,
        accept_callback=lambda pid, at: called.append(("accepted", pid)),
        callback=lambda value: called.append(("succeeded", value)),
        error_callback=lambda info: called.append(("failed", info.type.__name__)),
        timeout_callback=lambda soft, limit: called.append(("timed out", (soft, limit))),
        **options,
    )
    job.get(10)
    return called


def test_success_and_failure_are_called_back_once_after_acceptance(pool: TaskPool) -> None:
    def fail() -> None:
        raise ValueError("no")

    def leave() -> None:
        raise SystemExit(3)

    accepted = ("accepted", os.getpid())
    assert apply(pool, lambda: 7) == [accepted, ("succeeded", 7)]
    assert apply(pool, fail) == [accepted, ("failed", "ValueError")]
    assert apply(pool, leave) == [accepted, ("failed", "TaskExited")]


def test_a_task_past_its_hard_limit_is_reported_once_at_its_limit(pool: TaskPool) -> None:
    def swallow() -> str:
        try:
            while True:
                sum(range(10))
        except StepInterrupt:
            return "too late"

    assert apply(pool, swallow, timeout=0.05) == [("accepted", os.getpid()), ("timed out", (False, 0.05))]


def test_a_callback_that_fails_is_logged_and_the_thread_goes_on(
    pool: TaskPool, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(value: object) -> None:
        raise OSError("the broker is away")

    pool.apply_async(lambda: 7, callback=fails).get(5)
    assert "Celery's fails failed for" in caplog.text
    assert apply(pool, lambda: 8)[-1] == ("succeeded", 8)


def test_a_message_that_comes_while_the_pool_stops_is_neither_run_nor_answered(pool: TaskPool) -> None:
    called = threading.Event()
    pool.stop()
    pool.apply_async(called.set, callback=lambda value: called.set())
    assert not called.wait(0.2)


@pytest.mark.timeout(30)
def test_a_cold_shutdown_in_the_middle_of_a_tasks_beginning_does_not_wait_for_itself() -> None:
    """Celery drains the pool in its signal handler, which may have interrupted the pool's own thread anywhere."""
    app = Celery("interrupted", set_as_current=False)
    app.paidonce_worker_parts = WorkerParts(interrupt_seconds=5.0)
    pool = TaskPool(1, app=app)
    submit = pool.executor.submit

    def submit_and_be_interrupted(*args: Any) -> Any:
        future = submit(*args)
        pool.on_stop()
        return future

    pool.executor.submit = submit_and_be_interrupted
    ended: list[str] = []

    def body() -> None:
        try:
            time.sleep(0.01)
            while True:
                time.sleep(0.01)
        except StepInterrupt:
            ended.append("handed back")
            raise

    pool.on_apply(body)
    assert pool.drain is not None
    assert pool.drain.left_behind == []
    assert pool.jobs() == []
    assert ended in ([], ["handed back"]), "it was stopped, if it had begun at all"
