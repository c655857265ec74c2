"""Whether the declarations of a process hold together, before any of them runs.

A worker looks at all of its agents, steps and tools: annotations resolve, their types have a form to be stored in,
defaults too. What is wrong is one error that names the function, its place, the annotation and what to do: found in
the middle of a run it would stop that run, after it has paid.
"""

from __future__ import annotations

from collections.abc import Callable

from paidonce.declarations import Declaration
from paidonce.registry import Registry
from paidonce_models.errors import ConfigurationError, PaidonceError


def refuse_unfit(registry: Registry) -> None:
    """Raise ``ConfigurationError`` naming all declarations that cannot be used."""
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
