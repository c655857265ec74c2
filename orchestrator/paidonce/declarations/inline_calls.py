"""Finds the tools that a step or tool calls inside its own body, from its source, before anything runs.

Recognises calls in the function itself: ``await fetch(url)``, ``fetch.call(url)``, ``tools.fetch(url)``. Calls in
helper functions, or of a tool that is looked up at run time, are not recognised.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

from paidonce.declarations.declaration import StepDeclaration


def tools_called_by(declaration: StepDeclaration[..., Any]) -> frozenset[str]:
    """Full names of the tools that its body calls; empty if there is no source to read."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(declaration.fn)))
    except (OSError, TypeError, SyntaxError):
        return frozenset()
    names = names_seen_by(declaration.fn)
    return frozenset(tool.name for tool in _called(tree, names) if tool.kind == "tool")


def _called(tree: ast.AST, names: Mapping[str, Any]) -> Iterator[StepDeclaration[..., Any]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            found = _meant(node.func, names)
            if isinstance(found, StepDeclaration):
                yield found


def _meant(node: ast.expr, names: Mapping[str, Any]) -> Any:
    """The object that an expression refers to, as far as names and modules alone determine it."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if not isinstance(node, ast.Attribute):
        return None
    owner = _meant(node.value, names)
    if isinstance(owner, StepDeclaration):
        return owner if node.attr == "call" else None
    return vars(owner).get(node.attr) if isinstance(owner, ModuleType) else None


def names_seen_by(fn: Callable[..., Any]) -> Mapping[str, Any]:
    """The names visible in a function's body: globals of its module, and its closure."""
    seen = inspect.unwrap(fn)
    return {**getattr(seen, "__globals__", {}), **_enclosed(seen)}


def _enclosed(fn: Any) -> Mapping[str, Any]:
    cells = zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True) if hasattr(fn, "__code__") else ()
    return {name: cell.cell_contents for name, cell in cells if _is_filled(cell)}


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018  # an empty cell raises
    except ValueError:
        return False
    return True
