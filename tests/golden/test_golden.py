"""Every history that was ever recorded is replayed on this Python: the same commands, timers and outcome."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from paidonce.declarations.registry import default_registry
from tests.golden import agents, record
from tests.golden.history import event_from_json, replay

FILES = sorted(record.FOLDER.glob("*.json"))


def runs_of(file: Path) -> list[dict[str, Any]]:
    document = json.loads(file.read_text())
    runs: list[dict[str, Any]] = document["runs"]
    return runs


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_recorded_history_replays_as_it_was_recorded(file: Path) -> None:
    for run in runs_of(file):
        events = [event_from_json(each) for each in run["events"]]
        told = replay(default_registry.known_agent(run["agent"]), run["run_id"], run["depth"], events)
        for number, (recorded, replayed) in enumerate(zip(run["told"], told, strict=True), 1):
            assert replayed == recorded, f"{file.name}, agent {run['agent']}, event {number} on Python {sys.version}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_history_broken_off_anywhere_asks_for_the_same(file: Path) -> None:
    """What a process does that takes the run over after any event."""
    for run in runs_of(file):
        events = [event_from_json(each) for each in run["events"]]
        for length in range(1, len(events)):
            told = replay(default_registry.known_agent(run["agent"]), run["run_id"], run["depth"], events[:length])
            assert told[:-1] == run["told"][:length], f"{file.name}, broken off after event {length}"


def test_every_listed_agent_has_its_history() -> None:
    assert {file.stem for file in FILES} >= set(record.RECORDED)


def test_the_histories_hold_what_they_are_there_for() -> None:
    """Kinds of events, kinds of commands and ways to end, each at least once."""
    runs = [run for file in FILES for run in runs_of(file)]
    kinds = {event["kind"] for run in runs for event in run["events"]}
    assert kinds == {"started", "step_succeeded", "step_failed", "timer", "cancel"}
    asked = {command[0] for run in runs for told in run["told"][:-1] for command in told[:-1]}
    assert asked == {"schedule", "cancel"}
    assert {run["state"] for run in runs} == {"succeeded", "failed", "cancelled"}
    assert any(run["depth"] > 0 for run in runs)


def test_a_history_is_never_written_over(capsys: pytest.CaptureFixture[str]) -> None:
    assert record.main(["sequence"]) == 1
    assert "never recorded again" in capsys.readouterr().err


def test_a_difference_is_noticed() -> None:
    """Else the tests above would show nothing."""
    (run,) = runs_of(record.FOLDER / "sequence.json")
    events = [event_from_json(each) for each in run["events"]]
    assert replay(agents.gathers, run["run_id"], 0, events[:1])[-1] != run["told"][1]
