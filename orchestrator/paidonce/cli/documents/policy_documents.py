"""Policies as ``paidonce policies`` prints them: what holds for whom, as JSON and as tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from paidonce.cli.documents.json_documents import Document
from paidonce.cli.tables import SafeTable
from paidonce.declarations.registry import AnyStep
from paidonce.policies import ResolvedPolicy
from paidonce.policies.keys import BREAKER, CIRCUIT, FIELDS, POLICY, RETRY_BUDGET, part_of, value_in, value_text
from paidonce.policies.policy_book import PolicyBook
from paidonce.settings import Settings

PROVIDER: Final = "provider"
_OF_PROVIDERS: Final = (BREAKER, "park")
"""What a provider's circuit goes by; attempts and their time belong to the steps that call it."""
_ATTEMPT: Final = "timeout.attempt"
_ATTEMPT_SETTING: Final = "PAIDONCE_STEP_TIMEOUT_SECONDS"


@dataclass(frozen=True, kw_only=True)
class Held:
    """What holds for a tool, a step or a provider."""

    resolved: ResolvedPolicy
    kind: str
    provider: str | None = None
    place: str | None = None


@dataclass(frozen=True, kw_only=True)
class Line:
    """One key. ``value`` is for programs: durations are seconds."""

    key: str
    value: object
    text: str
    source: str


def held_by(book: PolicyBook, declaration: AnyStep) -> Held:
    """What holds for a tool or step, its place told from the current folder."""
    place = declaration.short_place
    resolved = book.resolve(
        name=declaration.name,
        kind=declaration.kind,
        policy=declaration.policy,
        keys=declaration.policy_keys,
        place=place,
    )
    return Held(resolved=resolved, kind=declaration.kind, provider=declaration.provider, place=place)


def held_provider(book: PolicyBook, name: str, steps: Iterable[AnyStep]) -> Held:
    """What holds for a provider, which has a breaker if one of these steps names it."""
    places = [declaration.short_place for declaration in steps if declaration.provider == name]
    return Held(resolved=book.resolve_provider(name, declared_at=places[0] if places else None), kind=PROVIDER)


def checked_document(file: str | None, held: Iterable[Held], notes: Sequence[str]) -> Document:
    """What ``policies check --json`` prints."""
    return {"file": file, "targets": [_summary(each) for each in held], "notes": list(notes)}


def checked_table(held: Iterable[Held]) -> SafeTable:
    """A line for each tool, step and provider."""
    table = SafeTable("name", "kind", "policy", box=None, pad_edge=False)
    table.add_column("attempts", justify="right")
    table.add_column("when open")
    table.add_column("circuit")
    for each in held:
        summary = _summary(each)
        table.add_row(
            str(summary["name"]),
            each.kind,
            str(summary["policy"]),
            str(summary["max_attempts"]),
            str(summary["when_open"] or "no breaker"),
            str(summary["circuit"] or ""),
        )
    return table


def shown_document(held: Held, settings: Settings) -> Document:
    """What ``policies show --json`` prints."""
    return {
        "name": held.resolved.target,
        "kind": held.kind,
        "provider": held.provider,
        "keys": [
            {"key": line.key, "value": line.value, "text": line.text, "source": line.source}
            for line in _lines(held, settings)
        ],
    }


def shown_table(held: Held, settings: Settings) -> SafeTable:
    """Each key with its value and source."""
    table = SafeTable("key", "value", "source", box=None, pad_edge=False)
    for line in _lines(held, settings):
        table.add_row(line.key, line.text, line.source)
    return table


def _summary(held: Held) -> Document:
    policy = held.resolved.policy
    return {
        "name": held.resolved.target,
        "kind": held.kind,
        "place": held.place,
        "policy": policy.name,
        "max_attempts": policy.retry.max_attempts,
        "when_open": None if policy.breaker is None else policy.breaker.when_open,
        "circuit": None if policy.breaker is None else held.resolved.circuit,
        "provider": held.provider,
    }


def _lines(held: Held, settings: Settings) -> Iterator[Line]:
    """Every key that holds, in the order of the documentation; a part that is off is one line."""
    policy, sources = held.resolved.policy, held.resolved.sources
    yield _line(POLICY, policy.name, sources[POLICY])
    if held.provider is not None:
        yield _line(PROVIDER, held.provider, f"decorator at {held.place}")
    off = {part for part in (BREAKER, RETRY_BUDGET) if getattr(policy, part) is None}
    told = set()
    for path in FIELDS:
        part = part_of(path)
        if held.kind == PROVIDER and part not in _OF_PROVIDERS:
            continue
        if part not in off:
            value, source = value_in(policy, path), sources[path]
            if path == _ATTEMPT and value is None:
                value, source = settings.step_timeout_seconds, _ATTEMPT_SETTING
            yield _line(path, value, source)
        elif part not in told:
            told.add(part)
            yield _line(part, False, sources[part])
    if policy.breaker is not None:
        yield _line(CIRCUIT, held.resolved.circuit, sources[CIRCUIT])


def _line(path: str, value: object, source: str) -> Line:
    shown = list(value) if isinstance(value, tuple) else value
    return Line(key=path, value=shown, text=value_text(path, value), source=source)
