"""Converts a machine's requests to what one advance writes. Pure."""

from __future__ import annotations

from paidonce.declarations.declaration import StepDeclaration
from paidonce.replay.commands import Schedule
from paidonce.replay.run_replay import Machine
from paidonce_models.payloads.documents import decode_encoded
from paidonce_models.payloads.encoding import canonical_sha256
from paidonce_models.payloads.payload_memory import PayloadMemory
from paidonce_models.payloads.payload_parts import split
from paidonce_models.queues import full_queue_name
from paidonce_models.states import RunState
from paidonce_models.store.runs.advancing import NewStep, Progress, RunEnd

DEADLOCK = {
    "type": "Deadlock",
    "code": "deadlock",
    "message": "the agent awaits something that no step, timer or child run will ever complete "
    "(an Event nobody sets, a Queue nobody fills); correct the agent, or cancel the run",
}


def progress_of(
    machine: Machine, *, from_seq: int, python_minor: str, limit_bytes: int, cancel_grace_seconds: float
) -> Progress:
    """All that the machine requested since ``from_seq``, up to the newest event that it was fed."""
    new_steps: list[NewStep] = []
    cancelled: list[int] = []
    for command in machine.commands:
        if command.seq <= from_seq:
            continue
        if isinstance(command, Schedule):
            new_steps.append(_new_step(command, limit_bytes, machine.memory))
        else:
            cancelled.append(command.position)
    end = _end(machine, limit_bytes)
    state = machine.suspended_state if end is None else end.state
    deadlocked = end is None and state is RunState.BLOCKED
    return Progress(
        from_seq=from_seq,
        to_seq=machine.consumed,
        state=state,
        state_reason="deadlock" if deadlocked else None,
        wake_at_us=machine.wake_at_us,
        agent_version=machine.declaration.version,
        python_minor=python_minor,
        new_steps=new_steps,
        cancelled_positions=cancelled,
        end=end,
        error=dict(DEADLOCK) if deadlocked else None,
        cancel_grace_seconds=cancel_grace_seconds,
    )


def _end(machine: Machine, limit_bytes: int) -> RunEnd | None:
    outcome = machine.outcome
    if outcome is None:
        return None
    if outcome.result is None:
        return RunEnd(state=outcome.state, error=outcome.error)
    # The machine has refused a result beyond the limit: that blocks the run.
    return RunEnd(state=outcome.state, result=split(outcome.result, memory=machine.memory, limit_bytes=limit_bytes))


def _new_step(command: Schedule, limit_bytes: int, memory: PayloadMemory | None) -> NewStep:
    declaration = command.declaration
    return NewStep(
        position=command.position,
        created_seq=command.seq,
        kind=declaration.kind,
        name=declaration.name,
        queue=full_queue_name(declaration.queue),
        arguments=split(command.arguments, memory=memory, limit_bytes=limit_bytes),
        encoded=command.arguments,
        delivery=declaration.delivery if isinstance(declaration, StepDeclaration) else "at_least_once",
        max_lost=declaration.max_lost if isinstance(declaration, StepDeclaration) else 5,
        input_sha256=""
        if isinstance(declaration, StepDeclaration)
        else canonical_sha256(decode_encoded(command.arguments)),
    )
