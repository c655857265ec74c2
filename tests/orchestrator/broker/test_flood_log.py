"""Lines about what strangers cause: bounded in number and in length, and never two of one."""

from __future__ import annotations

import logging

import pytest

from paidonce.broker.flood_log import IN_FULL, WINDOW_SECONDS, FloodLog


class Clock:
    """Moves when told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log(clock: Clock) -> FloodLog:
    return FloodLog(logging.getLogger("flood"), clock=clock)


def report(log: FloodLog, times: int, kind: str = "junk") -> None:
    for number in range(times):
        log.report(kind, logging.ERROR, "junk number %d", number, event="junk")


def test_the_first_few_are_told_in_full_and_a_flood_by_powers_of_ten(
    log: FloodLog, caplog: pytest.LogCaptureFixture
) -> None:
    report(log, 5_000)
    assert caplog.messages == [
        *(f"junk number {number}" for number in range(IN_FULL)),
        *(f"{count} times within a minute: junk; further are only counted" for count in (10, 100, 1000)),
    ]
    assert {getattr(record, "event", None) for record in caplog.records} == {"junk"}


def test_kinds_are_counted_apart(log: FloodLog, caplog: pytest.LogCaptureFixture) -> None:
    report(log, IN_FULL, "one")
    report(log, IN_FULL, "other")
    assert len(caplog.messages) == 2 * IN_FULL


def test_what_was_counted_only_is_told_when_its_window_is_over(
    log: FloodLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    report(log, 57)
    log.flush()
    assert len(caplog.messages) == IN_FULL + 1, "the window is not over"
    clock.now += WINDOW_SECONDS + 1
    log.flush()
    log.flush()
    assert caplog.messages[IN_FULL + 1 :] == ["57 times within a minute: junk"]
    report(log, 1)
    assert caplog.messages[-1] == "junk number 0", "a new window"
    log.close()
    assert caplog.messages[-1] == "junk number 0", "nothing was left to tell"
