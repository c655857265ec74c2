"""What one run has to commit: a completion, an advance, or both with the claim of the next step.

Owns the form in which an item reaches the store: JSON for ``batch_statement``, encoded by the thread that hands it
over, so that whoever commits only joins texts. ``fits_*`` say what may be an item: the common cases. There the agent
starts and cancels no child run, and nothing is reserved, refused or stopped.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from contextlib import suppress
from enum import Enum, Flag, auto
from typing import Final

from paidonce_models.payloads.addressing import PayloadRow
from paidonce_models.store.ledger.call_rows import call_columns
from paidonce_models.store.runs.advancing import NewStep, Progress
from paidonce_models.store.runs.events import EventKind
from paidonce_models.store.runs.runs_head import RunHead
from paidonce_models.store.steps.claims import Claimant
from paidonce_models.store.steps.completion import Completion, step_event_data

LARGE_BYTES: Final = 1 << 18
_encode = json.JSONEncoder(separators=(",", ":")).encode


class Part(Flag):
    """What an item writes, besides the run's row."""

    NOTHING = 0
    COMPLETION = auto()
    """An attempt's end and its event."""
    ADVANCE = auto()
    """Consumed events; without it, the run's event history grows and somebody else advances the run."""
    STEPS = auto()
    CLAIM = auto()
    """One of the new steps is claimed."""
    END = auto()
    CALLS = auto()
    PAYLOADS = auto()


class Outcome(Enum):
    """What became of an item."""

    COMMITTED = auto()
    NOT_TAKEN = auto()
    """Nothing was written: its run was locked, a guard failed, or the batch was undone. Its thread commits it alone."""


class Item:
    """What one run has to commit, and what became of it. Handed over once."""

    __slots__ = (
        "_bell",
        "committed_at_us",
        "encoded",
        "error",
        "has_left",
        "key",
        "outcome",
        "parts",
        "payloads",
        "run_id",
        "size",
        "steps",
        "thread",
    )

    def __init__(
        self,
        run_id: str,
        parts: Part,
        record: dict[str, object],
        payloads: Sequence[PayloadRow],
        steps: Sequence[NewStep],
    ) -> None:
        self.run_id = run_id
        self.key = record["key"] = f"{run_id}/{record.get('place', '')}/{record.get('number', '')}"
        """Tells it from the other items of a batch; a zombie and its step's next attempt may be in the same."""
        self.parts = parts | (Part.PAYLOADS if payloads else Part.NOTHING) | (Part.STEPS if steps else Part.NOTHING)
        self.encoded = self.payloads = self.steps = ""
        self.size = sum(len(row.inline) for row in payloads)
        if not self.is_large:
            self.encoded = _encode(record)
            self.payloads = ",".join(_payload(self.key, record["space"], row) for row in payloads)
            self.steps = ",".join(_step(run_id, step) for step in steps)
            self.size = len(self.encoded) + len(self.payloads) + len(self.steps)
        self.committed_at_us = 0
        """By the store's clock."""
        self.outcome: Outcome | None = None
        self.error: BaseException | None = None
        self.thread = 0
        """Which thread has handed it over."""
        self.has_left = False
        """Whether its thread no longer waits for it, nor leads."""
        self._bell = threading.Lock()
        self._bell.acquire()

    @property
    def is_large(self) -> bool:
        """Whether it is too large for a batch: its own thread writes it with the ordinary statements."""
        return self.size >= LARGE_BYTES

    @property
    def is_exclusive(self) -> bool:
        """Whether no other item of its run may be in its batch. Completions without an advance may share one."""
        return Part.ADVANCE in self.parts

    @property
    def is_settled(self) -> bool:
        """Whether its outcome is known, or known to be in doubt."""
        return self.outcome is not None or self.error is not None

    def settle(self, outcome: Outcome | None = None, error: BaseException | None = None) -> None:
        """Record what became of it; only the first call counts."""
        if not self.is_settled:
            self.outcome, self.error = outcome, error
            self.wake()

    def wake(self) -> None:
        """Let its thread look again."""
        with suppress(RuntimeError):  # it was woken before and has not slept since
            self._bell.release()

    def sleep(self, seconds: float) -> None:
        """Wait for ``wake``, but no longer than this."""
        self._bell.acquire(timeout=seconds)


def fits_together(completion: Completion, head: RunHead, progress: Progress) -> bool:
    """Whether a completion with its advance may be an item."""
    if not fits_alone(completion):
        return False
    if progress.end is not None:
        return head.parent_run_id is None and not progress.new_steps and not progress.cancelled_positions
    return fits_as_advance(head, progress)


def fits_as_advance(head: RunHead, progress: Progress) -> bool:
    """Whether an advance may be an item."""
    return (
        progress.end is None
        and not head.has_stopped_steps
        and not progress.cancelled_positions
        and all(step.kind != "agent" for step in progress.new_steps)
    )


