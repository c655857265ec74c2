"""The declarations that an agent under test can reach, as a worker that loads its module would hold them.

A test process has imported far more than any worker, and faults in another test's declarations must not affect this
agent. What an agent finds only at run time is checked when it is executed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

from paidonce.declarations.declaration import Declaration, StepDeclaration
from paidonce.declarations.inline_calls import names_seen_by
from paidonce.declarations.registry import AnyAgent, AnyStep


def steps_in_reach(agent: AnyAgent) -> list[AnyStep]:
    """The steps and tools that the agent's code names, those that they name, and so on."""
    seen: dict[int, Declaration[..., Any]] = {}
    waiting: list[Declaration[..., Any]] = [agent]
    while waiting:
        declaration = waiting.pop()
        if id(declaration) not in seen:
            seen[id(declaration)] = declaration
            waiting.extend(_declared(names_seen_by(declaration.fn)))
    return [each for each in seen.values() if isinstance(each, StepDeclaration)]


def _declared(names: Mapping[str, Any]) -> Iterator[Declaration[..., Any]]:
    for value in list(names.values()):
        if isinstance(value, Declaration):
            yield value
        elif isinstance(value, ModuleType):
            yield from (each for each in list(vars(value).values()) if isinstance(each, Declaration))
