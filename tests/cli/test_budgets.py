"""`paidonce budget`: setting, listing and removing, and a run that is paused and goes on."""

from __future__ import annotations

import pytest

from tests.cli.conftest import Project
from tests.services.waiting import wait_until

SPENDING = """
from paidonce import agent, record_usage, step


@step(max_cost_usd="0.002")
async def ask(number: int) -> int:
    record_usage(provider="openai", model="own", input_tokens=100, output_tokens=20, cost_usd="0.002")
    return number


@agent(budget_usd="0.004")
async def spender(steps: int) -> int:
    return sum([await ask(number) for number in range(steps)])
"""


def test_a_budget_is_set_changed_listed_and_removed(project: Project) -> None:
    first = project.paidonce("budget", "set", "agent=research", "per=day", "usd=20", "--json").document
    assert first["budgets"] == [
        {
            "subject": "agent=research",
            "per": "day",
            "unit": "usd",
            "source": "set",
            "limit": 20_000_000_000,
            "limit_usd": "20.000000000",
            "before": None,
        }
    ]
    changed = project.paidonce("budget", "set", "usd=25.50", "steps=9", "per=day", "agent=research")
    assert changed.out.splitlines() == [
        "agent=research per=day usd: $25.50 (it was $20.00)",
        "agent=research per=day steps: 9 steps",
    ]
    assert "no live worker holds an agent named 'research'" in changed.err
    project.paidonce("budget", "set", "tag:customer=a=b", "per=month", "tokens=1000000")
    listed = project.paidonce("budget", "list", "--json").document["budgets"]
    assert [(each["subject"], each["unit"], each["limit"], each["spent"], each["left"]) for each in listed] == [
        ("agent=research", "steps", 9, 0, 9),
        ("agent=research", "usd", 25_500_000_000, 0, 25_500_000_000),
        ("tag:customer=a=b", "tokens", 1_000_000, 0, 1_000_000),
    ]
    assert listed[1]["left_usd"] == "25.500000000" and listed[0]["left_usd"] is None
    text = project.paidonce("budget", "list").out
    assert "$25.50" in text and "1,000,000 tokens" in text
    removed = project.paidonce("budget", "remove", "agent=research", "per=day", "usd")
    assert removed.out.strip() == "usd: removed, it was $25.50"
    again = project.paidonce("budget", "remove", "agent=research", "per=day", "usd", "--json")
    assert (again.code, again.error["code"]) == (4, "not_found")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["agent=a", "per=day", "usd=0"], "usd=0: a budget must be more than 0"),
        (["agent=a", "per=day", "usd=-1"], "usd=-1: a budget must be more than 0"),
        (["agent=a", "per=day", "usd=lots"], "usd=lots: amount of money: 'lots' is not a decimal number"),
        (["agent=a", "per=day", "steps=1.5"], "steps=1.5: expected a whole number"),
        (["agent=a", "per=day", f"steps={'9' * 5_000}"], "is beyond any real spend; check the unit"),
        (["agent=a", "per=day"], "a budget needs an amount"),
        (["agent=a", "per=day", "usd"], "usd needs an amount"),
        (["agent=a", "usd=1"], "per= of a budget: expected run, day or month (UTC), found nothing"),
        (["agent=a", "per=hour", "usd=1"], "found 'hour'"),
        (["per=day", "usd=1"], "a budget has one subject and one per=, found per=day"),
        (["agent=a", "all", "per=day", "usd=1"], "found agent=a, all, per=day"),
        (["agent=", "per=day", "usd=1"], "budget subject 'agent='"),
        (["tag:user", "per=day", "usd=1"], "budget subject 'tag:user'"),
        (["agent=a", "per=day", "usd=1", "usd=2"], "usd is given twice"),
        (["agent=a", "per=day", "eur=1"], "'eur=1' is not a word of a budget"),
        (["run=r", "per=day", "usd=1"], "per=day makes no sense"),
    ],
)
def test_a_budget_that_makes_no_sense_is_refused(project: Project, words: list[str], message: str) -> None:
    done = project.paidonce("budget", "set", *words, "--json")
    assert (done.code, done.error["code"]) == (2, "invalid_input")
    assert message in done.error["message"]


def test_a_budget_of_a_run_that_does_not_exist_is_refused(project: Project) -> None:
    done = project.paidonce("budget", "set", "run=nobody", "usd=1", "--json")
    assert (done.code, done.error["code"]) == (4, "not_found")


@pytest.mark.slow
def test_a_run_that_has_used_up_its_budget_is_paused_and_goes_on_when_it_is_raised(project: Project) -> None:
    (project.folder / "spending.py").write_text(SPENDING)
    arguments = ("run", "spending.py:spender", "--input", '{"steps": 4}', "--key", "k")
    with project.started(*arguments) as running:
        wait_until(lambda: "run: paused (budget)" in project.log(), "the run is paused", 40)
        (run,) = project.client().runs()
        assert f"step 3 spending.ask: held (budget agent=spender per=run usd ({run.run_id}) has $0.00" in project.log()
        shown = project.paidonce("show", run.run_id, "--json").document
        assert (shown["state"], shown["state_reason"]) == ("paused", "budget")
        assert [step["state"] for step in shown["steps"]] == ["succeeded", "succeeded", "held"]
        assert shown["steps"][2]["waits_for"] == (
            f"budget agent=spender per=run usd ({run.run_id}) has $0.00 left of $0.004, its next attempt is expected "
            "to take $0.002 (its declared maximum)"
        )
        assert "step 3 is held: budget agent=spender" in project.paidonce("show", run.run_id).out
        project.paidonce("budget", "set", f"run={run.run_id}", "usd=0.008")
        assert running.wait(40) == 0, project.log()
    standings = project.paidonce("budget", "list", "--json").document["budgets"]
    (standing,) = (each for each in standings if each["subject"] == f"run={run.run_id}")
    assert (standing["spent_usd"], standing["reserved"]) == ("0.008000000", 0)
