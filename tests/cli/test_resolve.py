"""`paidonce resolve`: a run that waits for a person goes on with what the person says."""

from __future__ import annotations

import pytest

from tests.cli.conftest import Project, Result
from tests.services.waiting import wait_until

PAYING = """
import time

from paidonce import StepFailed, agent, step


@step(delivery="at_most_once", timeout=0.3)
def pay(amount: int) -> int:
    while True:
        time.sleep(0.02)


@agent
async def shop(amount: int) -> str:
    try:
        return f"paid {await pay(amount)}"
    except StepFailed as failure:
        return f"not paid: {failure.error_message}"
"""


def resolved(project: Project, run_id: str, *arguments: str) -> Result:
    return project.paidonce("resolve", run_id, "1", *arguments, "--json", AGENTS="paying")


@pytest.fixture
def run_id(project: Project) -> str:
    (project.folder / "paying.py").write_text(PAYING)
    return str(project.paidonce("submit", "shop", "--input", '{"amount": 7}').document["run_id"])


@pytest.mark.slow
def test_what_a_person_says_is_what_the_agent_gets(project: Project, run_id: str) -> None:
    def waits() -> bool:
        shown = project.paidonce("show", run_id, "--json").document
        return (shown["state"], shown["state_reason"]) == ("waiting", "unknown_outcome")

    with project.started("worker", "paying"):
        wait_until(waits, "the run waits for a person", 40)
        (step,) = project.client().run(run_id).steps()
        assert f"paidonce resolve {run_id} 1 --succeeded JSON" in str(step.waits_for)
        wrong = resolved(project, run_id, "--succeeded", '"a lot"')
        assert (wrong.code, wrong.error["code"]) == (2, "invalid_input"), wrong.out
        assert resolved(project, run_id, "--retry").document == {"run_id": run_id, "step": 1, "resolved": "retry"}
        wait_until(
            lambda: project.paidonce("show", run_id, "--json").document["steps"][0]["attempts"] == 2, "again", 40
        )
        wait_until(waits, "the run waits for a person again", 40)
        resolved(project, run_id, "--succeeded", "7")
        wait_until(lambda: project.client().run(run_id).state == "succeeded", "the run goes on", 40)
    assert project.client().run(run_id).result(0) == "paid 7"
    late = resolved(project, run_id, "--failed")
    assert (late.code, late.error["code"]) == (2, "invalid_input")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say one of --succeeded JSON, --kept, --failed and --retry"),
        (["--failed", "--retry"], "say one of"),
        (["--retry", "--message", "x"], "--message is for --failed"),
        (["--succeeded", "{"], "--succeeded:"),
        (["--failed"], "step 1"),
    ],
)
def test_what_makes_no_sense_is_refused(project: Project, run_id: str, arguments: list[str], message: str) -> None:
    done = resolved(project, run_id, *arguments)
    assert done.code in (2, 4)
    assert message in str(done.error["message"])
