"""Which tools a step or tool calls inside its own body, read off its source before anything runs.

Sees what the function itself says: ``await fetch(url)``, ``fetch.call(url)``, ``tools.fetch(url)``. A call that a
helper function makes, or one of a tool that was looked up at run time, is not seen.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

from paidonce.declarations import StepDeclaration


def tools_called_by(declaration: StepDeclaration[..., Any]) -> frozenset[str]:
    """Full names of the tools that its body calls; none where there is no source to read."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(declaration.fn)))
    except (OSError, TypeError, SyntaxError):
        return frozenset()
    names = _names_seen_by(declaration.fn)
    return frozenset(tool.name for tool in _called(tree, names) if tool.kind == "tool")


def _called(tree: ast.AST, names: Mapping[str, Any]) -> Iterator[StepDeclaration[..., Any]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            found = _meant(node.func, names)
            if isinstance(found, StepDeclaration):
                yield found


def _meant(node: ast.expr, names: Mapping[str, Any]) -> Any:
    """What an expression stands for, as far as that is told by names and modules alone."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if not isinstance(node, ast.Attribute):
        return None
    owner = _meant(node.value, names)
    if isinstance(owner, StepDeclaration):
        return owner if node.attr == "call" else None
    return vars(owner).get(node.attr) if isinstance(owner, ModuleType) else None


def _names_seen_by(fn: Callable[..., Any]) -> Mapping[str, Any]:
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
