"""`paidonce breakers`: what the fleet's circuits are, and moving one by hand."""

from __future__ import annotations

import pytest

from tests.cli.conftest import Project
from tests.services.waiting import wait_until


@pytest.fixture
def moved(project: Project) -> Project:
    assert project.paidonce("breakers", "open", "crm", "--for", "10m").out == "Circuit crm is opened.\n"
    return project


def test_there_are_none_before_anything_fails(project: Project) -> None:
    assert project.paidonce("breakers").err == "No circuits: nothing has failed lately.\n"
    assert project.paidonce("breakers", "--json").document == {"circuits": [], "moves": []}


def test_a_circuit_is_shown_with_its_moves(moved: Project) -> None:
    shown = moved.paidonce("breakers", "--json").document
    (circuit,), (move,) = shown["circuits"], shown["moves"]
    assert (circuit["circuit"], circuit["state"], circuit["reason"]) == ("crm", "open", "opened by hand")
    assert circuit["since"] < circuit["retry_at"]
    assert {name: move[name] for name in ("circuit", "from", "to", "reason")} == {
        "circuit": "crm",
        "from": "closed",
        "to": "open",
        "reason": "opened by hand",
    }
    text = moved.paidonce("breakers").out
    assert "crm" in text and "opened by hand" in text


@pytest.mark.parametrize("how", ["close", "reset"])
def test_it_is_closed_by_hand(moved: Project, how: str) -> None:
    done = moved.paidonce("breakers", how, "crm", "--json").document
    assert done == {"circuit": "crm", "changed": True}
    shown = moved.paidonce("breakers", "--json").document
    assert [each["state"] for each in shown["circuits"] if each["state"] != "closed"] == []
    assert [(each["from"], each["to"]) for each in shown["moves"]] == [("open", "closed"), ("closed", "open")]
    assert moved.paidonce("breakers", how, "crm", "--json").document["changed"] is False


def test_a_name_that_nobody_calls_is_noted(project: Project) -> None:
    opened = project.paidonce("breakers", "open", "divid", "--json")
    assert opened.document == {"circuit": "divid", "changed": True}
    assert "no circuit 'divid' is known" in opened.err
    assert "holds a tool of that full name. Ignore" in opened.err
    assert project.paidonce("breakers", "close", "divid").err == ""
    with project.started("worker", "agents"):
        wait_until(lambda: "ready" in project.log(), "the worker is up", 40)
        assert "did you mean agents.divide?" in project.paidonce("breakers", "open", "divide").err
        assert project.paidonce("breakers", "open", "agents.divide").err == ""


def test_open_without_a_time_is_until_somebody_closes_it(project: Project) -> None:
    project.paidonce("breakers", "open", "crm")
    (circuit,) = project.paidonce("breakers", "--json").document["circuits"]
    assert circuit["retry_at"] is None


def test_a_longer_time_takes_the_place_of_a_shorter(moved: Project) -> None:
    before = moved.paidonce("breakers", "--json").document["circuits"][0]["retry_at"]
    assert moved.paidonce("breakers", "open", "crm", "--for", "1h").code == 0
    assert moved.paidonce("breakers", "--json").document["circuits"][0]["retry_at"] > before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("open", "crm", "--for", "soon"), "--for soon"),
        (("open", "crm", "--for", "0s"), "--for 0s"),
        (("open", "crm", "--for", "-5m"), "--for -5m"),
        (("close", "  "), "name of a circuit"),
    ],
)
def test_bad_input_is_refused(project: Project, arguments: tuple[str, ...], says: str) -> None:
    refused = project.paidonce("breakers", *arguments, "--json")
    assert refused.code == 2
    assert says in refused.error["message"]


def test_a_redis_that_is_away_is_said(project: Project) -> None:
    away = project.paidonce("breakers", "--json", REDIS_URL="redis://:secret@127.0.0.1:1/0")
    assert away.code not in (0, 1)
    assert "secret" not in away.out + away.err
    assert "127.0.0.1:1" in away.error["message"]
