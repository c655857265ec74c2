"""Compares the event history with what the code requests now: name and arguments."""

from __future__ import annotations

from paidonce.replay.commands import Schedule
from paidonce.replay.run_replay import Machine
from paidonce_models.database.transactions import Database
from paidonce_models.errors import HistoryMismatch, InvalidInput
from paidonce_models.payloads.payload_parts import split
from paidonce_models.store.payload_rows import load_payload
from paidonce_models.store.runs.history import RecordedStep
from paidonce_models.store.runs.runs_head import RunHead

SHOWN_BYTES = 200


def compare_with_history(
    database: Database, head: RunHead, machine: Machine, recorded: dict[int, RecordedStep], python_minor: str
) -> None:
    """Raise ``HistoryMismatch``, naming both sides, if the code requests something other than what was recorded.

    ``recorded`` holds the steps that events up to ``head.consumed_seq`` led to.
    Arguments that differ in bytes are first decoded and encoded again with the current
    types, so that a new field with a default is no difference.
    """
    unseen = dict(recorded)
    for command in machine.commands:
        if not isinstance(command, Schedule) or command.seq > head.consumed_seq:
            continue
        step = unseen.pop(command.position, None)
        asked = f"{command.declaration.name!r}"
        if step is None:
            raise _mismatch(head, command.position, "nothing", asked, python_minor)
        if step.name != command.declaration.name or step.kind != command.declaration.kind:
            raise _mismatch(head, command.position, f"{step.name!r}", asked, python_minor)
        if step.arguments_id != split(command.arguments, memory=machine.memory).root_id:
            _compare_arguments(database, head, command, step, python_minor)
    for position, step in sorted(unseen.items()):
        raise _mismatch(head, position, f"{step.name!r}", "nothing", python_minor)


def _compare_arguments(
    database: Database, head: RunHead, command: Schedule, step: RecordedStep, python_minor: str
) -> None:
    with database.read() as connection:
        data = load_payload(connection, head.namespace, step.arguments_id)
    try:
        same = command.declaration.parameters.normalise(data) == bytes(command.arguments)
    except InvalidInput:
        same = False
    if not same:
        raise _mismatch(
            head,
            command.position,
            f"{step.name!r} with {_shown(data)}",
            f"{command.declaration.name!r} with {_shown(bytes(command.arguments))}",
            python_minor,
        )


def _shown(data: bytes) -> str:
    text = data[:SHOWN_BYTES].decode("utf-8", errors="replace")
    return text if len(data) <= SHOWN_BYTES else f"{text}…"


def _mismatch(head: RunHead, position: int, recorded: str, asked: str, python_minor: str) -> HistoryMismatch:
    python = ""
    if head.python_minor not in (None, python_minor):
        python = f" (recorded on Python {head.python_minor}, this worker runs {python_minor})"
    return HistoryMismatch(
        f"run {head.id} step {position}: history holds {recorded}, the code now requests {asked}{python}; "
        "restore the order or give the agent a new version",
        step=position,
    )
