"""Checks whether policies fit the code that a process holds, before any of it runs.

``misfits`` are errors; ``idle_targets`` are targets without any effect here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from paidonce.declarations.inline_calls import tools_called_by
from paidonce.declarations.registry import AnyStep
from paidonce.policies.policy import ResolvedPolicy
from paidonce.policies.policy_book import PolicyBook
from paidonce.policies.precedence import DEFAULT_SOURCE
from paidonce.policies.targets import Target
from paidonce.usage.provider_hosts_setting import API_OF_PROVIDER
from paidonce_models.errors import ConfigurationError

_WHEN_OPEN = "breaker.when_open"


def misfits(book: PolicyBook, declarations: Sequence[AnyStep]) -> list[str]:
    """What is wrong with the policies of these steps, tools and the providers they name; one sentence each."""
    problems: list[str] = []
    resolved: dict[str, ResolvedPolicy] = {}
    for declaration in declarations:
        try:
            resolved[declaration.name] = book.resolve(
                name=declaration.name,
                kind=declaration.kind,
                policy=declaration.policy,
                keys=declaration.policy_keys,
                place=declaration.short_place,
            )
            if declaration.provider is not None:
                book.resolve_provider(declaration.provider, declared_at=declaration.short_place)
        except ConfigurationError as error:
            problems.append(error.message)
    problems.extend(_parked_inline(declarations, resolved))
    return list(dict.fromkeys(problems))


def refuse_misfits(book: PolicyBook, declarations: Sequence[AnyStep]) -> None:
    """Raises ``ConfigurationError`` naming everything that is wrong."""
    problems = misfits(book, declarations)
    if problems:
        raise ConfigurationError("; ".join(problems), problems=problems)


def idle_targets(
    book: PolicyBook, declarations: Iterable[AnyStep], provider_hosts: Iterable[tuple[str, str]]
) -> tuple[Target, ...]:
    """The targets that match none of these, nor a known or configured provider."""
    held = list(declarations)
    declared = {each.provider for each in held if each.provider is not None}
    known_providers = {*declared, *API_OF_PROVIDER, *(provider for _, provider in provider_hosts)}
    return book.unmatched([each.name for each in held], known_providers)


def _parked_inline(declarations: Sequence[AnyStep], resolved: Mapping[str, ResolvedPolicy]) -> Iterator[str]:
    """``park`` for a tool means a run that sleeps; inside a step nothing can sleep."""
    written = {name: source for name, policy in resolved.items() if (source := _park_is_written(policy)) is not None}
    if not written:
        return
    for declaration in declarations:
        for tool in sorted(tools_called_by(declaration) & written.keys()):
            yield (
                f"{declaration.name} at {declaration.short_place} calls {tool} inside its body, where no run can "
                f"sleep, but when_open is 'park' for it ({written[tool]}); await it from the agent, or leave when_open "
                "out: it then raises CircuitOpen inside a step, and parks as a separate step"
            )


def _park_is_written(policy: ResolvedPolicy) -> str | None:
    source = policy.sources.get(_WHEN_OPEN, DEFAULT_SOURCE)
    breaker = policy.policy.breaker
    return source if breaker is not None and breaker.when_open == "park" and source != DEFAULT_SOURCE else None
