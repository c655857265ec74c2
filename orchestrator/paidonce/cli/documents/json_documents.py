"""What the commands print with ``--json``: the names and shapes that programs may rely on.

Times are ISO 8601 in UTC, money is US dollars as an exact decimal string, unknown is null.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from paidonce.values.stored_form import natural_json
from paidonce_models.money import decimal_usd_string
from paidonce_models.payloads.encoding import decode_json

if TYPE_CHECKING:  # `paidonce policies` prints documents without a store
    from paidonce_models.store.ledger.bills import Bill
    from paidonce_models.store.queries import AttemptView, RunView, StepView

Document = dict[str, object]


def time_text(moment: datetime | None) -> str | None:
    """ISO 8601 in UTC with microseconds."""
    return None if moment is None else moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def value_of(data: bytes | None) -> object:
    """A stored JSON value, without the types that may stand beside it; ``None`` where there is none."""
    return None if data is None else natural_json(decode_json(data))


def run_line(run: RunView) -> Document:
    """A run as ``paidonce runs`` lists it."""
    return {
        "run_id": run.run_id,
        "agent": run.agent,
        "agent_version": run.agent_version,
        "key": run.key,
        "state": run.state.value,
        "state_reason": run.state_reason,
        "error": run.error,
        "tags": run.tags,
        "queue": run.queue,
        "priority": run.priority,
        "parent_run_id": run.parent_run_id,
        "root_run_id": run.root_run_id,
        "created_at": time_text(run.created_at),
        "started_at": time_text(run.started_at),
        "finished_at": time_text(run.finished_at),
    }


def run_document(run: RunView, steps: Sequence[StepView], bill: Bill) -> Document:
    """A run as ``paidonce show RUN`` shows it."""
    return {
        **run_line(run),
        "input": value_of(run.input),
        "result": value_of(run.result),
        "steps": [step_line(step) for step in steps],
        "bill": bill_document(bill),
    }


def step_line(step: StepView) -> Document:
    """A step within its run; ``attempts`` is a count."""
    return {
        "step": step.step,
        "name": step.name,
        "kind": step.kind,
        "state": step.state,
        "attempts": step.attempts,
        "lost": step.lost,
        "worker": step.worker,
        "started_at": time_text(step.started_at),
        "finished_at": time_text(step.finished_at),
        "error": step.error,
        "child_run_id": step.child_run_id,
        "waits_for": step.waits_for,
    }


def step_document(
    run_id: str, step: StepView, arguments: bytes, result: bytes | None, attempts: Sequence[AttemptView]
) -> Document:
    """A step as ``paidonce show RUN --step N`` shows it; ``attempts`` is a list."""
    return {
        "run_id": run_id,
        **step_line(step),
        "arguments": value_of(arguments),
        "result": value_of(result),
        "attempts": [attempt_document(attempt) for attempt in attempts],
    }


def attempt_document(attempt: AttemptView) -> Document:
    """One attempt; ``outcome`` is null while it is under way."""
    return {
        "number": attempt.number,
        "worker": attempt.worker,
        "started_at": time_text(attempt.claimed_at),
        "finished_at": time_text(attempt.ended_at),
        "outcome": attempt.outcome,
        "error": attempt.error,
        "traceback": attempt.traceback,
        "calls": attempt.calls,
        "unpriced_calls": attempt.unpriced_calls,
        "input_tokens": attempt.input_tokens,
        "output_tokens": attempt.output_tokens,
        "cost_usd": decimal_usd_string(attempt.cost_nanousd),
    }


def bill_document(bill: Bill) -> Document:
    """The bill of a run; ``tree`` is null for a run without child runs and is never added to the rest."""
    return {**_sums(bill), "child_runs": bill.child_runs, "tree": None if bill.tree is None else _sums(bill.tree)}


def _sums(bill: Bill) -> Document:
    return {
        "steps_paid": bill.steps_paid,
        "steps_not_repeated": bill.steps_not_repeated,
        "attempts": bill.attempts,
        "attempts_lost": bill.attempts_lost,
        "calls": bill.calls,
        "unpriced_calls": bill.unpriced_calls,
        "input_tokens": bill.input_tokens,
        "output_tokens": bill.output_tokens,
        "cost_usd": decimal_usd_string(bill.cost_nanousd),
        "lost_cost_usd": decimal_usd_string(bill.lost_cost_nanousd),
        "avoided_cost_usd": decimal_usd_string(bill.avoided_cost_nanousd),
        "starting_over_cost_usd": decimal_usd_string(bill.starting_over_cost_nanousd),
    }
