"""A thread's turn: what it goes on with, for how long, and what settles the message that began it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from paidonce_models.store.messages import AdvanceMessage, StepMessage
from paidonce_models.store.steps.claims import Claim
from paidonce_workers.execution.eager_execution import (
    EagerExecution,
    current_eager_execution,
    left_to_publish,
    settle_nothing,
)


def message(position: int, *, queue: str = "paidonce.default") -> StepMessage:
    return StepMessage(run_id="r1", position=position, name="m.step", agent="m.agent", queue=queue, priority=5)


def claim(position: int) -> Claim:
    return Claim(
        run_id="r1",
        position=position,
        attempt=1,
        namespace="default",
        root_run_id="r1",
        agent="m.agent",
        kind="step",
        name="m.step",
        queue="paidonce.default",
        priority=5,
        lost=0,
        failed=0,
        claimed_at_us=1,
        consumed_seq=1,
        elapsed_us=0,
        arguments=b"[]",
    )


def turn(*, seconds: float = 60.0) -> EagerExecution[Any]:
    """Of a worker that consumes the default queue only."""
    return EagerExecution(may_take=lambda queue, task: queue == "paidonce.default", seconds=seconds)


def test_one_message_that_could_come_here_is_kept_and_the_others_are_published() -> None:
    elsewhere, first, second = message(1, queue="paidonce.tools"), message(2), message(3)
    it = turn()
    assert it.keep([elsewhere, first, second]) == [elsewhere, second]
    assert it.keep([message(4)]) == [message(4)], "a thread goes on with one step"
    kept = it.take()
    assert kept is not None
    assert (kept.message, kept.claim) == (first, None)
    assert it.take() is None


def test_an_advance_is_kept_too() -> None:
    advance = AdvanceMessage(run_id="r2", agent="m.agent", queue="paidonce.default", priority=5)
    it = turn()
    assert it.keep([advance]) == []


def test_at_the_end_of_a_turn_everything_is_published() -> None:
    it = turn(seconds=0.0)
    assert it.keep([message(1)]) == [message(1)]
    assert not it.may_go_on_with("paidonce.default", "m.step")
    assert it.take() is None


def test_a_claimed_step_is_kept_with_its_claim_which_its_execution_takes_once() -> None:
    it = turn()
    it.keep_claim(claim(2))
    assert it.keep([message(3)]) == [message(3)]
    kept = it.take()
    assert kept is not None
    assert (kept.message, kept.claim) == (message(2), claim(2))
    assert it.take_claim("r1", 3) is None
    assert it.take_claim("r1", 2) == claim(2)
    assert it.take_claim("r1", 2) is None


def test_the_brokers_message_is_acknowledged_when_the_turn_is_over() -> None:
    settled: list[str] = []
    request = SimpleNamespace(
        acknowledged=False,
        _on_ack=lambda *_: settled.append("acknowledged"),
        _on_reject=lambda *_: settled.append("rejected"),
    )
    it = turn()
    it.keep([message(2)])
    it.hold_acknowledgement(request)
    request._on_ack()
    assert settled == []
    kept = it.take()
    assert kept is not None
    kept.acknowledge()
    assert settled == ["acknowledged"]


def test_a_request_that_goes_on_with_nothing_settles_its_own_message() -> None:
    settled: list[str] = []
    request = SimpleNamespace(acknowledged=False, _on_ack=lambda: settled.append("it"), _on_reject=settle_nothing)
    turn().hold_acknowledgement(request)
    request._on_ack()
    assert settled == ["it"]


def test_outside_of_a_turn_everything_is_published() -> None:
    assert current_eager_execution.get() is None
    assert left_to_publish([message(1)]) == [message(1)]
