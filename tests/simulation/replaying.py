"""Replay is a pure function of the log: a fresh coroutine fed the recorded events asks for what was recorded."""

from __future__ import annotations

import json

from sqlalchemy import Connection, text

from paidonce.replay.commands import Schedule
from paidonce.replay.run_replay import Machine
from paidonce_models.payloads.payload_parts import split
from paidonce_models.store.runs.events import Event, read_events
from tests.simulation.programs import interpret
from tests.simulation.store import NAMESPACE

LONGEST_LOG_BY_PREFIX = 8

_RUNS = text("SELECT id, depth, consumed_seq, state, result_id, error FROM runs ORDER BY id")
_STEPS = text("SELECT position, created_seq, kind, name, args_id FROM steps WHERE run_id = :run_id ORDER BY position")


def check_replay(connection: Connection) -> None:
    """Feed every run's whole log to a fresh machine, and every prefix of it to another."""
    for run in connection.execute(_RUNS).all():
        events = read_events(connection, NAMESPACE, run.id, 0)
        consumed = [event for event in events if event.seq <= run.consumed_seq]
        recorded = [tuple(row) for row in connection.execute(_STEPS, {"run_id": run.id})]
        machine = _fed(run.id, run.depth, consumed)
        asked = [command for command in machine.commands if isinstance(command, Schedule)]
        assert recorded == [
            (each.position, each.seq, each.declaration.kind, each.declaration.name, split(each.arguments).root_id)
            for each in asked
        ], f"run {run.id} asks for other steps when it is replayed"
        _check_end(run, machine)
        if len(consumed) <= LONGEST_LOG_BY_PREFIX:
            _check_prefixes(machine, run, consumed)
        machine.discard()


def _fed(run_id: str, depth: int, events: list[Event]) -> Machine:
    machine = Machine(run_id, interpret, depth=depth)
    for event in events:
        machine.feed(event)
    return machine


def _check_end(run, machine: Machine) -> None:  # type: ignore[no-untyped-def]  # a row
    outcome = machine.outcome
    if outcome is None:
        # Ended from outside, before its agent could be asked.
        assert run.state == "cancelled", f"run {run.id} is {run.state}, its replay has not ended"
        return
    assert outcome.state == run.state
    assert (None if outcome.result is None else split(outcome.result).root_id) == run.result_id
    assert outcome.error == (None if run.error is None else json.loads(run.error))


def _check_prefixes(whole: Machine, run, events: list[Event]) -> None:  # type: ignore[no-untyped-def]  # a row
    for count in range(1, len(events)):
        machine = _fed(run.id, run.depth, events[:count])
        assert machine.commands == [command for command in whole.commands if command.seq <= count]
        machine.discard()
