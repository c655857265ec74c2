"""The policy of each tool, step and provider of this process.

Owns the resolution of policies: collects the layers of the decorator, the targets and their policies in order of
precedence, and caches the result. Immutable after loading; needs no clock, store or broker. ``file.parsing`` creates it
from a file.

A layer may set single keys and name a policy; its own keys take precedence over those of the policy it names, and both
over every layer of lower precedence:

    decorator > target of the full name > target of the function's name > longest pattern > default
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final, Protocol

from paidonce.policies.keys import BREAKER, CIRCUIT, POLICY
from paidonce.policies.misspellings import nearest
from paidonce.policies.policy import DecoratorKeys, ResolvedPolicy, WhenOpen
from paidonce.policies.precedence import (
    DEFAULT_SOURCE,
    Entry,
    Layer,
    built,
    complete,
    layer,
    merged,
    refuse_contradictions,
)
from paidonce.policies.targets import PROVIDER_PREFIX, Target, matching, names_of
from paidonce_models.errors import ConfigurationError

TOOL: Final = "tool"
BREAKERS_OFF_SOURCE: Final = "PAIDONCE_BREAKERS=off"


class Declared(Protocol):
    """What a declaration of a step or tool says about its policy."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def policy(self) -> str | None: ...
    @property
    def policy_keys(self) -> DecoratorKeys: ...
    @property
    def place(self) -> str: ...


class PolicyBook:
    """Policies by name, and targets by what they name. Thread-safe."""

    def __init__(
        self,
        *,
        file: str | None = None,
        policies: Mapping[str, Layer] | None = None,
        targets: Mapping[str, Target] | None = None,
    ) -> None:
        """``file`` is its name in errors; ``None`` if there is no file."""
        self.file = file
        self._policies = {} if policies is None else dict(policies)
        self._targets = {} if targets is None else dict(targets)
        self._known: dict[tuple[object, ...], ResolvedPolicy] = {}

    @property
    def policy_names(self) -> tuple[str, ...]:
        """The policies of the file, in its order."""
        return tuple(self._policies)

    @property
    def target_names(self) -> tuple[str, ...]:
        """The targets of the file, in its order."""
        return tuple(self._targets)

    def resolve(
        self,
        *,
        name: str,
        kind: str,
        policy: str | None = None,
        keys: DecoratorKeys = (),
        place: str = "",
        breakers_enabled: bool = True,
    ) -> ResolvedPolicy:
        """The policy of a step or tool. ``policy``, ``keys`` and ``place`` are its decorator's.

        ``breakers_enabled=False`` turns its breaker off, whatever is written. Equal arguments return the same object.
        Raises ``ConfigurationError`` if the decorator names a policy that does not exist, or if keys of several layers
        contradict each other.
        """
        question = (name, kind, policy, keys, place, breakers_enabled)
        known = self._known.get(question)
        if known is not None:
            return known
        said = f"decorator at {place}" if place else "decorator"
        named = () if policy is None else ((POLICY, policy),)
        decorator = layer((*keys, *named), lambda path: said)
        breaker = Entry(value=kind == TOOL, source=DEFAULT_SOURCE)
        return self._keep(question, name, decorator, breaker, breakers_enabled)

    def resolve_declaration(self, declaration: Declared, *, breakers_enabled: bool = True) -> ResolvedPolicy:
        """``resolve`` for a declared step or tool."""
        return self.resolve(
            name=declaration.name,
            kind=declaration.kind,
            policy=declaration.policy,
            keys=declaration.policy_keys,
            place=declaration.place,
            breakers_enabled=breakers_enabled,
        )

    def resolve_provider(
        self,
        name: str,
        *,
        declared_at: str | None = None,
        when_open: WhenOpen | None = None,
        breakers_enabled: bool = True,
    ) -> ResolvedPolicy:
        """The policy of a provider such as ``openai``; its target and circuit are ``provider:openai``.

        It has a breaker if a target says so, or if a step names it: ``@step(provider=)`` at ``declared_at``, possibly
        with its own ``when_open``. Raises as ``resolve`` does.
        """
        question = (PROVIDER_PREFIX, name, declared_at, when_open, breakers_enabled)
        known = self._known.get(question)
        if known is not None:
            return known
        said = f"decorator at {declared_at}"
        decorator = layer(() if when_open is None else (("breaker.when_open", when_open),), lambda path: said)
        breaker = Entry(value=declared_at is not None, source=DEFAULT_SOURCE if declared_at is None else said)
        return self._keep(question, f"{PROVIDER_PREFIX}{name}", decorator, breaker, breakers_enabled)

    def unmatched(self, names: Iterable[str], providers: Iterable[str] = ()) -> tuple[Target, ...]:
        """The targets that match none of these tools and steps (by full name), nor one of these providers."""
        all_names = [each for name in names for each in names_of(name)]
        all_names += [f"{PROVIDER_PREFIX}{name}" for name in providers]
        return tuple(target for target in self._targets.values() if not target.matches(all_names))

    def _keep(
        self, question: tuple[object, ...], name: str, decorator: Layer, breaker: Entry, breakers_enabled: bool
    ) -> ResolvedPolicy:
        layers: list[Layer] = []
        for keys in (decorator, *(target.keys for target in matching(self._targets, name))):
            layers.append(keys)
            named = keys.get(POLICY)
            if named is not None:
                layers.append(self._policy(str(named.value), name, named.source))
        written = merged(layers)
        refuse_contradictions(written, name)
        if not breakers_enabled:
            written[BREAKER] = Entry(value=False, source=BREAKERS_OFF_SOURCE)
        entries = complete(written, breaker=breaker, circuit=name)
        resolved = ResolvedPolicy(
            target=name,
            circuit=str(entries[CIRCUIT].value),
            policy=built(entries),
            sources=MappingProxyType({path: entry.source for path, entry in entries.items()}),
        )
        return self._known.setdefault(question, resolved)

    def _policy(self, policy: str, name: str, source: str) -> Layer:
        found = self._policies.get(policy)
        if found is not None:
            return found
        known = ", ".join(self._policies) or "none"
        where = "there is no policy file" if self.file is None else f"those of {self.file} are: {known}"
        raise ConfigurationError(
            f"policy of {name}: {source} names {policy!r}, which does not exist{nearest(policy, self._policies)} "
            f"({where}); declare it under `policies:` in paidonce.yaml, or correct the name"
        )
