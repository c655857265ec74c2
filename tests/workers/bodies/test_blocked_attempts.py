"""A paid result that does not fit the code: kept, the run blocked, nothing paid again, and other code goes on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_core import core_schema

from paidonce import agent, record_usage, step
from paidonce.client import Client
from paidonce.declarations.declaration import AgentDeclaration, StepDeclaration
from paidonce.run_handle import KEPT
from paidonce.settings import Settings
from paidonce_models.errors import InvalidInput
from paidonce_models.payloads.encoding import decode_json
from paidonce_models.states import RunState
from paidonce_models.store.messages import StepMessage
from paidonce_models.store.queries import read_step_payloads
from paidonce_workers.execution import blocked_step_retries as blocked_steps
from paidonce_workers.execution.blocked_step_retries import BlockedSteps
from tests.workers.stand import NAMESPACE, Stand

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
PRICE_NANOUSD = 10_000_000
ran: list[int] = []
tried: list[int] = []


@pytest.fixture
def stand() -> Iterator[Stand]:
    ran.clear()
    with Stand() as stand:
        yield stand


class Report(BaseModel):
    title: str
    at: datetime


def declared(returns: object, annotation: object, *, name: str = "blocked.ask") -> StepDeclaration[..., Any]:
    """The step in one of its deployments; each call is paid."""

    async def ask() -> Any:
        ran.append(1)
        record_usage(cost_usd="0.01", provider="openai", model="gpt-4o")
        return returns() if callable(returns) else returns

    ask.__annotations__["return"] = annotation
    ask.__qualname__ = "ask"
    return step(name=name)(ask)


def asking(declaration: StepDeclaration[..., Any], name: str = "asks") -> AgentDeclaration[..., Any]:
    @agent(name=name)
    async def asks() -> str:
        first = await declaration()
        return f"{type(first).__name__} {first}".replace("TzInfo(0)", "datetime.timezone.utc")

    return asks


def look(stand: Stand, *held: StepDeclaration[..., Any], limit_bytes: int = 50 * 2**20) -> None:
    """What a worker with this code does at its start."""
    registry = stand.worker(*held, name=f"looks-{len(stand._workers)}").executor._registry
    BlockedSteps(
        database=stand.database,
        publisher=stand.publisher,  # type: ignore[arg-type]  # what is used of it
        registry=registry,
        namespace=NAMESPACE,
        max_payload_bytes=limit_bytes,
    ).look()


def blocked_by(stand: Stand, first: StepDeclaration[..., Any], **settings: Any) -> str:
    asks = asking(first)
    run_id = stand.submit(asks)
    stand.serve(stand.worker(asks, first, **settings))
    run = stand.run(run_id)
    assert (run.state, run.state_reason) == (RunState.BLOCKED, "result_not_storable"), run.error
    [attempt] = stand.attempts(run_id)
    assert (attempt.outcome, attempt.calls, attempt.cost_nanousd) == ("blocked", 1, PRICE_NANOUSD)
    return run_id


def goes_on(stand: Stand, run_id: str, second: StepDeclaration[..., Any], **settings: Any) -> str:
    asks = asking(second)
    stand.register(asks, second)
    look(stand, second, **settings)
    stand.serve(stand.worker(asks, second, name="worker-2"))
    run = stand.run(run_id)
    assert run.state is RunState.SUCCEEDED, run.error
    assert ran == [1], "what was paid is not paid again"
    [attempt] = stand.attempts(run_id)
    assert (attempt.outcome, attempt.cost_nanousd) == ("accepted", PRICE_NANOUSD)
    return str(decode_json(run.result or b"null"))


CASES: list[tuple[Callable[[], object] | object, object, object, str]] = [
    (None, str, str | None, "NoneType None"),
    ({"at": AT}, dict[str, str], dict[str, datetime], f"dict {{'at': {AT!r}}}"),
    ({"title": "a", "at": AT}, Report, dict[str, Any], f"dict {{'title': 'a', 'at': {AT!r}}}"),
    ({"title": "a", "at": AT}, str, Report, f"Report title='a' at={AT!r}"),
    (Report(title="a", at=AT), str, Report, f"Report title='a' at={AT!r}"),
    ({"a", "b"}, list[str], set[str], ""),
    (b"\xff\x00", str, bytes, "bytes b'\\xff\\x00'"),
]


@pytest.mark.parametrize(("returned", "before", "after", "shown"), CASES)
def test_other_code_goes_on_with_what_was_paid(
    stand: Stand, returned: object, before: object, after: object, shown: str
) -> None:
    run_id = blocked_by(stand, declared(returned, before))
    assert goes_on(stand, run_id, declared(returned, after)).startswith(shown)


def test_the_same_code_does_not_take_what_it_has_refused(stand: Stand) -> None:
    first = declared({"at": AT}, dict[str, str])
    run_id = blocked_by(stand, first)
    stand.register(asking(first), first)
    look(stand, first)
    stand.serve(stand.worker(asking(first), first))
    assert (stand.run(run_id).state, ran) == (RunState.BLOCKED, [1])


def test_a_type_that_would_lose_what_was_paid_does_not_take_it(stand: Stand) -> None:
    class Title(BaseModel):
        title: str

    run_id = blocked_by(stand, declared({"title": "a", "at": AT}, str))
    look(stand, declared({}, Title))
    assert (stand.run(run_id).state, ran) == (RunState.BLOCKED, [1])


def test_a_result_beyond_the_limit_is_kept_and_goes_on_under_a_larger_one(stand: Stand) -> None:
    first = declared("x" * 5_000, str)
    run_id = blocked_by(stand, first, max_payload_bytes=4_000)
    look(stand, first, limit_bytes=4_000)
    assert stand.run(run_id).state is RunState.BLOCKED
    assert goes_on(stand, run_id, first) == "str " + "x" * 5_000


class Handle:
    """Neither JSON nor data, with something in it all the same."""

    def __init__(self) -> None:
        self.answer = "paid for"
        self.api_key = "sk-abcdefghijklmnopqrstuvwxyz123456"


def test_of_an_object_without_a_form_its_data_are_kept_for_people(stand: Stand) -> None:
    run_id = blocked_by(stand, declared(Handle, object))
    client = Client(Settings(namespace=NAMESPACE))
    client._database = stand.database
    with pytest.raises(InvalidInput, match="only readable text"):
        client.resolve(run_id, 1, result=KEPT)
    with stand.database.read() as connection:
        kept = read_step_payloads(connection, run_id, 1)[1]
    assert b"paid for" in (kept or b"") and b"sk-abc" not in (kept or b"")
    assert ran == [1]


@pytest.mark.parametrize(
    ("how", "ends"),
    [({"result": "by hand"}, b"str by hand"), ({"result": KEPT}, b"str 2026-01-02T03:04:05Z"), ({}, b"paid again")],
)
def test_a_person_may_say_what_it_was_or_ask_for_another_attempt(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, how: dict[str, Any], ends: bytes
) -> None:
    first = declared(AT, str)
    run_id = blocked_by(stand, first)
    client = Client(Settings(namespace=NAMESPACE))
    client._database = stand.database
    monkeypatch.setattr(client, "_publish", stand.publisher.publish)
    client._registry = stand.worker(first, name="registry").executor._registry
    client.resolve(run_id, 1, **how)
    again = declared("paid again", str)
    stand.serve(stand.worker(asking(again), again, name="worker-2"))
    assert ends in (stand.run(run_id).result or b"")
    assert len(ran) == (1 if how else 2)
    assert [each.outcome for each in stand.attempts(run_id)] == (["accepted"] if how else ["blocked", "accepted"])


def test_a_run_with_a_blocked_step_goes_on_as_far_as_it_can_and_can_be_cancelled(stand: Stand) -> None:
    bad, good = declared(AT, str), declared("good", str, name="blocked.good")

    @agent(name="asks-both")
    async def asks_both() -> list[str]:
        return list(await asyncio.gather(bad(), good(), good()))

    run_id = stand.submit(asks_both)
    stand.serve(stand.worker(asks_both, bad, good))
    assert [each.state for each in stand.steps(run_id)] == ["blocked", "succeeded", "succeeded"]
    run = stand.run(run_id)
    assert (run.state, run.state_reason) == (RunState.BLOCKED, "result_not_storable")
    assert len(ran) == 3
    stand.cancel(run_id)
    stand.serve(stand.worker(asks_both, bad, good, name="worker-2"))
    assert stand.run(run_id).state is RunState.CANCELLED


def test_a_timeout_around_a_step_that_is_blocked_fires_and_the_agent_goes_on(stand: Stand) -> None:
    bad, good = declared(AT, str), declared("good", str, name="blocked.good")

    @agent(name="gives-up")
    async def gives_up() -> str:
        try:
            async with asyncio.timeout(60):
                return str(await bad())
        except TimeoutError:
            return str(await good())

    worker, sweeper = stand.worker(gives_up, bad, good), stand.sweeper()
    run_id = stand.submit(gives_up)
    stand.serve(worker)
    assert (stand.steps(run_id)[0].state, stand.run(run_id).state) == ("blocked", RunState.WAITING)
    stand.pass_time(61)
    sweeper.sweep()
    stand.serve(worker)
    run = stand.run(run_id)
    assert (run.state, run.result) == (RunState.SUCCEEDED, b'"good"'), run.error
    assert [each.state for each in stand.steps(run_id)] == ["cancelled", "succeeded"]
    assert stand.attempts(run_id)[0].cost_nanousd == PRICE_NANOUSD


def test_a_child_run_beside_a_step_that_is_blocked_is_waited_for(stand: Stand) -> None:
    bad, good = declared(AT, str), declared("good", str, name="blocked.good")

    @agent(name="child-of-both")
    async def child() -> str:
        return str(await good())

    @agent(name="asks-both-kinds")
    async def asks_both_kinds() -> list[str]:
        return list(await asyncio.gather(bad(), child()))

    run_id = stand.submit(asks_both_kinds)
    worker = stand.worker(asks_both_kinds, child, bad, good)
    worker.serve(stand.publisher.messages.popleft())
    messages = stand.publisher.take()
    worker.serve(next(each for each in messages if isinstance(each, StepMessage)))
    assert (stand.steps(run_id)[0].state, stand.run(run_id).state) == ("blocked", RunState.WAITING)
    stand.publisher.publish(messages)
    stand.serve(worker)
    assert [each.state for each in stand.steps(run_id)] == ["blocked", "succeeded"]
    assert stand.run(run_id).state is RunState.BLOCKED
    mended = declared(AT, datetime)
    look(stand, mended)
    stand.serve(stand.worker(asks_both_kinds, child, mended, good, name="worker-2"))
    assert (stand.run(run_id).state, len(ran)) == (RunState.SUCCEEDED, 2)


def test_a_sweep_puts_an_advance_right_that_raced_with_a_blocked_step(stand: Stand) -> None:
    run_id = blocked_by(stand, declared(AT, str))
    with stand.database.write() as connection:
        connection.exec_driver_sql("UPDATE runs SET state = 'running', state_reason = NULL, error = NULL")
    sweeper = stand.sweeper()
    sweeper._block_from = 0.0  # it is time for that
    sweeper.sweep()
    run = stand.run(run_id)
    assert (run.state, run.state_reason) == (RunState.BLOCKED, "result_not_storable")


class Array:
    """Does not say whether it is equal, as an array of several numbers."""

    def __init__(self, given: object) -> None:
        self.given = given

    def __eq__(self, other: object) -> bool:
        tried.append(1)
        raise ValueError("sk-abcdefghijklmnopqrstuvwxyz123456")

    __hash__ = object.__hash__

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: object, _handler: object) -> Any:
        shown = core_schema.plain_serializer_function_ser_schema(lambda array: str(array.given))
        return core_schema.no_info_plain_validator_function(cls, serialization=shown)


def test_a_type_that_raises_is_tried_once_and_keeps_no_other_step_from_a_try(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried.clear()
    monkeypatch.setattr(blocked_steps, "AT_ONCE", 1)
    blocked_by(stand, declared(AT, str))
    ran.clear()
    second = declared(AT, str, name="blocked.younger")
    asks = asking(second, "asks-younger")
    younger = stand.submit(asks)
    stand.serve(stand.worker(asks, second))
    held = [declared(AT, Array), declared(AT, datetime, name="blocked.younger")]
    looks = BlockedSteps(
        database=stand.database,
        publisher=stand.publisher,  # type: ignore[arg-type]  # what is used of it
        registry=stand.worker(*held, name="looks").executor._registry,
        namespace=NAMESPACE,
        max_payload_bytes=50 * 2**20,
    )
    with caplog.at_level(logging.WARNING):
        looks.look()
        compared = len(tried)
        looks.look()
    assert stand.steps(younger)[0].state == "succeeded"
    assert len(tried) == compared > 0
    assert "ValueError at " in caplog.text and "sk-abc" not in caplog.text


def test_arguments_that_no_longer_fit_block_the_run_and_fitting_code_executes_the_step(stand: Stand) -> None:
    class Asked(BaseModel):
        text: str

    class AskedMore(BaseModel):
        text: str
        more: int

    def taking(kind: object) -> StepDeclaration[..., Any]:
        def answer(asked: Any) -> str:
            ran.append(1)
            return str(asked.text)

        answer.__annotations__["asked"] = kind
        return step(name="blocked.takes")(answer)

    before, broken = taking(Asked), taking(AskedMore)

    @agent(name="asks-with")
    async def asks_with() -> str:
        return await before(Asked(text="a"))

    run_id = stand.submit(asks_with)
    stand.serve(stand.worker(asks_with, broken))
    run = stand.run(run_id)
    assert (run.state, run.state_reason, ran) == (RunState.BLOCKED, "step_does_not_fit", [])
    look(stand, broken)
    assert stand.run(run_id).state is RunState.BLOCKED
    look(stand, before)
    stand.serve(stand.worker(asks_with, before, name="worker-2"))
    assert (stand.run(run_id).state, stand.run(run_id).result) == (RunState.SUCCEEDED, b'"a"')


def test_what_an_agent_cannot_return_or_pass_on_blocks_its_run_until_the_code_fits(stand: Stand) -> None:
    paid = declared("x", str)

    @step(name="blocked.takes_text")
    def takes_text(text: str) -> str:
        return text

    def deployed(version: str) -> AgentDeclaration[..., Any]:
        async def ends() -> Any:
            first: Any = await paid()
            if version == "returns":
                return Handle()
            if version == "passes":
                return await takes_text({first})
            return await takes_text(first)

        ends.__qualname__ = "ends"
        return agent(name="ends")(ends)

    run_id = stand.submit(deployed("returns"))
    for version in ("returns", "passes"):
        stand.serve(stand.worker(deployed(version), paid, takes_text))
        run = stand.run(run_id)
        assert (run.state, run.state_reason) == (RunState.BLOCKED, "code_does_not_fit"), run.error
        stand.publisher.publish(stand.register(deployed("fits"), paid, takes_text))
    stand.serve(stand.worker(deployed("fits"), paid, takes_text, name="worker-2"))
    assert (stand.run(run_id).state, stand.run(run_id).result, ran) == (RunState.SUCCEEDED, b'"x"', [1])


def test_an_annotation_that_does_not_resolve_blocks_a_run_that_has_paid(stand: Stand) -> None:
    paid = declared("x", str)

    def resolving(annotation: str) -> StepDeclaration[..., Any]:
        def second(text: Any) -> str:
            return str(text)

        second.__annotations__["text"] = annotation
        return step(name="blocked.second")(second)

    def deployed(second: StepDeclaration[..., Any]) -> AgentDeclaration[..., Any]:
        async def two() -> str:
            return await second(await paid())

        return agent(name="two")(two)

    broken, mended = resolving("NotThere"), resolving("str")
    run_id = stand.submit(deployed(broken))
    stand.serve(stand.worker(deployed(broken), paid, broken))
    run = stand.run(run_id)
    assert (run.state, run.state_reason) == (RunState.BLOCKED, "code_does_not_fit")
    assert "NotThere" in str(run.error) and "TYPE_CHECKING" in str(run.error)
    stand.publisher.publish(stand.register(deployed(mended), paid, mended))
    stand.serve(stand.worker(deployed(mended), paid, mended, name="worker-2"))
    assert (stand.run(run_id).state, ran) == (RunState.SUCCEEDED, [1])


def test_work_that_nobody_has_done_is_never_a_result(stand: Stand) -> None:
    async def work() -> str:
        ran.append(1)
        return "done"

    def hands_on() -> Any:
        makers = [work]  # nothing that shows
        return makers[0]()

    lazy = step(name="blocked.ask")(hands_on)
    asks = asking(lazy)
    run_id = stand.submit(asks)
    stand.serve(stand.worker(asks, lazy))
    run = stand.run(run_id)
    assert (run.state, run.state_reason, ran) == (RunState.BLOCKED, "step_does_not_fit", [])
    assert "not async-aware" in str(run.error) and "hands_on" in str(run.error)
    look(stand, lazy)
    assert stand.run(run_id).state is RunState.BLOCKED
    mended = step(name="blocked.ask")(work)
    look(stand, mended)
    stand.serve(stand.worker(asking(mended), mended, name="worker-2"))
    assert (stand.run(run_id).state, ran) == (RunState.SUCCEEDED, [1])
