"""A store that answers and takes nothing, or refuses one row: what was paid is neither repeated nor lost."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from paidonce import StepFailed, agent, record_usage, step
from paidonce_models.database.schema import ensure_schema
from paidonce_models.database.transactions import Database
from paidonce_models.errors import StatementRefused, StoreDenied, StoreUnavailable, StoreUnreachable
from paidonce_models.states import RunState
from paidonce_workers.bodies.interrupt import Reason
from paidonce_workers.execution.store_waits import StoreWaits, WorkerStopping
from tests.workers.stand import LEASE_SECONDS, Stand, StandWorker

PRICE_NANOUSD = 2_000_000
ran: list[int] = []
during: dict[str, Callable[[], object]] = {}
"""What happens elsewhere while a body runs; a test sets it, the body calls it."""


@step(name="troubled.paid")
def paid(number: int, size: int) -> str:
    ran.append(number)
    record_usage(None, provider="openai", model="a model", input_tokens=10, output_tokens=5, cost_usd="0.002")
    during.pop("paid", lambda: None)()
    return f"{number}:{random.Random(number).randbytes(size).hex()}"  # which no compression makes smaller


@step(name="troubled.twice")
def twice() -> str:
    for model in ("a model", "refused"):
        record_usage(None, provider="openai", model=model, input_tokens=10, output_tokens=5, cost_usd="0.002")
    during.pop("twice", lambda: None)()
    return "done"


@agent(name="troubled-twice")
async def troubled_twice() -> str:
    return await twice()


@agent(name="troubled")
async def troubled(size: int = 10) -> int:
    return len(await paid(1, size)) + len(await paid(2, size))


@agent(name="troubled-minds")
async def troubled_minds() -> str:
    try:
        return await paid(1, 2000)
    except StepFailed as error:
        return f"{error.error_type}: {error.error_message}"


@pytest.fixture
def stand() -> Iterator[Stand]:
    ran.clear()
    during.clear()
    with Stand() as made:
        yield made


def execute_on(stand: Stand, *statements: str) -> None:
    """Change the store from outside."""
    for statement in statements:
        stand.database.transact(lambda connection, it=statement: connection.execute(text(it)))  # type: ignore[misc]


def pauses_of(
    worker: StandWorker, monkeypatch: pytest.MonkeyPatch, *, heal_at: int, heal: Callable[[], object]
) -> list[float]:
    """Let waiting take no time, and put the store right at some pause; what was waited for, in seconds."""
    pauses: list[float] = []

    def pause(seconds: float) -> bool:
        pauses.append(seconds)
        if len(pauses) == heal_at:
            heal()
        assert len(pauses) < 100, "it waits for ever"
        return False

    monkeypatch.setattr(worker.store_waits._stopping, "wait", pause)
    return pauses


def assert_paid_once(stand: Stand, run_id: str) -> None:
    assert ran == [1, 2]
    for position in (1, 2):
        [attempt] = stand.attempts(run_id, position)
        assert (attempt.outcome, attempt.calls, attempt.cost_nanousd) == ("accepted", 1, PRICE_NANOUSD)


def test_leases_are_renewed_although_the_workers_own_row_is_refused(stand: Stand) -> None:
    worker = stand.worker(troubled, paid)
    stand.register(troubled, paid)
    run_id = stand.submit(troubled)
    left_us: list[int] = []

    def beat() -> None:
        execute_on(stand, "CREATE TRIGGER no BEFORE UPDATE ON workers BEGIN SELECT RAISE(ABORT, 'full'); END")
        stand.pass_time(8)
        worker.heartbeat.beat()
        left_us.append(stand.column("steps", "lease_expires_at_us", run_id) - stand.clock.now_us())
        execute_on(stand, "DROP TRIGGER no")

    during["paid"] = beat
    stand.serve(worker)
    assert left_us == [LEASE_SECONDS * 1_000_000]
    assert_paid_once(stand, run_id)


TROUBLES = {
    "full": (["PRAGMA max_page_count = 1"], ["PRAGMA max_page_count = 1000000"]),
    "a table is renamed": (["ALTER TABLE payloads RENAME TO p"], ["ALTER TABLE p RENAME TO payloads"]),
    "every row is refused": (
        [
            *("CREATE TRIGGER no1 BEFORE UPDATE ON steps BEGIN SELECT RAISE(ABORT, 'no'); END",),
            *("CREATE TRIGGER no2 BEFORE INSERT ON calls BEGIN SELECT RAISE(ABORT, 'no'); END",),
        ],
        ["DROP TRIGGER no1", "DROP TRIGGER no2"],
    ),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_completion_waits_until_the_store_takes_it(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, trouble: str
) -> None:
    breaks, heals = TROUBLES[trouble]
    worker = stand.worker(troubled, paid)
    run_id = stand.submit(troubled, {"size": 200_000})
    during["paid"] = lambda: execute_on(stand, *breaks)
    pauses = pauses_of(worker, monkeypatch, heal_at=5, heal=lambda: execute_on(stand, *heals))
    with caplog.at_level(logging.WARNING):
        stand.serve(worker)
    assert stand.run(run_id).result == b"800004"
    assert_paid_once(stand, run_id)
    assert len(pauses) == 5 and max(pauses) <= 2.0
    events = [getattr(record, "event", None) for record in caplog.records]
    assert (events.count("store_away"), events.count("store_back")) == (1, 1)


def test_the_lease_is_renewed_while_the_completion_waits(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = stand.worker(troubled, paid)
    sweeper = stand.sweeper()
    run_id = stand.submit(troubled)
    breaks, heals = TROUBLES["a table is renamed"]
    during["paid"] = lambda: execute_on(stand, *breaks)

    def a_lease_goes_by() -> None:
        for _ in range(4):
            stand.pass_time(LEASE_SECONDS * 0.7)
            worker.heartbeat.beat()
            sweeper.sweep()
        execute_on(stand, *heals)

    pauses_of(worker, monkeypatch, heal_at=2, heal=a_lease_goes_by)
    stand.serve(worker)
    assert stand.run(run_id).state is RunState.SUCCEEDED
    assert_paid_once(stand, run_id)
    assert worker.held.all() == []


def test_a_result_that_the_store_refuses_blocks_the_run_and_keeps_its_cost(
    stand: Stand, caplog: pytest.LogCaptureFixture
) -> None:
    worker = stand.worker(troubled_minds, paid)
    run_id = stand.submit(troubled_minds)
    execute_on(
        stand,
        "CREATE TRIGGER no BEFORE INSERT ON payloads WHEN length(NEW.inline) > 1000 "
        "BEGIN SELECT RAISE(ABORT, 'not this one'); END",
    )
    stand.serve(worker)
    assert ran == [1]
    assert (stand.run(run_id).state, stand.run(run_id).state_reason) == (RunState.BLOCKED, "result_not_storable")
    [attempt] = stand.attempts(run_id)
    assert (attempt.outcome, attempt.calls, attempt.cost_nanousd) == ("blocked", 1, PRICE_NANOUSD)
    assert "not this one" in str(stand.steps(run_id)[0].error)
    assert any(getattr(record, "event", None) == "completion_refused" for record in caplog.records)


REFUSES_A_CALL = (
    "CREATE TRIGGER no BEFORE INSERT ON calls WHEN NEW.model_requested = 'refused' "
    "BEGIN SELECT RAISE(ABORT, 'not this one'); END"
)


def test_a_call_that_the_store_refuses_costs_the_ledger_no_other(
    stand: Stand, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = stand.submit(troubled_twice)
    execute_on(stand, REFUSES_A_CALL)
    stand.serve(stand.worker(troubled_twice, twice))
    [attempt] = stand.attempts(run_id)
    assert (attempt.outcome, attempt.calls, attempt.cost_nanousd) == ("blocked", 1, PRICE_NANOUSD)
    assert [getattr(record, "event", None) for record in caplog.records].count("call_refused") == 1


def test_a_call_that_the_store_refuses_keeps_no_step_from_being_released(stand: Stand) -> None:
    worker = stand.worker(troubled_twice, twice)
    run_id = stand.submit(troubled_twice)
    execute_on(stand, REFUSES_A_CALL)
    during["twice"] = lambda: worker.bodies.interrupt(worker.held.all()[0].key, Reason.HANDED_BACK)
    worker.serve(stand.publisher.messages.popleft())
    worker.serve(stand.publisher.messages.popleft())
    [attempt] = stand.attempts(run_id)
    assert (attempt.outcome, attempt.calls, attempt.cost_nanousd) == ("cancelled", 1, PRICE_NANOUSD)
    assert stand.steps(run_id)[0].state == "scheduled"


def test_an_advance_that_the_store_refuses_blocks_the_run_and_costs_no_result(stand: Stand) -> None:
    worker = stand.worker(troubled, paid)
    run_id = stand.submit(troubled)
    refuse = (
        "CREATE TRIGGER no BEFORE INSERT ON steps WHEN NEW.position = 2 BEGIN SELECT RAISE(ABORT, 'no second'); END"
    )
    during["paid"] = lambda: execute_on(stand, refuse)
    stand.serve(worker)
    [attempt] = stand.attempts(run_id)
    assert (ran, attempt.outcome, attempt.cost_nanousd) == ([1], "accepted", PRICE_NANOUSD)
    run = stand.run(run_id)
    assert (run.state, run.state_reason) == (RunState.BLOCKED, "statement_refused")
    assert "no second" in str(run.error)


def test_a_bug_in_an_advance_costs_no_result(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = stand.worker(troubled, paid)
    run_id = stand.submit(troubled)

    def broken(*_: Any, **__: Any) -> None:
        monkeypatch.undo()
        raise AttributeError("a bug")

    during["paid"] = lambda: monkeypatch.setattr(worker.advancer, "_complete_together", broken)
    stand.serve(worker)
    assert stand.run(run_id).state is RunState.SUCCEEDED
    assert_paid_once(stand, run_id)


def test_calls_that_a_full_store_does_not_take_do_not_keep_leases_from_being_renewed(stand: Stand) -> None:
    worker = stand.worker(troubled, paid)
    run_id = stand.submit(troubled)
    seen: list[tuple[int, int]] = []

    def beat_in_trouble() -> None:
        execute_on(stand, "CREATE TRIGGER no BEFORE INSERT ON calls BEGIN SELECT RAISE(ABORT, 'full'); END")
        stand.pass_time(8)
        worker.heartbeat.beat()
        left = stand.column("steps", "lease_expires_at_us", run_id) - stand.clock.now_us()
        seen.append((left, stand.attempts(run_id)[0].calls))
        execute_on(stand, "DROP TRIGGER no")
        worker.heartbeat.beat()
        seen.append((left, stand.attempts(run_id)[0].calls))

    during["paid"] = beat_in_trouble
    stand.serve(worker)
    assert seen == [(int(LEASE_SECONDS * 1e6), 0), (int(LEASE_SECONDS * 1e6), 1)]
    assert_paid_once(stand, run_id)


# -- waiting for the store --------------------------------------------------------------------


def failing(times: int, error: Exception) -> Callable[[], str]:
    left = iter(range(times))

    def act() -> str:
        if next(left, None) is not None:
            raise error
        return "done"

    return act


@pytest.mark.parametrize("error", [StoreUnreachable("away"), StoreUnavailable("full"), StoreDenied("no entry")])
def test_patience_waits_for_whatever_keeps_the_store_from_answering(error: Exception) -> None:
    store_waits = StoreWaits()
    store_waits._stopping.wait = lambda timeout=None: False  # type: ignore[method-assign]
    assert store_waits.until_done(failing(20, error), "an act") == "done"


def test_patience_does_not_wait_for_a_refusal() -> None:
    with pytest.raises(StatementRefused):
        StoreWaits().until_done(failing(1, StatementRefused("never")), "an act")


def test_patience_ends_with_the_worker() -> None:
    store_waits = StoreWaits()
    store_waits.stop()
    with pytest.raises(WorkerStopping, match="an act was given up"):
        store_waits.until_done(failing(1, StoreUnavailable("full")), "an act")


def test_many_threads_that_wait_say_it_once(caplog: pytest.LogCaptureFixture) -> None:
    store_waits = StoreWaits()
    all_wait = threading.Barrier(8, timeout=30)
    first = threading.local()

    def act() -> str:
        if getattr(first, "over", False):
            return "done"
        first.over = True
        all_wait.wait()
        raise StoreUnavailable("full")

    with caplog.at_level(logging.INFO):
        threads = [threading.Thread(target=store_waits.until_done, args=(act, "an act")) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    events = [getattr(record, "event", None) for record in caplog.records]
    assert events.count("store_away") <= 2 and events.count("store_back") == events.count("store_away")


def test_a_row_that_the_store_refuses_does_not_keep_the_sweeper_from_the_others(stand: Stand) -> None:
    worker = stand.worker(troubled, paid)
    run_ids = [stand.submit(troubled) for _ in range(3)]
    during["paid"] = lambda: None
    for _ in run_ids:
        worker.serve(stand.publisher.messages.popleft())
    for run_id in run_ids:
        worker.executor.own.take(worker.executor._claimer.claim(run_id, 1))
    refuse = f"WHEN NEW.run_id = '{run_ids[0]}' BEGIN SELECT RAISE(ABORT, 'no'); END"
    execute_on(stand, f"CREATE TRIGGER no BEFORE UPDATE ON attempts {refuse}")
    stand.publisher.take()
    stand.pass_time(LEASE_SECONDS + 1)
    stand.sweeper().sweep()
    assert [stand.attempts(run_id)[0].outcome for run_id in run_ids] == [None, "lost", "lost"]


def test_nothing_is_taken_back_after_a_lock_that_kept_heartbeats_waiting_too(
    tmp_path: Path, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a backup tool holds it on SQLite: leases have run out by its end, and all of their owners are alive."""
    url = f"sqlite:///{tmp_path}/store.db"
    database, other = Database(url), Database(url)
    ensure_schema(database)
    monkeypatch.setattr("paidonce_workers.recovery.sweeper.GAP_SECONDS", 0.2)
    sweeper = stand.sweeper(database=database)
    sweeper.sweep()
    held = threading.Event()

    def hold() -> None:
        with other.write():
            held.set()
            threading.Event().wait(0.6)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(10)
    taken_back: list[int] = []
    monkeypatch.setattr(sweeper, "_reclaim", lambda shard: taken_back.append(shard) or [])
    sweeper._last_sweep = None  # the gap before it is none
    sweeper.sweep()
    holder.join()
    assert taken_back == []
    database.close()
    other.close()
