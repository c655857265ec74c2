"""What the decorators accept, what they refuse, and what calling a declaration gives."""

from __future__ import annotations

import asyncio
import inspect
import re
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from celery import Celery

from paidonce import DeclarationError, InvalidInput, NotSerialisable, PayloadTooLarge, Retry, agent, step, tool
from paidonce.declarations.declaration import AgentDeclaration, StepDeclaration
from paidonce.declarations.registry import Registry
from paidonce.policies.retry import NO_RETRY
from paidonce.usage.call_recorder import CallRecorder, recording_into
from paidonce_models.budgets import Maxima, Unit

HERE = __name__


@step
def plain(number: int) -> int:
    return number + 1


@step(
    name="declared.elsewhere",
    queue="side",
    timeout=timedelta(minutes=2),
    retry={"max_attempts": 4, "base": timedelta(seconds=2), "retry_on": ["ConnectionError"]},
    max_lost=2,
)
async def with_options(number: int) -> int:
    return number


@tool
def look_up(word: str) -> str:
    return word.upper()


@tool
async def look_up_async(word: str) -> str:
    return word.upper()


@tool(idempotent=False)
def pay(amount: int) -> int:
    return amount


def test_a_step_is_named_after_its_function() -> None:
    assert plain.name == f"{HERE}.plain"
    assert (plain.kind, look_up.kind) == ("step", "tool")
    assert with_options.name == "declared.elsewhere"


def test_options_are_kept() -> None:
    assert with_options.timeout_seconds == 120.0
    assert (with_options.queue, with_options.max_lost) == ("side", 2)
    assert with_options.retry == Retry(max_attempts=4, base_seconds=2.0, retry_on=("ConnectionError",))
    assert (plain.timeout_seconds, plain.retry, plain.queue) == (None, NO_RETRY, "default")
    assert with_options.is_async and not plain.is_async


def test_fn_is_the_plain_function() -> None:
    assert plain.fn(1) == 2
    assert asyncio.run(with_options.fn(3)) == 3


@pytest.mark.parametrize("name", ["delay", "apply_async", "s", "signature"])
def test_what_celerys_users_look_for_in_a_task_says_where_to_go(name: str) -> None:
    with pytest.raises(AttributeError, match=r"submit a run of an agent"):
        getattr(plain, name)
    with pytest.raises(AttributeError, match="has no attribute 'delays'"):
        _ = plain.delays  # type: ignore[attr-defined]  # the point of the test


def test_a_teams_own_celery_app_cannot_make_a_task_of_a_step() -> None:
    app = Celery("shop", broker="memory://", set_as_current=False)
    with pytest.raises(AttributeError, match=r"<step declared\.elsewhere> has no __name__: .* no other decorator"):
        app.task(with_options)


def test_agents_have_versions_and_budgets() -> None:
    @agent(name="priced", version="2", queue="agents", budget_usd="0.50")
    async def priced() -> None: ...

    @agent(budget_usd=Decimal("1.25"), max_steps=30, max_tokens=9_000)
    async def dear() -> None: ...

    assert (priced.name, priced.version, priced.queue) == ("priced", "2", "agents")
    assert priced.limits == {Unit.USD: 500_000_000}
    assert (dear.name, dear.version) == ("dear", "1")
    assert dear.limits == {Unit.USD: 1_250_000_000, Unit.TOKENS: 9_000, Unit.STEPS: 30}


