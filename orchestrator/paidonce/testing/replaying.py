"""Replays a recorded run, twice, under ``forbid_nondeterminism``.

Owns the check whether an agent's code is a function of its event history: both replays
must request what history holds and end as recorded. Reads the store, writes nothing,
runs no step.
"""

from __future__ import annotations

from paidonce.declarations.registry import AnyAgent, Registry
from paidonce.replay.commands import Outcome, Schedule
from paidonce.replay.history_comparison import compare_with_history
from paidonce.replay.run_replay import Machine
from paidonce.runs.advance_settings import PYTHON_MINOR, AdvanceSettings
from paidonce.testing.determinism import forbid_nondeterminism
from paidonce_models.database.transactions import Database
from paidonce_models.errors import CircuitOpen, HistoryMismatch, UnknownAgent
from paidonce_models.payloads.encoding import decode_json
from paidonce_models.states import RunState
from paidonce_models.store.queries import RunView, read_run
from paidonce_models.store.runs.events import Event, read_events
from paidonce_models.store.runs.history import read_recorded_steps
from paidonce_models.store.runs.runs_head import RunHead, read_head

REPLAYS = 2


def check_replays(
    database: Database, registry: Registry, namespace: str, run_id: str, settings: AdvanceSettings
) -> None:
    """Replay the run twice. Raises ``NotReplayable`` naming the line, or ``HistoryMismatch`` naming both sides."""
    with database.read() as connection:
        head = read_head(connection, namespace, run_id)
        if head is None or (head.consumed_seq == 0 and head.state is not RunState.BLOCKED):
            return
        run = read_run(connection, namespace, run_id)
        events = read_events(connection, head.namespace, run_id, 0)
        recorded = read_recorded_steps(connection, run_id, first=1, consumed_seq=head.consumed_seq)
    if head.state is not RunState.BLOCKED:
        events = [event for event in events if event.seq <= head.consumed_seq]
    declaration = registry.agent(head.agent, head.agent_version)
    if declaration is None:
        raise UnknownAgent(f"run {run_id}: no agent is named {head.agent!r}; import the module that defines it")
    transcripts = []
    for _ in range(REPLAYS):
        machine = replay(declaration, head, events, settings)
        try:
            compare_with_history(database, head, machine, recorded, PYTHON_MINOR)
            compare_outcome(run, machine.outcome)
            transcripts.append(transcript_of(machine))
        finally:
            machine.discard()
    for first, second in zip(*transcripts, strict=False):
        if first != second:
            raise HistoryMismatch(f"run {run_id}: two replays differ: one requested {first}, the other {second}")
    if len({len(transcript) for transcript in transcripts}) > 1:
        raise HistoryMismatch(
            f"run {run_id}: two replays differ: {' and '.join(str(len(t)) for t in transcripts)} calls"
        )


def replay(declaration: AnyAgent, head: RunHead, events: list[Event], settings: AdvanceSettings) -> Machine:
    """A fresh coroutine fed with the events; a forbidden action is raised with its line."""
    machine = Machine(
        head.id,
        declaration,
        depth=head.depth,
        max_depth=settings.max_depth,
        slice_seconds=settings.slice_seconds,
        bounds=settings.bounds,
    )
    try:
        with forbid_nondeterminism():
            for event in events:
                machine.feed(event)
    except BaseException:
        machine.discard()
        raise
    return machine


def transcript_of(machine: Machine) -> list[tuple[int, int, str, bytes]]:
    """What a replay requested, in order: event, position, name and arguments; cancellations have no name."""
    return [
        (command.seq, command.position, command.declaration.name, bytes(command.arguments))
        if isinstance(command, Schedule)
        else (command.seq, command.position, "", b"")
        for command in machine.commands
    ]


def compare_outcome(run: RunView, outcome: Outcome | None) -> None:
    """Raise ``HistoryMismatch`` if the replay does not end as the run did."""
    if not run.state.is_terminal or (outcome is None and was_ended_by_policy(run)):
        return
    if outcome is None or outcome.state is not run.state:
        replayed = "does not end" if outcome is None else f"ends as {outcome.state}"
        raise HistoryMismatch(f"run {run.run_id} ended as {run.state}, its replay {replayed}")
    if outcome.result is not None and run.result is not None and decode_json(outcome.result) != decode_json(run.result):
        raise HistoryMismatch(
            f"run {run.run_id} returned {run.result[:200]!r}, its replay returns {outcome.result[:200]!r}; "
            "the agent depends on something that is not in its event history (the order of a set, a global variable, "
            "the thread it runs in)"
        )
    if outcome.error != run.error:
        raise HistoryMismatch(f"run {run.run_id} failed with {run.error}, its replay with {outcome.error}")


def was_ended_by_policy(run: RunView) -> bool:
    """Whether the run may have been failed from outside its agent: an open circuit with ``when_open: fail``."""
    return run.state is RunState.FAILED and run.error is not None and run.error.get("code") == CircuitOpen.code
