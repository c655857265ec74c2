"""What a target names: one tool or step, a pattern of them, or a provider.

Owns the matching of targets to tools, steps and providers, and its order of precedence.
Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from paidonce.policies.precedence import Layer

PROVIDER_PREFIX: Final = "provider:"
_PATTERN_CHARACTERS: Final = "*?["


@dataclass(frozen=True, kw_only=True)
class Target:
    """An entry under ``targets``."""

    name: str
    """As written: a name, a pattern, or ``provider:`` and one of these."""
    source: str
    """Where it is written."""
    keys: Layer
    """Its own keys, ``policy`` and ``circuit`` among them."""

    @property
    def is_pattern(self) -> bool:
        """Whether it may match several."""
        return any(character in self.name for character in _PATTERN_CHARACTERS)

    def matches(self, names: Iterable[str]) -> bool:
        """Whether it matches one of these. Targets of providers never match tools, nor the reverse."""
        return any(
            self.name == name or (self.is_pattern and _same_sort(self.name, name) and fnmatchcase(name, self.name))
            for name in names
        )


def names_of(name: str) -> tuple[str, ...]:
    """The names by which a target may match: the full name first, then the bare name of the function."""
    if name.startswith(PROVIDER_PREFIX):
        return (name,)
    return tuple(dict.fromkeys((name, name.rpartition(".")[2])))


def matching(targets: Mapping[str, Target], name: str) -> Sequence[Target]:
    """The targets that match one tool, step or provider, in order of precedence.

    Exact ones first, the full name before the bare one; then the longest pattern, of equally long ones the first.
    Shorter patterns are ignored.
    """
    names = names_of(name)
    exact = [targets[each] for each in names if each in targets and not targets[each].is_pattern]
    patterns = [target for target in targets.values() if target.is_pattern and target.matches(names)]
    return [*exact, *(() if not patterns else (max(patterns, key=lambda target: len(target.name)),))]


def _same_sort(pattern: str, name: str) -> bool:
    return pattern.startswith(PROVIDER_PREFIX) == name.startswith(PROVIDER_PREFIX)
