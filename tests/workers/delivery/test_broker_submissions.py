"""Taking submissions: the message is the only copy, so it ends in a run or in a refusal, whatever happens."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery.exceptions import Reject
from sqlalchemy import text

from paidonce import agent
from paidonce.declarations.registry import Registry
from paidonce.settings import Settings
from paidonce_models.errors import StoreUnavailable
from paidonce_models.states import RunState
from paidonce_models.store.queries import RunView, read_run, resolve_run
from paidonce_workers.delivery import broker_submissions as intake
from paidonce_workers.delivery import tasks
from paidonce_workers.delivery.broker_submissions import refuse_submission, take_submission
from paidonce_workers.execution.store_waits import StoreWaits, WorkerStopping
from tests.workers.stand import Stand


@agent(name="taken-in")
async def taken_in(number: int, noise: str = "") -> int:
    return number


@pytest.fixture
def stand() -> Iterator[Stand]:
    with Stand() as made:
        yield made


class Process(SimpleNamespace):
    """What taking a submission needs of a worker process; waiting takes no time and is counted."""

    def __init__(self, stand: Stand) -> None:
        registry = Registry()
        registry.add_agent(taken_in)
        super().__init__(
            settings=Settings.model_construct(namespace="default"),
            registry=registry,
            database=stand.database,
            publisher=stand.publisher,
            store_waits=StoreWaits(),
        )
        self.pauses: list[float] = []
        self.at_pause: dict[int, Callable[[], object]] = {}
        self.store_waits._stopping.wait = self._wait

    def _wait(self, timeout: float | None = None) -> bool:
        self.pauses.append(timeout or 0.0)
        self.at_pause.get(len(self.pauses), lambda: None)()
        assert len(self.pauses) < 100, "it waits for ever"
        return self.store_waits._stopping.is_set()


@pytest.fixture
def process(stand: Stand) -> Process:
    return Process(stand)


def take(process: Process, **arguments: Any) -> None:
    take_submission(process, "task-1", (), {"agent": "taken-in", "input": {"number": 1}, **arguments})  # type: ignore[arg-type]


def stored(stand: Stand, name: str = "task-1") -> RunView:
    with stand.database.read() as connection:
        return read_run(connection, "default", resolve_run(connection, "default", name))


def execute_on(stand: Stand, *statements: str) -> None:
    for statement in statements:
        stand.database.transact(lambda connection, it=statement: connection.execute(text(it)))  # type: ignore[misc]


TROUBLES = {
    "full": (["PRAGMA max_page_count = 1"], ["PRAGMA max_page_count = 1000000"]),
    "a table is renamed": (["ALTER TABLE runs RENAME TO r"], ["ALTER TABLE r RENAME TO runs"]),
}


@pytest.mark.parametrize("trouble", TROUBLES)
@pytest.mark.parametrize("number", [1, "no number"], ids=["a run", "a refusal"])
def test_a_submission_waits_until_the_store_takes_it(
    stand: Stand, process: Process, trouble: str, number: object
) -> None:
    breaks, heals = TROUBLES[trouble]
    execute_on(stand, *breaks)
    process.at_pause[6] = lambda: execute_on(stand, *heals)
    noise = random.Random(1).randbytes(100_000).hex()
    take(process, input={"number": number, "noise": noise})
    assert stored(stand).state is (RunState.PENDING if number == 1 else RunState.FAILED)
    assert len(process.pauses) == 6 and max(process.pauses) <= 2.0


def test_a_worker_that_stops_gives_the_message_back(stand: Stand, process: Process) -> None:
    execute_on(stand, "ALTER TABLE runs RENAME TO r")
    process.at_pause[2] = process.store_waits.stop
    with pytest.raises(WorkerStopping):
        take(process)


@pytest.mark.parametrize("error", [AttributeError("a bug"), TypeError("deep"), MemoryError(), KeyError("x")])
def test_a_bug_is_tried_again_and_then_refused_with_what_was_sent(
    stand: Stand, process: Process, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(intake, "new_run", broken)
    take(process)
    run = stored(stand)
    assert run.state is RunState.FAILED and run.error is not None
    assert (run.error["code"], run.input) == ("submission_not_taken", b'{"number":1}')
    assert type(error).__name__ in str(run.error["message"])
    assert process.pauses == list(intake.PAUSES_SECONDS)


def test_a_bug_that_passes_costs_nothing(stand: Stand, process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise AttributeError("a bug")

    monkeypatch.setattr(intake, "new_run", broken)
    process.at_pause[2] = monkeypatch.undo
    take(process)
    assert stored(stand).state is RunState.PENDING


def test_a_run_that_the_store_refuses_is_refused_at_once(stand: Stand, process: Process) -> None:
    refuse = "CREATE TRIGGER no BEFORE INSERT ON runs WHEN NEW.state = 'pending' BEGIN SELECT RAISE(ABORT, 'no'); END"
    execute_on(stand, refuse)
    take(process)
    run = stored(stand)
    assert run.state is RunState.FAILED and run.error is not None
    assert (run.error["code"], process.pauses) == ("statement_refused", [])


def test_a_refusal_that_cannot_be_kept_as_it_is_is_kept_in_plain_words(
    stand: Stand, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> bool:
        monkeypatch.undo()
        raise RecursionError("too deep to be looked at")

    monkeypatch.setattr(intake, "_fits", broken)
    take(process, input={"number": "many"})
    run = stored(stand)
    assert run.state is RunState.FAILED and b"many" in (run.input or b"") and "number" in str(run.error)


def test_an_unreadable_body_is_not_settled_while_the_store_is_full(stand: Stand, process: Process) -> None:
    execute_on(stand, "PRAGMA max_page_count = 1")
    noise = random.Random(1).randbytes(5_000).hex()
    with pytest.raises(StoreUnavailable):
        for number in range(200):
            refuse_submission(process, f"task-{number}", noise.encode(), "nothing of it")  # type: ignore[arg-type]
    execute_on(stand, "PRAGMA max_page_count = 1000000")
    refuse_submission(process, "task-again", noise.encode(), "nothing of it")  # type: ignore[arg-type]
    assert stored(stand, "task-again").state is RunState.FAILED


# -- the task around it ---------------------------------------------------------------------


class Tasks:
    """Stands for the Celery app: what was registered on it, by name."""

    def __init__(self, current: Callable[[], Any]) -> None:
        self.registered: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {}
        tasks.register_tasks(self, Registry(), current)  # type: ignore[arg-type]

    def task(self, *, name: str, **options: Any) -> Callable[[Callable[..., Any]], None]:
        def register(function: Callable[..., Any]) -> None:
            self.registered[name] = (function, options)

        return register

    def submit(self, /, **arguments: Any) -> None:
        """A delivery of the task."""
        function, _ = self.registered["paidonce.submit"]
        function(SimpleNamespace(request=SimpleNamespace(id="task-1")), **arguments)


@pytest.mark.parametrize("error", [AttributeError("a bug"), WorkerStopping("stopping"), StoreUnavailable("full")])
def test_the_task_gives_its_message_back_for_any_error(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def current() -> None:
        raise error

    monkeypatch.setattr(tasks, "REQUEUE_SECONDS", 0.0)
    with pytest.raises(Reject) as given_back:
        Tasks(current).submit(agent="taken-in")
    assert given_back.value.requeue is True


def test_a_time_limit_does_not_settle_a_submission() -> None:
    _, options = Tasks(lambda: None).registered["paidonce.submit"]
    assert options["acks_on_timeout"] is False


def test_an_argument_named_like_our_own_is_one_of_the_submission(stand: Stand, process: Process) -> None:
    Tasks(lambda: process).submit(agent="taken-in", input={"number": 1}, self=5)
    assert stored(stand).state is RunState.FAILED
