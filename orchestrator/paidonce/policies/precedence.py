"""Merges the layers of one target, key by key, and builds a policy from the result.

Owns precedence and defaults. A *layer* is what one place declares: values by key path, each with its source. Layers are
merged in order of precedence, the first that has a key wins, and a key that no layer has gets its default. Pure:
``policy_book`` chooses the layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from paidonce.policies.keys import (
    BREAKER,
    CIRCUIT,
    FIELDS,
    MAX_ATTEMPTS,
    NOT_LESS,
    PARTS,
    POLICY,
    RETRY_BUDGET,
    default_value,
    part_of,
    value_text,
)
from paidonce.policies.policy import Policy
from paidonce.policies.schema import Section
from paidonce_models.errors import ConfigurationError

DEFAULT_SOURCE: Final = "default"
DEFAULT_NAME: Final = "default"
ASKED_ATTEMPTS: Final = 3
"""``retry.max_attempts`` if a layer has other keys of ``retry`` but not this one, as in ``Retry()``."""

_SWITCHES: Final = (BREAKER, RETRY_BUDGET)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A key's value and its source."""

    value: object
    source: str


Layer = Mapping[str, Entry]


def written_keys(section: Section) -> dict[str, object]:
    """The contents of a section by key path. A key inside a part that can be switched also switches it on."""
    values: dict[str, object] = {}
    _collect(section, "", values)
    return values


def _collect(section: Section, prefix: str, values: dict[str, object]) -> None:
    for name in type(section).model_fields:
        if name not in section.model_fields_set:
            continue
        path, value = f"{prefix}{name}", getattr(section, name)
        if isinstance(value, Section):
            if path in _SWITCHES:
                values[path] = True
            _collect(value, f"{path}.", values)
        else:
            values[path] = value


def layer(values: Iterable[tuple[str, object]], source_of: Callable[[str], str]) -> dict[str, Entry]:
    """A layer of written keys; ``source_of`` returns the source of a key path."""
    return {path: Entry(value=value, source=source_of(path)) for path, value in values}


def merged(layers: Sequence[Layer]) -> dict[str, Entry]:
    """Each key from the first layer that has it."""
    entries: dict[str, Entry] = {}
    for each in reversed(layers):
        entries.update(each)
    return entries


def contradictions(entries: Layer) -> list[str]:
    """Written values that contradict each other; each text names both sides and their sources."""
    found = []
    for larger, smaller in NOT_LESS:
        high, low = entries.get(larger), entries.get(smaller)
        if high is None or low is None or not _less(high.value, low.value):
            continue
        found.append(
            f"{larger} is {value_text(larger, high.value)} ({high.source}) and {smaller} is "
            f"{value_text(smaller, low.value)} ({low.source}); expected {larger} to be at least {smaller}, change one"
        )
    return found


def complete(entries: Layer, *, breaker: Entry, circuit: str) -> dict[str, Entry]:
    """All keys that apply, without those of switched-off parts; ``breaker`` (on or off) and ``circuit`` are defaults.

    A part that is off keeps the entry of its switch, so that its source is known.
    """
    complete = dict(entries)

    def default(path: str, value: object) -> Entry:
        return complete.setdefault(path, Entry(value=value, source=DEFAULT_SOURCE))

    default(POLICY, DEFAULT_NAME)
    default(CIRCUIT, circuit)
    complete.setdefault(BREAKER, breaker)
    asked = any(part_of(path) == "retry" for path in entries)
    attempts = default(MAX_ATTEMPTS, ASKED_ATTEMPTS if asked else default_value(MAX_ATTEMPTS))
    if attempts.value == 1:  # no retries to limit, whatever was written
        complete[RETRY_BUDGET] = Entry(value=False, source=attempts.source)
    default(RETRY_BUDGET, True)
    for path in FIELDS:
        default(path, default_value(path))
    for larger, smaller in NOT_LESS:
        if larger not in entries and _less(complete[larger].value, complete[smaller].value):
            complete[larger] = Entry(value=complete[smaller].value, source=DEFAULT_SOURCE)
    off = {part for part in _SWITCHES if complete[part].value is False}
    return {path: entry for path, entry in complete.items() if path in _SWITCHES or part_of(path) not in off}


def built(entries: Layer) -> Policy:
    """The policy of complete entries."""
    parts: dict[str, Any] = dict.fromkeys(_SWITCHES)
    for part, kind in PARTS.items():
        if part not in _SWITCHES or entries[part].value:
            parts[part] = kind(**{name: entries[path].value for path, name in FIELDS.items() if part_of(path) == part})
    return Policy(name=str(entries[POLICY].value), **parts)


def refuse_contradictions(entries: Layer, target: str) -> None:
    """Raise ``ConfigurationError`` if the layers of a target contradict each other."""
    found = contradictions(entries)
    if found:
        raise ConfigurationError(f"policy of {target}: {'; '.join(found)}")


def _less(value: object, other: object) -> bool:
    return isinstance(value, float) and isinstance(other, float) and value < other
