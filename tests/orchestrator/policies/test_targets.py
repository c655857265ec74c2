"""Whom a target names, and which targets have a say."""

from __future__ import annotations

import pytest

from paidonce.policies.targets import Target, matching, names_of


def targets(*names: str) -> dict[str, Target]:
    return {name: Target(name=name, source=f"paidonce.yaml:1 targets.{name}", keys={}) for name in names}


def order(held: dict[str, Target], name: str) -> list[str]:
    return [target.name for target in matching(held, name)]


def test_things_go_by_their_full_name_and_by_their_functions() -> None:
    assert names_of("shop.tools.search") == ("shop.tools.search", "search")
    assert names_of("search") == ("search",)
    assert names_of("provider:api.internal") == ("provider:api.internal",)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("search", "shop.search"), ["shop.search", "search"]),
        (("*", "sea*", "search"), ["search", "sea*"]),
        (("*", "shop.*", "s*"), ["shop.*"]),
        (("s*h", "*rch"), ["*rch"]),
        (("sear?h", "sea[rx]ch"), ["sea[rx]ch"]),
        (("S*", "Search", "other"), []),
        (("provider:*", "provider:search"), []),
    ],
)
def test_exact_names_go_first_then_the_longest_pattern_alone(names: tuple[str, ...], expected: list[str]) -> None:
    assert order(targets(*names), "shop.search") == expected


def test_of_equally_long_patterns_the_first_counts() -> None:
    assert order(targets("s*rch", "se*ch"), "search") == ["s*rch"]
    assert order(targets("se*ch", "s*rch"), "search") == ["se*ch"]


def test_patterns_of_tools_never_name_providers() -> None:
    held = targets("*", "provider:*", "provider:openai", "p*")
    assert order(held, "provider:openai") == ["provider:openai", "provider:*"]
    assert order(held, "provider:groq") == ["provider:*"]
    assert order(held, "m.pay") == ["p*"]
