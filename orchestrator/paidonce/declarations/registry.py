"""The declarations of this process by name; a duplicate name fails at import, naming both files."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from paidonce.declarations.declaration import AgentDeclaration, Declaration, StepDeclaration
from paidonce_models.errors import DeclarationError, UnknownAgent

AnyAgent = AgentDeclaration[..., Any]
AnyStep = StepDeclaration[..., Any]


class Registry:
    """Agents by name and version, steps and tools by name."""

    def __init__(self) -> None:
        self._agents: dict[str, dict[str, AnyAgent]] = {}
        self._steps: dict[str, AnyStep] = {}

    def add_step(self, declaration: AnyStep) -> None:
        """Register a step or tool. Raises ``DeclarationError`` if another function has its name."""
        self._refuse_duplicate(self._steps.get(declaration.name), declaration)
        self._steps[declaration.name] = declaration

    def add_agent(self, declaration: AnyAgent) -> None:
        """Register an agent; several versions of one name may be registered."""
        versions = self._agents.setdefault(declaration.name, {})
        self._refuse_duplicate(versions.get(declaration.version), declaration)
        versions[declaration.version] = declaration

    def _refuse_duplicate(self, known: Declaration[..., Any] | None, new: Declaration[..., Any]) -> None:
        if known is None or known.is_local or new.is_local or known.place == new.place:
            return
        remedy = "give one of them version=" if new.kind == "agent" else "rename one or give it name="
        raise DeclarationError(f"{new.kind} name {new.name!r} is used twice: {known.place} and {new.place}; {remedy}")

    def step(self, name: str) -> AnyStep | None:
        """The step or tool of that name, if this process holds it."""
        return self._steps.get(name)

    def agent(self, name: str, version: str | None = None) -> AnyAgent | None:
        """The agent of that name and version, or its newest version; ``None`` if this process does not hold it."""
        versions = self._agents.get(name)
        if not versions:
            return None
        return versions.get(version) if version is not None else list(versions.values())[-1]

    def known_agent(self, name: str) -> AnyAgent:
        """The agent of that name. Raises ``UnknownAgent`` naming the known ones."""
        found = self.agent(name)
        if found is None:
            known = ", ".join(sorted(self._agents)) or "none"
            raise UnknownAgent(f"no agent is named {name!r}; the loaded modules hold: {known}")
        return found

    @property
    def agents(self) -> Iterable[AnyAgent]:
        """All agents, every version."""
        return [declaration for versions in self._agents.values() for declaration in versions.values()]

    @property
    def steps(self) -> Iterable[AnyStep]:
        """All steps and tools."""
        return list(self._steps.values())


default_registry = Registry()
"""Filled by the decorators at import; the only place where importing a module leaves a trace."""
