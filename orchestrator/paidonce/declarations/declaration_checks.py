"""Checks the declarations of a process before any of them runs.

A worker checks all of its agents, steps and tools: annotations resolve, their types have a stored form, and so do
defaults. An error names the function, its place, the annotation and what to do. Found only in the middle of a run, the
fault would stop that run after it has paid.
"""

from __future__ import annotations

from collections.abc import Callable

from paidonce.declarations.declaration import Declaration
from paidonce.declarations.registry import Registry
from paidonce_models.errors import ConfigurationError, PaidonceError


def refuse_unfit(registry: Registry) -> None:
    """Raise ``ConfigurationError`` naming all unusable declarations."""
    declarations: list[Declaration[..., object]] = [*registry.agents, *registry.steps]
    problems = [
        f"{declaration.kind} {declaration.name!r} ({declaration.short_place}): {problem}"
        for declaration in declarations
        for problem in _problems(declaration)
    ]
    if problems:
        raise ConfigurationError("; ".join(dict.fromkeys(problems)), problems=problems)


def _problems(declaration: Declaration[..., object]) -> list[str]:
    parameters = declaration.parameters
    unresolved = _problem(lambda: parameters.hints)
    if unresolved is not None:
        return [unresolved]
    found = [_problem(lambda: parameters.result, "the annotation of what it returns"), *parameters.misfits()]
    return [each for each in found if each is not None]


def _problem(look: Callable[[], object], what: str = "") -> str | None:
    try:
        look()
    except PaidonceError as error:
        return f"{what}: {error.message}" if what else error.message
    except Exception as error:  # noqa: BLE001 - a type of the user's makes its own schema
        return f"{what or 'an annotation'} cannot be used: {type(error).__name__}"
    return None
