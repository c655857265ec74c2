"""A golden history as JSON data: a run's log, and what its agent asks for at each event of it."""

from __future__ import annotations

import json
from typing import Any

from paidonce.declarations.declaration import AgentDeclaration
from paidonce.replay.commands import Schedule
from paidonce.replay.run_replay import Machine
from paidonce_models.store.runs.events import Event, EventKind

History = dict[str, Any]


def event_to_json(event: Event) -> dict[str, Any]:
    """One event of the log; the payload as the text that was stored."""
    return {
        "seq": event.seq,
        "kind": event.kind.value,
        "recorded_at_us": event.recorded_at_us,
        "position": event.position,
        "attempts": event.attempts,
        "payload": None if event.payload is None else bytes(event.payload).decode(),
        "data": event.data,
    }


def event_from_json(data: dict[str, Any]) -> Event:
    """The event as the store would give it."""
    payload = data["payload"]
    return Event(**{**data, "kind": EventKind(data["kind"]), "payload": None if payload is None else payload.encode()})


def replay(declaration: AgentDeclaration[..., Any], run_id: str, depth: int, events: list[Event]) -> list[Any]:
    """For each event what the agent asked for, its next timer and, at the end, its outcome."""
    machine = Machine(run_id, declaration, depth=depth)
    told: list[Any] = []
    try:
        for event in events:
            seen = len(machine.commands)
            machine.feed(event)
            told.append([*map(_command, machine.commands[seen:]), {"wake_at_us": machine.wake_at_us}])
        outcome = machine.outcome
        if outcome is None:
            told.append({"standing": machine.suspended_state.value})
        else:
            result = None if outcome.result is None else bytes(outcome.result).decode()
            told.append({"state": outcome.state.value, "result": result, "error": outcome.error})
    finally:
        machine.discard()
    copied: list[Any] = json.loads(json.dumps(told))
    return copied


def _command(command: Any) -> list[Any]:
    if isinstance(command, Schedule):
        declaration = command.declaration
        return ["schedule", command.position, declaration.kind, declaration.name, bytes(command.arguments).decode()]
    return ["cancel", command.position]
