"""Detects functions that return unrun work: a decorator that is not async-aware around an ``async def``.

Such a function returns a coroutine at once, so that the decorator's ``with`` or ``try`` is over before the work starts,
and its caller gets a coroutine instead of a result. If the code shows it, the declaration is refused; otherwise the
first call is, before anything is paid.
"""

from __future__ import annotations

import ast
import inspect
import linecache
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType
from typing import Any, Final

MOST_LAYERS: Final = 20
_NAMING: Final = frozenset({"__name__", "__qualname__", "__module__", "__doc__"})
"""What a wrapper may read of the wrapped function without being async-aware."""

Wrapper = ast.FunctionDef | ast.Lambda


def is_lazy(value: object) -> bool:
    """Whether a value is work that was not done: not awaited, or not iterated."""
    return inspect.isawaitable(value) or inspect.isgenerator(value) or inspect.isasyncgen(value)


def drop(value: object) -> None:
    """Close a coroutine that will not be awaited, so that Python does not warn about it elsewhere."""
    if inspect.iscoroutine(value) or inspect.isgenerator(value):
        value.close()


def wrapped_lazily(function: Callable[..., Any]) -> Callable[..., Any] | None:
    """The ``async def`` or generator that a plain ``def`` around it returns unrun, if the source shows that.

    It does if each layer's source returns the bare call. A layer that passes the function, or its result, to anything
    else may run it there in its own loop: then only the first call shows.
    """
    layer: Any = function
    for _ in range(MOST_LAYERS):
        if _gives_work(layer) or not isinstance(layer, FunctionType):
            return None
        inner: Any = getattr(layer, "__wrapped__", None) or _called(layer)
        if inner is None or not _hands_on(layer, inner):
            return None
        if _gives_work(inner):
            found: Callable[..., Any] = inner
            return found
        layer = inner
    return None


def lazy_message(function: Callable[..., Any], kind: str) -> str:
    """What is wrong if a body returns a coroutine or a generator, and what to do."""
    code = function.__code__
    return (
        f"{function.__module__}.{function.__qualname__} ({code.co_filename}:{code.co_firstlineno}) returns a {kind} "
        "that was not awaited or iterated: a decorator between @step, @tool or @agent and an `async def` is not "
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
    """The one function to which a wrapper without ``functools.wraps`` passes its arguments, if there is one."""
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


def _hands_on(wrapper: FunctionType, inner: object) -> bool:
    """Whether the source shows that a wrapper only calls a function and returns the value."""
    name = _name_inside(wrapper, inner)
    node = None if name is None else _source_of(wrapper)
    if name is None or node is None:
        return False
    within = _Uses(node)
    calls = [within.called_at(use) for use in within.loads(name) if not within.is_naming(use)]
    return bool(calls) and all(call is not None and within.is_let_go(call) for call in calls)


def _name_inside(wrapper: FunctionType, inner: object) -> str | None:
    """The name by which a wrapper refers to the function in its closure."""
    for name, cell in zip(wrapper.__code__.co_freevars, wrapper.__closure__ or (), strict=True):
        try:
            if cell.cell_contents is inner:
                return name
        except ValueError:  # not assigned yet
            continue
    return None


def _source_of(function: FunctionType) -> Wrapper | None:
    """The one function at that place in its file; ``None`` if there is no file, or not the one that was imported."""
    code: CodeType = function.__code__
    try:
        module = ast.parse("".join(linecache.getlines(code.co_filename, function.__globals__)))
    except (SyntaxError, ValueError, RecursionError):
        return None
    found = [node for node in ast.walk(module) if isinstance(node, Wrapper) and _begins(node) == _beginning(code)]
    return found[0] if len(found) == 1 else None


def _beginning(code: CodeType) -> tuple[str, int]:
    return code.co_name, code.co_firstlineno


def _begins(node: Wrapper) -> tuple[str, int]:
    if isinstance(node, ast.Lambda):
        return "<lambda>", node.lineno
    return node.name, min([node.lineno, *(each.lineno for each in node.decorator_list)])


class _Uses:
    """How the body of a wrapper uses its names."""

    def __init__(self, wrapper: Wrapper) -> None:
        self._wrapper = wrapper
        self._body = wrapper.body if isinstance(wrapper.body, list) else [wrapper.body]
        self._above: dict[ast.AST, ast.AST] = dict.fromkeys(self._body, wrapper)
        for statement in self._body:
            for node in ast.walk(statement):
                self._above.update((child, node) for child in ast.iter_child_nodes(node))

    def loads(self, name: str) -> Iterator[ast.Name]:
        """Where a name is read."""
        for statement in self._body:
            for node in ast.walk(statement):
                if isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Load):
                    yield node

    def is_naming(self, use: ast.Name) -> bool:
        """Whether only a function's name is read."""
        above = self._above[use]
        return isinstance(above, ast.Attribute) and above.attr in _NAMING

    def called_at(self, use: ast.Name) -> ast.Call | None:
        """The call of a function; ``None`` if it is used in another way."""
        above = self._above[use]
        return above if isinstance(above, ast.Call) and above.func is use else None

    def is_let_go(self, value: ast.expr) -> bool:
        """Whether a value is only returned or dropped, so that nothing else could run it."""
        place: ast.AST = value
        above = self._above[place]
        while isinstance(above, ast.IfExp) and place is not above.test:
            place, above = above, self._above[above]
        if above is self._wrapper:  # the value of a lambda
            return True
        if not self._is_own(above):
            return False
        if isinstance(above, ast.Assign):
            target = above.targets[0]
            if len(above.targets) > 1 or not isinstance(target, ast.Name):
                return False
            return all(isinstance(self._above[use], ast.Return) and self._is_own(use) for use in self.loads(target.id))
        return isinstance(above, ast.Return | ast.Expr)

    def _is_own(self, node: ast.AST) -> bool:
        """Whether it is in the wrapper itself; a function inside it may be called by anyone."""
        while node is not self._wrapper:
            node = self._above[node]
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
                return node is self._wrapper
        return True