def test_steps_say_what_they_cost_at_most() -> None:
    @step(max_cost_usd="0.002", max_tokens=500)
    async def costly() -> None: ...

    assert costly.maxima == Maxima(nanousd=2_000_000, tokens=500)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget_usd": "0"}, "budget_usd='0'; expected more than 0"),
        ({"budget_usd": "a lot"}, "budget_usd='a lot': amount of money: 'a lot' is not a decimal number"),
        ({"budget_usd": "1e30"}, "budget_usd='1e30' is beyond any real spend"),
        ({"max_steps": -1}, "max_steps=-1; expected more than 0"),
        ({"max_steps": 10**30}, f"max_steps={10**30} is beyond any real spend"),
        ({"max_tokens": 1.5}, "max_tokens=1.5; expected a whole number"),
    ],
)
def test_limits_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    async def limited() -> None: ...

    with pytest.raises(DeclarationError, match=f"agent 'limited': {re.escape(message)}"):
        agent(**options)(limited)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"timeout": 0}, "above 0"),
        ({"timeout": timedelta(seconds=-1)}, "above 0"),
        ({"max_lost": 0}, "at least 1"),
        ({"retry": 0}, "at least 1"),
        ({"retry": "often"}, "expected a number of attempts"),
        ({"retry": True}, "expected a number of attempts"),
        ({"retry": {"tries": 3}}, "max_attempts, base_seconds, cap_seconds, retry_on"),
        ({"delivery": "exactly_once"}, "at_least_once, at_most_once"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(DeclarationError, match=said):

        @step(**options)
        def odd() -> None: ...


def test_what_is_no_plain_function_is_refused() -> None:
    with pytest.raises(DeclarationError, match="is a method"):

        class Holder:
            @step
            def method(self) -> None: ...

    with pytest.raises(DeclarationError, match="generator"):

        @step
        def generator() -> Any:
            yield 1

    with pytest.raises(DeclarationError, match="generator"):

        @step
        async def async_generator() -> Any:
            yield 1

    with pytest.raises(DeclarationError, match="plain function"):
        step(print)  # type: ignore[call-overload]
    with pytest.raises(DeclarationError, match="`async def`"):

        @agent  # type: ignore[arg-type]
        def no_coroutine() -> None: ...


def test_a_name_taken_twice_names_both_places() -> None:
    registry = Registry()
    registry.add_step(plain)
    other = StepDeclaration(
        name=plain.name,
        kind="step",
        fn=plain.fn,
        parameters=plain.parameters,
        queue="default",
        file="elsewhere.py",
        line=7,
    )
    with pytest.raises(DeclarationError, match=r"test_declarations\.py:\d+ and elsewhere\.py:7; rename one"):
        registry.add_step(other)


def test_versions_of_an_agent_live_together() -> None:
    registry = Registry()

    def declare(version: str, line: int) -> AgentDeclaration[..., Any]:
        @agent(name="told", version=version)
        async def told() -> None: ...

        return AgentDeclaration(
            name="told",
            kind="agent",
            fn=told.fn,
            parameters=told.parameters,
            queue="default",
            file="told.py",
            line=line,
            version=version,
        )

    first, second = declare("1", 1), declare("2", 2)
    registry.add_agent(first)
    registry.add_agent(second)
    assert registry.agent("told", "1") is first
    assert registry.agent("told") is second
    assert registry.agent("told", "3") is None


def test_calling_gives_a_coroutine_that_runs_nothing() -> None:
    call = plain(1)
    assert inspect.isawaitable(call) and asyncio.iscoroutine(call)
    call.close()


def test_awaiting_outside_an_agent_says_what_to_do() -> None:
    with pytest.raises(InvalidInput, match=r"outside an agent.*plain\.fn\(\.\.\.\)"):
        asyncio.run(_await(plain(1)))
    with pytest.raises(InvalidInput, match="outside an agent"):
        look_up.call("a")


async def _await(call: Any) -> Any:
    return await call


def test_a_tool_runs_inline_in_a_step_and_a_step_does_not() -> None:
    with recording_into(CallRecorder()):
        assert look_up.call("a") == "A"
        assert asyncio.run(_await(look_up("b"))) == "B"
        assert asyncio.run(_await(look_up_async("c"))) == "C"
        with pytest.raises(InvalidInput, match="only tools run inside a step"):
            asyncio.run(_await(plain(1)))
        with pytest.raises(InvalidInput, match="is async: await it"):
            look_up_async.call("a")


def test_what_must_not_run_twice_does_not_run_inline() -> None:
    with recording_into(CallRecorder()), pytest.raises(InvalidInput, match="await it from the agent"):
        pay.call(5)


def test_an_agents_signature_changes_with_its_parameters() -> None:
    def declare(fn: Any) -> str:
        return str(agent(name="signed")(fn).signature)

    async def one(number: int) -> int: ...

    async def other(number: str) -> int: ...

    assert declare(one) == declare(one)
    assert declare(one) != declare(other)


def test_retries_back_off_with_full_jitter() -> None:
    retry = Retry(max_attempts=9, base_seconds=2.0, cap_seconds=10.0)
    ceilings = [retry.delay_seconds(failures, lambda low, high: high) for failures in range(1, 6)]
    assert ceilings == [2.0, 4.0, 8.0, 10.0, 10.0]
    assert retry.delay_seconds(3, lambda low, high: low) == 0.0


def test_retries_know_what_they_cover() -> None:
    class Away(ConnectionError): ...

    by_name, by_class = Retry(retry_on=("ConnectionError",)), Retry(retry_on=(OSError,))
    assert by_name.covers(Away()) and by_class.covers(Away())
    assert not by_name.covers(ValueError()) and not by_class.covers(ValueError())
    assert Retry().covers(ValueError())
    assert not Retry().covers(KeyboardInterrupt())


def test_what_comes_out_the_same_is_not_tried_again_unless_it_is_named() -> None:
    assert not Retry().covers(NotSerialisable()) and not Retry().covers(PayloadTooLarge())
    assert Retry(retry_on=(PayloadTooLarge,)).covers(PayloadTooLarge())
