"""Whether policies fit the code: what is refused before anything runs."""

from __future__ import annotations

import asyncio

import pytest

from paidonce import step, tool
from paidonce.declarations.inline_calls import tools_called_by
from paidonce.declarations.policy_checks import idle_targets, misfits, refuse_misfits
from paidonce.policies.file.parsing import parse_policies
from paidonce_models.errors import ConfigurationError


@tool
async def fetch(url: str) -> str: ...


@tool(when_open="park")
def parked(url: str) -> str: ...


@tool
def unused(url: str) -> str: ...


@step
async def reads(url: str) -> str:
    found = await asyncio.gather(fetch(url), fetch(url + "/2"))
    return "".join(found) + str([unused])


@step
def calls(url: str) -> str:
    return str(parked.call(url))


@tool
def nested(url: str) -> str:
    def inner() -> str:
        return str(parked.call(url))

    return inner()


def test_tools_are_seen_that_a_body_calls_and_only_those() -> None:
    local = tool(name="local")(lambda url: url)

    @step
    def closes_over(url: str) -> str:
        return str(local.call(url))

    assert {name.rpartition(".")[2] for name in tools_called_by(reads)} == {"fetch"}
    assert tools_called_by(calls) == {parked.name}
    assert tools_called_by(nested) == {parked.name}
    assert tools_called_by(fetch) == frozenset()
    assert tools_called_by(closes_over) == {local.name}


def test_park_is_refused_for_a_tool_that_a_step_calls_inside_its_body() -> None:
    book = parse_policies("", "paidonce.yaml")
    first, second = misfits(book, [reads, calls, nested, parked, fetch])
    assert first.startswith(f"{calls.name} at ") and second.startswith(f"{nested.name} at ")
    assert f"calls {parked.name} inside its body" in first
    assert "when_open is 'park' for it (decorator at " in first
    assert "leave when_open out" in first
    with pytest.raises(ConfigurationError, match=r"inside its body.*; .*inside its body"):
        refuse_misfits(book, [calls, nested, parked])


def test_park_that_the_file_says_is_refused_too_and_the_default_is_not() -> None:
    assert misfits(parse_policies("", "paidonce.yaml"), [reads, fetch]) == []
    (found,) = misfits(
        parse_policies("policies: {search: {breaker: {when_open: park}}}\ntargets: {fetch: search}\n", "paidonce.yaml"),
        [reads, fetch],
    )
    assert "when_open is 'park' for it (paidonce.yaml:1 policies.search" in found


def test_park_is_refused_for_no_tool_without_a_breaker() -> None:
    switched_off = "targets: {parked: {breaker: false}}\n"
    assert misfits(parse_policies(switched_off, "paidonce.yaml"), [calls, parked]) == []


def test_idle_targets_are_those_of_nothing_held_here() -> None:
    text = """\
targets:
  fetch: {timeout: 5s}
  absent: {timeout: 5s}
  "absent_*": {timeout: 5s}
  provider:openai: {breaker: {probes: 2}}
  provider:mine: {breaker: {probes: 2}}
  provider:absent: {breaker: {probes: 2}}
"""
    found = idle_targets(parse_policies(text, "paidonce.yaml"), [fetch], [("models.example", "mine")])
    assert [target.name for target in found] == ["absent", "absent_*", "provider:absent"]
