"""``paidonce policies``: whether the policy file fits the code, and which policy a tool has and why."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import click

from paidonce.cli.documents.policy_documents import (
    Held,
    checked_document,
    checked_table,
    held_by,
    held_provider,
    shown_document,
    shown_table,
)
from paidonce.cli.output import json_option, print_json, say, tell
from paidonce.cli.tables import output_console
from paidonce.configuration.module_loading import load_modules
from paidonce.declarations.policy_checks import idle_targets, misfits
from paidonce.declarations.registry import AnyStep, default_registry
from paidonce.policies.file.parsing import policies_from_settings
from paidonce.policies.misspellings import nearest
from paidonce.policies.policy_book import PolicyBook
from paidonce.policies.targets import PROVIDER_PREFIX, names_of
from paidonce.settings import Settings, load_settings
from paidonce_models.errors import ConfigurationError, InvalidInput, NotFound


@click.group()
def policies() -> None:
    """Check paidonce.yaml against the code, and show the policy of a tool.

    Policies are timeouts, retries and circuit breakers. PAIDONCE_POLICIES names the file; decorators set single keys.
    """


@policies.command()
@click.argument("modules", nargs=-1)
@click.option(
    "--all", "are_all", is_flag=True, help="MODULES are all there are: a target that matches nothing is an error."
)
@json_option
def check(modules: tuple[str, ...], are_all: bool, as_json: bool) -> None:
    """Check the policy file against the tools and steps of MODULES, and list the policy of each.

    The default for MODULES is PAIDONCE_AGENTS. Exits with code 2 if anything is wrong.
    """
    settings = load_settings()
    book = policies_from_settings(settings)
    steps = _loaded_steps(settings, modules)
    problems = misfits(book, steps)
    held = list(_resolved(book, steps))
    notes = _different_breakers(held)
    for target in idle_targets(book, steps, settings.provider_hosts):
        if target.name.startswith(PROVIDER_PREFIX):
            notes.append(f"{target.source} names a provider that Paidonce does not know; check the name")
        elif are_all:
            near = nearest(target.name, [name for each in steps for name in names_of(each.name)])
            problems.append(f"{target.source} matches no tool and no step{near or ';'} correct the name or remove it")
        else:
            notes.append(f"{target.source} matches nothing in these modules")
    if problems:
        if not as_json:
            output_console().print(checked_table(held))
        raise ConfigurationError("; ".join(problems), problems=problems)
    if as_json:
        print_json(checked_document(book.file, held, notes))
        return
    output_console().print(checked_table(held))
    for note in notes:
        say(f"Note: {note}.")
    say(f"{book.file or 'No policy file, defaults only'}: nothing is wrong.")


@policies.command()
@click.argument("tool", metavar="TOOL")
@click.argument("modules", nargs=-1)
@json_option
def show(tool: str, modules: tuple[str, ...], as_json: bool) -> None:
    """Show every policy key of TOOL, with its value and the source of the value.

    TOOL is the function's name or the full name of a tool or step, or provider:NAME. The default for MODULES is
    PAIDONCE_AGENTS.
    """
    settings = load_settings()
    book = policies_from_settings(settings)
    steps = _loaded_steps(settings, modules)
    if tool.startswith(PROVIDER_PREFIX):
        held = held_provider(book, tool.removeprefix(PROVIDER_PREFIX), steps)
    else:
        held = held_by(book, _find(tool, steps))
    if as_json:
        print_json(shown_document(held, settings))
        return
    tell(f"{held.resolved.target} ({held.kind})")
    tell()
    output_console().print(shown_table(held, settings))


def _loaded_steps(settings: Settings, modules: Sequence[str]) -> list[AnyStep]:
    names = tuple(modules) or settings.agents
    if not names:
        raise ConfigurationError(
            "name the modules that hold the tools, as in `paidonce policies check my_agents.py`, or set PAIDONCE_AGENTS"
        )
    load_modules(names)
    return sorted(default_registry.steps, key=lambda declaration: declaration.name)


def _resolved(book: PolicyBook, steps: Sequence[AnyStep]) -> Iterator[Held]:
    """The policy of each step that can be resolved, then those of their providers."""
    for declaration in steps:
        with contextlib.suppress(ConfigurationError):
            yield held_by(book, declaration)
    for provider in dict.fromkeys(each.provider for each in steps if each.provider is not None):
        with contextlib.suppress(ConfigurationError):
            yield held_provider(book, provider, steps)


def _different_breakers(held: Iterable[Held]) -> list[str]:
    """Circuits whose tools disagree about when they open: each call then follows its own tool's policy.

    What an open circuit does to a step (``when_open``) may differ.
    """
    first: dict[str, Held] = {}
    notes = []
    for each in held:
        breaker = each.resolved.policy.breaker
        if breaker is None:
            continue
        other = first.setdefault(each.resolved.circuit, each)
        theirs = other.resolved.policy.breaker
        if theirs is not None and replace(theirs, when_open=breaker.when_open) != breaker:
            notes.append(
                f"{other.resolved.target} and {each.resolved.target} share the circuit {each.resolved.circuit!r} under "
                "different breakers; give them one policy, or separate circuits"
            )
    return notes


def _find(name: str, steps: Sequence[AnyStep]) -> AnyStep:
    found = [each for each in steps if each.name == name] or [each for each in steps if name in names_of(each.name)]
    if len(found) > 1:
        raise InvalidInput(f"{name!r} may be any of {', '.join(each.name for each in found)}; give the full name")
    if not found:
        known = ", ".join(each.name for each in steps) or "none"
        near = nearest(name, [each for step in steps for each in names_of(step.name)])
        raise NotFound(f"no tool or step is named {name!r}{near or ';'} the loaded modules hold: {known}")
    return found[0]
