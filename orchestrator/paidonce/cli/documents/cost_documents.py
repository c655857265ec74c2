"""Costs for programs: the names and shapes behind ``--json`` and ``--csv`` of ``paidonce costs`` and ``bill``."""

from __future__ import annotations

import csv
import io

from paidonce.cli.documents.json_documents import Document, bill_document
from paidonce_models.money import decimal_usd_string
from paidonce_models.privacy.visible_text import csv_cell
from paidonce_models.store.ledger.cost_queries import CostRow, CostTable
from paidonce_models.store.ledger.cost_views import ViewRows
from paidonce_models.store.ledger.itemised_bills import BilledAttempt, BilledCall, BilledStep, ItemisedBill, Spent

_MEASURES = (
    "calls",
    "input_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "output_tokens",
    "reasoning_tokens",
    "cost_nanousd",
    "cost_usd",
    "unpriced_calls",
    "possibly_billed_nanousd",
    "lost_attempts",
    "lost_without_estimate",
)


def cost_row_document(row: CostRow) -> Document:
    """A row with the names it is grouped by; unknown is null, which is not 0."""
    measures: Document = {
        name: decimal_usd_string(row.cost_nanousd) if name == "cost_usd" else getattr(row, name) for name in _MEASURES
    }
    return {**row.names, **measures}


def cost_table_document(table: CostTable) -> Document:
    """``rows``, their ``total``, and ``others``: the sum of what a limit left out, or null."""
    return {
        "rows": [cost_row_document(row) for row in table.rows],
        "total": cost_row_document(table.total),
        "others": None if table.others is None else {"rows": table.others_rows, **cost_row_document(table.others)},
    }


def cost_table_csv(table: CostTable) -> str:
    """One line per row under a line of names; empty is unknown. What a limit left out is not in it.

    No cell is a formula to a spreadsheet: see ``csv_cell``.
    """
    text = io.StringIO()
    names = [*table.by, *_MEASURES]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writerow({name: csv_cell(name) for name in names})  # a tag's name is anybody's text
    for row in table.rows:
        writer.writerow({name: csv_cell(value) for name, value in cost_row_document(row).items()})
    return text.getvalue()


def view_document(found: ViewRows) -> Document:
    """The rows of a view by the names of its columns, and whether these are all of them."""
    rows = [dict(zip(found.columns, row, strict=True)) for row in found.rows]
    return {"rows": rows, "complete": found.is_complete}


def view_csv(found: ViewRows) -> str:
    """The rows of a view under its columns' names; empty is unknown."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(
        [csv_cell(value) for value in row] for row in (found.columns, *found.rows)
    )
    return text.getvalue()


def itemised_bill_document(found: ItemisedBill) -> Document:
    """The bill for programs; money both in nano-dollars and as a decimal string of US dollars."""
    return {
        "run_id": found.run_id,
        "agent": found.agent,
        "state": found.state.value,
        "root_run_id": found.root_run_id,
        "duration_us": found.duration_us,
        **_spent_document(found.spent),
        "possibly_billed_nanousd": found.possibly_billed_nanousd,
        "lost_attempts": found.lost_attempts,
        "lost_without_estimate": found.lost_without_estimate,
        "by_cause": {cause.value: _spent_document(spent) for cause, spent in found.by_cause},
        "bill": bill_document(found.bill),
        "steps": [_step_document(step) for step in found.steps],
    }


def _spent_document(spent: Spent) -> Document:
    return {
        "calls": spent.calls,
        "input_tokens": spent.input_tokens,
        "cache_read_tokens": spent.cache_read_tokens,
        "cache_write_tokens": spent.cache_write_tokens,
        "output_tokens": spent.output_tokens,
        "reasoning_tokens": spent.reasoning_tokens,
        "cost_nanousd": spent.cost_nanousd,
        "cost_usd": decimal_usd_string(spent.cost_nanousd),
        "unpriced_calls": spent.unpriced_calls,
    }


def _step_document(step: BilledStep) -> Document:
    return {
        "step": step.position,
        "name": step.name,
        "kind": step.kind,
        "state": step.state,
        "child_run_id": step.child_run_id,
        "duration_us": step.duration_us,
        **_spent_document(step.spent),
        "attempts": [_attempt_document(attempt) for attempt in step.attempts],
    }


def _attempt_document(attempt: BilledAttempt) -> Document:
    return {
        "number": attempt.number,
        "worker": attempt.worker,
        "outcome": attempt.outcome,
        "cause": attempt.cause.value,
        "duration_us": attempt.duration_us,
        **_spent_document(attempt.spent),
        "possibly_billed_nanousd": attempt.possibly_billed_nanousd,
        "basis_nanousd": attempt.basis_nanousd,
        "calls_made": [_call_document(call) for call in attempt.calls],
    }


def _call_document(call: BilledCall) -> Document:
    return {
        "id": call.call_id,
        "kind": call.kind,
        "tool": call.tool,
        "provider": call.provider,
        "model": call.model,
        "status": call.status,
        "usage_source": call.usage_source,
        "http_retry": call.http_retry,
        "provider_request_id": call.provider_request_id,
        "price_source": call.price_source,
        "started_at_us": call.started_at_us,
        "duration_us": call.duration_us,
        **_spent_document(call.spent),
    }
