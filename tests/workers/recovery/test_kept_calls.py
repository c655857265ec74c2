"""The heartbeat keeps calls whose usage is still to come, for as long as it is to come."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from paidonce import agent, step
from paidonce.usage.call_recorder import CallRecorder, current_recorder
from paidonce.usage.captured_calls import CapturedCall, Statement
from paidonce_models.store.recovery.lost_steps import reclaim_step
from paidonce_models.store.steps.leases import LeaseKey
from paidonce_models.usage import CallKind, CallRecord, Usage, UsageSource
from tests.workers.stand import Stand, StandWorker

USAGE = {"input_tokens": 100, "output_tokens": 50}
during: list[Callable[[], object]] = []


@step(name="awaited.work")
def work() -> str:
    for each in during:
        each()
    return "done"


@agent(name="awaited")
async def awaits() -> str:
    return await work()


@pytest.fixture
def stand() -> Iterator[Stand]:
    during.clear()
    with Stand() as made:
        yield made


def recorder() -> CallRecorder:
    found = current_recorder.get()
    assert found is not None
    return found


def begin() -> None:
    """A background response is created."""
    call = CallRecord(kind=CallKind.LLM, started_at_us=recorder().now_us(), usage_source=UsageSource.MISSING)
    recorder().append_captured(
        CapturedCall(call=call, answer={"model": "gpt-4o-mini"}, ids=("resp_1",), awaited_id="resp_1")
    )


def finish() -> None:
    """A poll has told its usage."""
    recorder().complete_awaited("resp_1", {"model": "gpt-4o-mini", "usage": USAGE})


def run(stand: Stand, *acts: str | Callable[[], object]) -> tuple[StandWorker, str]:
    worker = stand.worker(awaits, work)
    run_id = stand.submit(awaits)
    known: dict[str, Callable[[], object]] = {"begin": begin, "finish": finish, "beat": worker.heartbeat.beat}
    during.extend(known[act] if isinstance(act, str) else act for act in acts)
    stand.serve(worker)
    return worker, run_id


def count(stand: Stand, table: str) -> int:
    with stand.database.read() as connection:
        return int(connection.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar_one())


def calls(stand: Stand, run_id: str) -> list[tuple[Any, ...]]:
    return [
        (attempt.outcome, attempt.calls, attempt.unpriced_calls, attempt.input_tokens)
        for attempt in stand.attempts(run_id)
    ]


def test_it_is_kept_with_a_beat_and_deleted_with_the_beat_that_writes_its_usage(stand: Stand) -> None:
    seen: list[tuple[int, int]] = []

    def look() -> None:
        seen.append((count(stand, "awaited_calls"), count(stand, "calls")))

    _, run_id = run(stand, "begin", "beat", look, "beat", look, "finish", "beat", look)
    assert seen == [(1, 0), (1, 0), (0, 1)]
    assert calls(stand, run_id) == [("accepted", 1, 0, 100)]


def test_a_cost_that_is_stated_between_two_beats_is_kept_with_the_second(stand: Stand) -> None:
    seen: list[int | None] = []

    def state() -> None:
        said = Statement(usage=Usage(), source=UsageSource.EXPLICIT, cost_nanousd=700, price_source="explicit")
        recorder().captured_already(("resp_1",), said)

    def look() -> None:
        with stand.database.read() as connection:
            record = connection.exec_driver_sql("SELECT record FROM awaited_calls").scalar_one()
        seen.append(json.loads(record).get("cost_nanousd"))

    run(stand, "begin", "beat", look, state, "beat", look)
    assert seen == [None, 700]


def test_a_completion_takes_it_along_and_a_later_beat_deletes_it(stand: Stand) -> None:
    worker, run_id = run(stand, "begin", "beat")
    assert (count(stand, "awaited_calls"), calls(stand, run_id)) == (1, [("accepted", 1, 1, None)])
    worker.heartbeat.beat()
    assert (count(stand, "awaited_calls"), count(stand, "calls")) == (0, 1)


def test_an_attempt_that_is_lost_and_comes_back_has_one_unknown_call(stand: Stand) -> None:
    worker = stand.worker(awaits, work)
    run_id = stand.submit(awaits)

    def lose() -> None:
        key = LeaseKey(run_id, 1, 1)
        stand.database.transact(lambda connection: reclaim_step(connection, key, why="killed", alone=True, anyway=True))
        assert calls(stand, run_id) == [("lost", 1, 1, None)]

    during.extend([begin, worker.heartbeat.beat, lose])
    stand.serve(worker)
    assert calls(stand, run_id) == [("fenced", 1, 1, None)]
    assert count(stand, "awaited_calls") == 0


def test_what_an_isolated_body_waits_for_is_its_parents_to_keep() -> None:
    parent, child = CallRecorder(), CallRecorder()
    call = CallRecord(kind=CallKind.LLM, started_at_us=parent.now_us(), usage_source=UsageSource.MISSING)
    child.append_captured(CapturedCall(call=call, awaited_id="batch_1"))
    parent.take_over([], child.awaited())
    assert [each.id for each in parent.awaited()] == [call.id]
    child.complete_awaited("batch_1", {"model": "m", "usage": USAGE})
    parent.take_over(child.drain(), child.awaited())
    assert parent.awaited() == []
    assert [each.id for each in parent.drain()] == [call.id]


def test_what_an_isolated_body_waited_for_when_it_died_is_unknown() -> None:
    parent = CallRecorder()
    call = CallRecord(kind=CallKind.LLM, started_at_us=1, usage_source=UsageSource.MISSING)
    parent.take_over([], [call])
    assert parent.drain() == [call]
    assert parent.awaited() == parent.drain() == []


def test_a_call_that_completes_while_an_isolated_body_tells_of_it_is_one() -> None:
    parent = CallRecorder()
    call = CallRecord(kind=CallKind.LLM, started_at_us=1, usage_source=UsageSource.MISSING)
    parent.take_over([call], [call])
    assert parent.drain() == [call]
