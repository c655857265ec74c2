"""The research agent works against both example servers, and a crash repeats only the call that was under way."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from examples import research as module
from examples.document_server import create_server as create_document_server
from examples.model_server import create_server as create_model_server
from examples.research import Report, research
from paidonce.testing import run_agent
from paidonce.testing.agent_run import AgentRun
from tests.examples.serving import serving

QUESTION = "How did lighthouses and the chronometer make voyages safer?"


@pytest.fixture
def model_url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Both servers running, and the agent told of them."""
    with serving(create_model_server()) as url, serving(create_document_server()) as documents_url:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{url}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", "stand-in")
        monkeypatch.setattr(module, "DOCUMENTS_URL", documents_url)
        yield url


def requests_of(url: str) -> list[Any]:  # Any: JSON
    """What the model server has counted."""
    requests: list[Any] = httpx.get(f"{url}/requests").json()["requests"]
    return requests


def paid_steps(run: AgentRun) -> int:
    """How many model calls the agent asked for."""
    return sum(step.kind == "step" for step in run.steps)


@pytest.mark.slow
def test_it_reads_what_it_finds_and_reports_from_it(model_url: str) -> None:
    run = run_agent(research, {"question": QUESTION})
    report = run.result
    assert isinstance(report, Report)
    assert {"lighthouses", "longitude"} <= set(report.sources)
    assert "lighthouse" in report.text
    assert report.summary
    assert 10 <= paid_steps(run) == len(requests_of(model_url))


@pytest.mark.slow
def test_a_crash_during_the_eighth_paid_call_repeats_that_call_only(model_url: str) -> None:
    undisturbed = run_agent(research, {"question": QUESTION})
    before = len(requests_of(model_url))
    # The attempts include the tools' and come in the order of the steps: find the plan after the first round.
    position = [step.step for step in undisturbed.steps if step.kind == "step"][7]
    crashed = run_agent(research, {"question": QUESTION}, crash_during=position)
    assert crashed.crashes == 1
    assert crashed.result == undisturbed.result
    assert crashed.repeated == []
    assert len(requests_of(model_url)) - before == before + 1


@pytest.mark.slow
def test_a_tool_that_the_model_made_up_is_answered_with_words(model_url: str) -> None:
    turns = iter(
        [
            module.Turn(
                role="assistant",
                tool_calls=[
                    module.ToolCall(id="c1", name="launch_rocket", arguments=json.dumps({"to": "moon"})),
                    module.ToolCall(id="c2", name="fetch_document", arguments=json.dumps({"name": "unheard-of"})),
                ],
            ),
            module.Turn(role="assistant", content="enough"),
        ]
    )
    conversations: list[list[module.Turn]] = []

    async def scripted(conversation: list[module.Turn]) -> module.Turn:
        conversations.append(conversation)
        return next(turns)

    run = run_agent(research, {"question": QUESTION}, fakes={module.plan: scripted})
    assert run.result.sources == []
    assert [turn.content for turn in conversations[1][-2:]] == [
        "There is no tool named launch_rocket.",
        "There is no document named unheard-of.",
    ]
