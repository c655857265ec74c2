"""The demo compares Paidonce's record with the model server's count, and sees it when they differ."""

from datetime import UTC, datetime, timedelta

import pytest

from examples.demo.observation import SeenRequest, SeenStep, label_of
from examples.demo.verdict import judge, judge_record
from paidonce_models.states import StepState

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


def step(label: str, *, outcomes: tuple[str, ...] = ("accepted",), is_paid: bool = True) -> SeenStep:
    """A step that finished at noon."""
    return SeenStep(
        position=1,
        key=f"key of {label}",
        label=label,
        is_paid=is_paid,
        state=StepState.SUCCEEDED,
        attempts=len(outcomes),
        lost=outcomes.count("lost"),
        claimed_at=NOON - timedelta(seconds=2),
        finished_at=NOON,
        outcomes=outcomes,
        tokens=10,
        cost_nanousd=1000,
    )


def request(label: str | None, seconds_from_noon: float) -> SeenRequest:
    """A request that was answered."""
    return SeenRequest(
        step=None if label is None else f"key of {label}",
        status=200,
        arrived_at=NOON.timestamp() + seconds_from_noon,
        is_answered=True,
        delivered=True,
        tokens=10,
    )


def test_one_request_for_each_finished_step_is_what_is_promised() -> None:
    steps = [step("plan 1"), step("read suez-canal"), step("web_search ports", is_paid=False)]
    verdict = judge(steps, [request("plan 1", -2), request("read suez-canal", -1)])
    assert verdict.holds
    assert verdict.requests == 2


def test_a_second_request_of_a_lost_attempt_is_explained() -> None:
    verdict = judge([step("plan 1", outcomes=("lost", "accepted"))], [request("plan 1", -9), request("plan 1", -2)])
    assert verdict.holds


def test_a_request_after_the_completion_is_a_repetition() -> None:
    verdict = judge([step("plan 1", outcomes=("lost", "accepted"))], [request("plan 1", -2), request("plan 1", 1)])
    assert verdict.repeated == ["plan 1 was finished, and requested again"]
    assert not verdict.holds


def test_more_requests_than_attempts_do_not_pass() -> None:
    assert not judge([step("plan 1")], [request("plan 1", -3), request("plan 1", -2)]).holds


@pytest.mark.parametrize("requests", [[], [request("plan 1", -2), request(None, -2)]])
def test_a_request_too_few_or_of_no_step_does_not_pass(requests: list[SeenRequest]) -> None:
    assert not judge([step("plan 1")], requests).holds


def test_without_a_counting_server_two_accepted_attempts_do_not_pass() -> None:
    assert judge_record([step("plan 1", outcomes=("lost", "accepted"))]).holds
    assert not judge_record([step("plan 1", outcomes=("accepted", "accepted"))]).holds


def test_labels_say_what_each_step_of_the_agent_does() -> None:
    conversation = [{"role": "system"}, {"role": "user"}, {"role": "assistant"}, {"role": "tool"}]
    assert label_of("examples.research.plan", {"conversation": conversation}) == "plan 2"
    assert label_of("examples.research.read", {"question": "q", "source": "suez-canal"}) == "read suez-canal"
    assert label_of("examples.research.write", {"question": "q", "notes": []}) == "write"
