"""Functions that give work instead of doing it: a decorator that knows nothing of ``async`` around an ``async def``.

Such a function returns a coroutine at once, so that the decorator's ``with`` or ``try`` is over before the work begins,
and whoever calls it holds a coroutine instead of a result. Where the code shows it, the declaration is refused;
otherwise the first call is, before anything is paid.
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
"""What a wrapper may ask of the function that it calls, and still know nothing of ``async``."""

Wrapper = ast.FunctionDef | ast.Lambda


def is_lazy(value: object) -> bool:
    """Whether a value is work that nobody has done: not awaited, or not iterated."""
    return inspect.isawaitable(value) or inspect.isgenerator(value) or inspect.isasyncgen(value)


def drop(value: object) -> None:
    """Close a coroutine that nobody will await, so that Python does not complain of it elsewhere."""
    if inspect.iscoroutine(value) or inspect.isgenerator(value):
        value.close()


def wrapped_lazily(function: Callable[..., Any]) -> Callable[..., Any] | None:
    """The ``async def`` or generator that a plain ``def`` around it hands on without doing its work, if that shows.

    It does where each layer's source returns the bare call. One that gives the function, or what it returned, to
    anything else may have a loop of its own in there: only its first call tells.
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


def _hands_on(wrapper: FunctionType, inner: object) -> bool:
    """Whether the source shows that a wrapper does nothing with a function but to call it and return the value."""
    name = _name_inside(wrapper, inner)
    node = None if name is None else _source_of(wrapper)
    if name is None or node is None:
        return False
    within = _Uses(node)
    calls = [within.called_at(use) for use in within.loads(name) if not within.is_naming(use)]
    return bool(calls) and all(call is not None and within.is_let_go(call) for call in calls)


def _name_inside(wrapper: FunctionType, inner: object) -> str | None:
    """What a wrapper calls the function that it closes over."""
    for name, cell in zip(wrapper.__code__.co_freevars, wrapper.__closure__ or (), strict=True):
        try:
            if cell.cell_contents is inner:
                return name
        except ValueError:  # not assigned yet
            continue
    return None


def _source_of(function: FunctionType) -> Wrapper | None:
    """The one function that its file has there; ``None`` where there is no file, or not the one that was imported."""
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
    """What the body of a wrapper does with its names."""

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
        """Whether a function is only asked for its name."""
        above = self._above[use]
        return isinstance(above, ast.Attribute) and above.attr in _NAMING

    def called_at(self, use: ast.Name) -> ast.Call | None:
        """The call of a function; ``None`` where something else is done with it."""
        above = self._above[use]
        return above if isinstance(above, ast.Call) and above.func is use else None

    def is_let_go(self, value: ast.expr) -> bool:
        """Whether a value is returned, or dropped, and nobody else gets it who might do its work."""
        place: ast.AST = value
        above = self._above[place]
        while isinstance(above, ast.IfExp) and place is not above.test:
            place, above = above, self._above[above]
        if above is self._wrapper:  # what a lambda gives
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
        """Whether it stands in the wrapper itself; a function inside of it may be called by anybody."""
        while node is not self._wrapper:
            node = self._above[node]
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
                return node is self._wrapper
        return True
