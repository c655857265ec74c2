"""``paidonce policies``: the file against the code, and what holds for one tool."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Project

TOOLS = """
from paidonce import step, tool


@tool(breaker={"window": "10s"}, retry=3)
def web_search(query: str) -> list[str]: ...


@tool
def crm_find(name: str) -> str: ...


@tool(breaker=False)
def clock() -> str: ...


@step(provider="openai")
async def plan(question: str) -> str: ...
"""
FILE = """\
policies:
  search: {timeout: 10s, breaker: {probes: 2}}
targets:
  web_search: search
  "crm_*": {policy: search, circuit: crm}
"""


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Project]:
    """A folder with tools and a policy file; these commands need no store and no broker."""
    (tmp_path / "tools.py").write_text(TOOLS)
    made = Project(tmp_path)
    write(made, FILE)
    yield made
    assert not made.home.exists()


def write(shop: Project, text: str) -> None:
    (shop.folder / "paidonce.yaml").write_text(text)


def keys(shop: Project, *arguments: str, **settings: str) -> dict[str, Any]:
    """Each key that ``show`` prints, by its path."""
    done = shop.paidonce("policies", "show", *arguments, "--json", **settings)
    assert done.code == 0, done.err
    return {line["key"]: line for line in done.document["keys"]}


def test_check_lists_every_tool_and_step_with_its_policy(shop: Project) -> None:
    done = shop.paidonce("policies", "check", "--all", "tools.py", "--json")
    assert done.code == 0, done.err
    assert (done.document["file"], done.document["notes"]) == ("paidonce.yaml", [])
    assert [
        (each["name"], each["kind"], each["policy"], each["max_attempts"], each["when_open"], each["circuit"])
        for each in done.document["targets"]
    ] == [
        ("tools.clock", "tool", "default", 1, None, None),
        ("tools.crm_find", "tool", "search", 1, "park", "crm"),
        ("tools.plan", "step", "default", 1, None, None),
        ("tools.web_search", "tool", "search", 3, "park", "tools.web_search"),
        ("provider:openai", "provider", "default", 1, "park", "provider:openai"),
    ]
    assert done.document["targets"][2]["provider"] == "openai"
    assert done.document["targets"][3]["place"] == "tools.py:5"
    told = shop.paidonce("policies", "check", "tools.py")
    assert (told.code, told.err) == (0, "paidonce.yaml: nothing is wrong.\n")
    assert [line.split()[0] for line in told.out.splitlines()[1:]] == [
        each["name"] for each in done.document["targets"]
    ]


def test_a_target_that_matches_nothing_is_wrong_only_if_the_modules_are_all(shop: Project) -> None:
    write(shop, "targets:\n  web_serch: {timeout: 3s}\n  provider:opnai: {breaker: true}\n")
    done = shop.paidonce("policies", "check", "tools.py", "--json")
    assert done.code == 0
    assert done.document["notes"] == [
        "paidonce.yaml:2 targets.web_serch matches nothing in these modules",
        "paidonce.yaml:3 targets.provider:opnai names a provider that Paidonce does not know; check the name",
    ]
    done = shop.paidonce("policies", "check", "--all", "tools.py", "--json")
    assert (done.code, done.error["code"]) == (2, "configuration")
    assert done.error["details"]["problems"] == [
        "paidonce.yaml:2 targets.web_serch matches no tool and no step, did you mean 'web_search'? "
        "correct the name or remove it"
    ]
    told = shop.paidonce("policies", "check", "--all", "tools.py")
    assert (told.code, "tools.web_search" in told.out, "did you mean 'web_search'?" in told.err) == (2, True, True)


def test_everything_that_cannot_be_resolved_is_told_at_once(shop: Project) -> None:
    (shop.folder / "more.py").write_text(
        "from paidonce import tool\n\n"
        "@tool(policy='serach')\ndef first() -> None: ...\n\n"
        "@tool(timeout=90)\ndef second() -> None: ...\n"
    )
    write(shop, "policies: {search: {}}\ntargets: {second: {timeout: {total: 1m}}}\n")
    done = shop.paidonce("policies", "check", "more.py", "--json")
    assert done.code == 2
    first, second = done.error["details"]["problems"]
    assert first.startswith(
        "policy of more.first: decorator at more.py:3 names 'serach', which does not exist, did you"
    )
    assert second.startswith(
        "policy of more.second: timeout.total is 1m (paidonce.yaml:2 targets.second) and timeout.a"
    )


def test_tools_that_disagree_about_their_circuit_are_noted(shop: Project) -> None:
    write(shop, "targets: {'*': {circuit: all}, crm_find: {circuit: all, breaker: {probes: 2}}}\n")
    done = shop.paidonce("policies", "check", "tools.py")
    assert done.code == 0
    assert "Note: tools.crm_find and tools.web_search share the circuit 'all' under different breakers" in done.err


def test_tools_of_one_circuit_may_differ_in_what_an_open_one_does_to_them(shop: Project) -> None:
    (shop.folder / "crm.py").write_text(
        "from paidonce import tool\n\n"
        "@tool\ndef crm_list() -> None: ...\n\n"
        "@tool(when_open='raise')\ndef crm_get() -> None: ...\n"
    )
    done = shop.paidonce("policies", "check", "crm.py")
    assert (done.code, "different breakers" in done.err) == (0, False)


def test_show_prints_each_key_with_its_value_and_source(shop: Project) -> None:
    shown = keys(shop, "web_search", "tools.py")
    assert shown["policy"] == {
        "key": "policy",
        "value": "search",
        "text": "search",
        "source": "paidonce.yaml:4 targets.web_search",
    }
    assert shown["timeout.attempt"] == {
        "key": "timeout.attempt",
        "value": 10.0,
        "text": "10s",
        "source": "paidonce.yaml:2 policies.search",
    }
    assert (shown["breaker.window"]["text"], shown["breaker.window"]["source"]) == ("10s", "decorator at tools.py:5")
    assert (shown["retry.max_attempts"]["value"], shown["retry_budget.ratio"]["source"]) == (3, "default")
    assert shown["breaker.ignore"]["value"] == ["http:4xx", "!http:408", "!http:425", "!http:429"]
    told = shop.paidonce("policies", "show", "tools.web_search", "tools.py")
    lines = {line.split()[0]: line.split()[1:] for line in told.out.splitlines()[3:]}
    assert lines.keys() == shown.keys()
    assert lines["breaker.probes"] == ["2", "paidonce.yaml:2", "policies.search"]


def test_what_is_off_is_one_line(shop: Project) -> None:
    shown = keys(shop, "clock", AGENTS="tools")
    assert (shown["breaker"]["value"], shown["breaker"]["source"]) == (False, "decorator at tools.py:13")
    assert (shown["retry_budget"]["value"], shown["retry_budget"]["source"]) == (False, "default")
    assert not [key for key in shown if key.startswith(("breaker.", "retry_budget.", "circuit"))]


def test_a_steps_time_limit_is_the_settings_where_nobody_names_one(shop: Project) -> None:
    shown = keys(shop, "plan", "tools.py", STEP_TIMEOUT_SECONDS="60")
    assert (shown["timeout.attempt"]["text"], shown["timeout.attempt"]["source"]) == (
        "1m",
        "PAIDONCE_STEP_TIMEOUT_SECONDS",
    )
    assert (shown["provider"]["value"], shown["provider"]["source"]) == ("openai", "decorator at tools.py:17")


def test_a_provider_is_shown_with_its_circuit(shop: Project) -> None:
    shown = keys(shop, "provider:openai", "tools.py")
    assert {key.partition(".")[0] for key in shown} == {"policy", "breaker", "park", "circuit"}
    assert shown["breaker.probes"]["source"] == "default"
    assert keys(shop, "provider:groq", "tools.py")["breaker"]["value"] is False


def test_a_tool_that_is_not_there_or_not_alone_is_an_error(shop: Project) -> None:
    done = shop.paidonce("policies", "show", "web_serch", "tools.py", "--json")
    assert (done.code, done.error["code"]) == (4, "not_found")
    assert "no tool or step is named 'web_serch', did you mean 'web_search'?" in done.error["message"]
    (shop.folder / "other.py").write_text("from paidonce import tool\n\n@tool\ndef clock() -> str: ...\n")
    done = shop.paidonce("policies", "show", "clock", "tools.py", "other.py", "--json")
    assert (done.code, done.error["message"]) == (
        2,
        "'clock' may be any of other.clock, tools.clock; give the full name",
    )


@pytest.mark.parametrize("command", [("check",), ("show", "clock")])
def test_a_broken_file_or_missing_modules_end_with_2(shop: Project, command: tuple[str, ...]) -> None:
    done = shop.paidonce("policies", *command, "--json")
    assert (done.code, "name the modules that hold the tools" in done.error["message"]) == (2, True)
    write(shop, "policies:\n  s: {breaker: {windw: 3s}}\n")
    done = shop.paidonce("policies", *command, "tools.py", "--json")
    assert (done.code, done.error["code"]) == (2, "configuration")
    assert done.error["message"].startswith("paidonce.yaml:2 policies.s.breaker.windw: there is no key 'windw' here")


def test_without_a_file_the_defaults_are_listed(shop: Project) -> None:
    (shop.folder / "paidonce.yaml").unlink()
    done = shop.paidonce("policies", "check", "--all", "tools.py")
    assert (done.code, done.err) == (0, "No policy file, defaults only: nothing is wrong.\n")
    missing = shop.paidonce("policies", "check", "tools.py", "--json", POLICIES="mine.yaml")
    assert (missing.code, "there is no such file" in missing.error["message"]) == (2, True)