def fits_alone(completion: Completion) -> bool:
    """Whether a completion without its advance may be an item."""
    return not (completion.refused_calls or completion.claim.has_reservations or not completion.is_final)


def completion_item(completion: Completion) -> Item:
    """A completion by itself."""
    claim = completion.claim
    record = {"run": claim.run_id, "space": claim.namespace} | _completed(completion, None)
    parts = Part.COMPLETION | (Part.CALLS if completion.calls else Part.NOTHING)
    return Item(claim.run_id, parts, record, () if completion.result is None else completion.result.rows, ())


def together_item(
    completion: Completion,
    head: RunHead,
    progress: Progress,
    recorded_at_us: int,
    *,
    taken: NewStep | None = None,
    claimant: Claimant | None = None,
) -> Item:
    """A completion with the advance that follows, and the claim of the new step ``taken``."""
    rows = [row for step in progress.new_steps for row in step.arguments.rows]
    if completion.result is not None:
        rows += completion.result.rows
    record = {"run": head.id, "space": head.namespace} | _completed(completion, recorded_at_us)
    record |= _consumed(head, progress)
    parts = Part.COMPLETION | Part.ADVANCE | (Part.CALLS if completion.calls else Part.NOTHING)
    end = progress.end
    if end is not None:
        parts |= Part.END
        record["ends"] = True
        if end.result is not None:
            rows += end.result.rows
            record["run_result"] = end.result.root_id
    parts |= _claimed(record, taken, claimant)
    return Item(head.id, parts, record, rows, progress.new_steps)


def advance_item(
    head: RunHead, progress: Progress, *, taken: NewStep | None = None, claimant: Claimant | None = None
) -> Item:
    """An advance by itself, with the claim of the new step ``taken``."""
    rows = [row for step in progress.new_steps for row in step.arguments.rows]
    record = {"run": head.id, "space": head.namespace} | _consumed(head, progress)
    parts = Part.ADVANCE | _claimed(record, taken, claimant)
    return Item(head.id, parts, record, rows, progress.new_steps)


def _claimed(record: dict[str, object], taken: NewStep | None, claimant: Claimant | None) -> Part:
    if taken is None or claimant is None:
        return Part.NOTHING
    record |= {"taken": taken.position, "holder": claimant.worker, "lease_us": claimant.lease_us}
    return Part.CLAIM


def _completed(completion: Completion, recorded_at_us: int | None) -> dict[str, object]:
    claim = completion.claim
    record: dict[str, object] = {
        "place": claim.position,
        "number": claim.attempt,
        "becomes": "succeeded" if completion.succeeded else "failed",
        "ended_as": completion.outcome.value,
        "kind_of_event": (EventKind.STEP_SUCCEEDED if completion.succeeded else EventKind.STEP_FAILED).value,
        "failures": 0 if completion.succeeded else 1,
    }
    if completion.result is not None:
        record["result"] = completion.result.root_id
    if completion.error is not None:
        record["failure"] = json.dumps(completion.error)
    if completion.traceback is not None:
        record["trace"] = completion.traceback
    data = step_event_data(completion)
    if data is not None:
        record["facts"] = json.dumps(data)
    if recorded_at_us is not None:
        record["happened_at_us"] = recorded_at_us
    if completion.calls:
        record |= {"called": claim.name, "made_calls": [call_columns(each) for each in completion.calls]}
    return record


def _consumed(head: RunHead, progress: Progress) -> dict[str, object]:
    error = progress.error if progress.end is None else progress.end.error
    record: dict[str, object] = {
        "from_seq": progress.from_seq,
        "to_seq": progress.to_seq,
        "goes_to": progress.state.value,
        "reason": progress.state_reason,
        "wakes_at_us": progress.wake_at_us,
        "version": progress.agent_version,
        "minor": progress.python_minor,
        "of_shard": head.shard,
        "root": head.root_run_id,
        "of_agent": head.agent,
        "urgency": head.priority,
    }
    if error is not None:
        record["run_failure"] = json.dumps(error)
    return record


def _payload(key: str, namespace: object, row: PayloadRow) -> str:
    return _encode(
        {
            "key": key,
            "space": namespace,
            "id": row.id,
            "codec": row.codec,
            "size": row.size,
            "sha256": row.sha256,
            "content": row.inline.hex(),
        }
    )


def _step(run_id: str, step: NewStep) -> str:
    return _encode(
        {
            "run": run_id,
            "place": step.position,
            "created_seq": step.created_seq,
            "kind": step.kind,
            "name": step.name,
            "queue": step.queue,
            "delivery": step.delivery,
            "max_lost": step.max_lost,
            "args_id": step.arguments.root_id,
        }
    )
