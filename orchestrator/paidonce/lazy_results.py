"""Functions that give work instead of doing it: a decorator that knows nothing of ``async`` around an ``async def``.

Such a function returns a coroutine at once, so that the decorator's ``with`` or ``try`` is over before the work begins,
and whoever calls it holds a coroutine instead of a result. Where the code shows it, the declaration is refused;
otherwise the first call is, before anything is paid.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any, Final

RUNNERS: Final = frozenset(
    {
        *("run", "run_until_complete", "run_coroutine_threadsafe", "Runner", "async_to_sync", "syncify", "run_sync"),
        *("start_blocking_portal", "from_thread", "result", "send", "next", "list", "tuple", "__next__"),
    }
)
"""Names in the code of a wrapper that may well do the work itself."""
MOST_LAYERS: Final = 20


def is_lazy(value: object) -> bool:
    """Whether a value is work that nobody has done: not awaited, or not iterated."""
    return inspect.isawaitable(value) or inspect.isgenerator(value) or inspect.isasyncgen(value)


def drop(value: object) -> None:
    """Close a coroutine that nobody will await, so that Python does not complain of it elsewhere."""
    if inspect.iscoroutine(value) or inspect.isgenerator(value):
        value.close()


def wrapped_lazily(function: Callable[..., Any]) -> Callable[..., Any] | None:
    """The ``async def`` or generator that a plain ``def`` around it hands on without doing its work, if that shows."""
    layer: Any = function
    for _ in range(MOST_LAYERS):
        if _gives_work(layer) or not isinstance(layer, FunctionType) or _names(layer.__code__) & RUNNERS:
            return None
        inner: Any = getattr(layer, "__wrapped__", None) or _called(layer)
        if inner is None:
            return None
        if _gives_work(inner):
            found: Callable[..., Any] = inner
            return found
        layer = inner
    return None


def lazy_message(function: Callable[..., Any], kind: str) -> str:
    """What is wrong where a body gives a coroutine or a generator, and what to do."""
    code = function.__code__
    return (
        f"{function.__module__}.{function.__qualname__} ({code.co_filename}:{code.co_firstlineno}) gives a {kind} that "
        "nobody has awaited or iterated: a decorator between @step, @tool or @agent and an `async def` is not "
        "async-aware. Make its wrapper `async def` and `return await` the function, or leave it out; instead of a "
        "generator return a list"
    )


def _gives_work(function: object) -> bool:
    return (
        inspect.iscoroutinefunction(function)
        or inspect.isasyncgenfunction(function)
        or inspect.isgeneratorfunction(function)
    )


def _called(function: FunctionType) -> object:
    """What a wrapper without ``functools.wraps`` passes its arguments on to, if there is one such thing."""
    kinds = {parameter.kind for parameter in inspect.signature(function).parameters.values()}
    if not {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD} <= kinds:
        return None
    found = []
    for cell in function.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:  # not assigned yet
            continue
    functions = [each for each in found if isinstance(each, FunctionType)]
    return functions[0] if len(functions) == 1 else None


def _names(code: CodeType) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _names(constant)
    return names
