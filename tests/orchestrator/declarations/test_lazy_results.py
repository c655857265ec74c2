"""A decorator that knows nothing of ``async``: refused where it shows, otherwise at the first call, before any work."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import time
from collections.abc import Callable, Iterator
from typing import Any

import anyio.from_thread
import pytest

from paidonce import agent, step, tool
from paidonce.declarations.lazy_results import is_lazy, wrapped_lazily
from paidonce_models.errors import DeclarationError


def timed(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            print(time.perf_counter() - started)

    return wrapper


def retried(function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        for _ in range(3):
            try:
                return function(*args, **kwargs)
            except ValueError:
                continue
        return None

    return wrapper


@contextlib.contextmanager
def session() -> Iterator[None]:
    yield


def in_a_loop(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return asyncio.run(function(*args, **kwargs))

    return wrapper


def block_on(coroutine: Any) -> Any:
    return asyncio.run(coroutine)


def with_a_helper(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return block_on(function(*args, **kwargs))

    return wrapper


def with_a_portal(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        with anyio.from_thread.start_blocking_portal() as portal:
            return portal.call(functools.partial(function, *args, **kwargs))

    return wrapper


def in_two_lines(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        work = function(*args, **kwargs)
        value = block_on(work)
        return value

    return wrapper


def through_a_lambda(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        def work() -> Any:
            return function(*args, **kwargs)

        return block_on((lambda: work())())

    return wrapper


def for_both(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if inspect.iscoroutinefunction(function):
            return block_on(function(*args, **kwargs))
        return function(*args, **kwargs)

    return wrapper


def by_hand(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        work = function(*args, **kwargs)
        try:
            work.send(None)
        except StopIteration as done:
            return done.value
        return None

    return wrapper


def as_a_lambda(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: block_on(function(*args, **kwargs))


def kept(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        print(function.__name__)
        result = function(*args, **kwargs)
        print("done")
        return result

    return wrapper


def dropped(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        function(*args, **kwargs)

    return wrapper


def short(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: function(*args, **kwargs) if args else None


def aware(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        return await function(*args, **kwargs)

    return wrapper


async def ask(question: str) -> str:
    return question


def each(question: str) -> Iterator[str]:
    yield question


CARELESS = [timed, retried, session(), lambda function: timed(timed(function)), kept, dropped, short]
CAREFUL = [in_a_loop, with_a_helper, with_a_portal, in_two_lines, through_a_lambda, for_both, by_hand, as_a_lambda]


@pytest.mark.parametrize("decorate", [step, tool, agent])
@pytest.mark.parametrize("careless", CARELESS)
def test_a_careless_decorator_around_an_async_def_is_refused_with_the_remedy(decorate: Any, careless: Any) -> None:
    with pytest.raises(DeclarationError, match=r"ask .*test_lazy_results.py:\d+.*not async-aware.*async def"):
        decorate(careless(ask))


def test_one_around_a_generator_is_refused_too() -> None:
    with pytest.raises(DeclarationError, match="return a list"):
        step(timed(each))


@pytest.mark.parametrize("careful", [*CAREFUL, aware, lambda function: function])
def test_a_decorator_that_does_the_work_is_taken(careful: Any) -> None:
    assert wrapped_lazily(careful(ask)) is None
    step(name=f"lazy.taken-{id(careful)}")(careful(ask))


@pytest.mark.parametrize("careful", CAREFUL)
def test_one_that_does_the_work_gives_its_result(careful: Any) -> None:
    assert careful(ask)("a") == "a"
    assert wrapped_lazily(careful(timed(ask))) is None
    assert wrapped_lazily(timed(careful(ask))) is None


def test_a_wrapper_without_its_source_is_left_to_its_first_call() -> None:
    space: dict[str, Any] = {}
    exec("def bare(function):\n    return lambda *args, **kwargs: function(*args, **kwargs)\n", space)
    wrapped = space["bare"](ask)
    assert wrapped_lazily(wrapped) is None
    work = wrapped("a")
    assert is_lazy(work)
    work.close()


@pytest.mark.parametrize("careless", [timed, retried, session()])
def test_around_a_plain_def_they_are_taken(careless: Any) -> None:
    def plain(question: str) -> str:
        return question

    step(name=f"lazy.plain-{id(careless)}")(careless(plain))


def test_what_is_no_function_is_refused() -> None:
    with pytest.raises(DeclarationError, match="plain function"):
        step(functools.partial(ask, "a"))  # type: ignore[call-overload]  # the point


def test_work_is_told_from_results() -> None:
    coroutine = ask("a")
    assert is_lazy(coroutine) and is_lazy(each("a")) and not is_lazy("a") and not is_lazy([coroutine])
    coroutine.close()
