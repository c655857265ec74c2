"""``paidonce show``: a run with its steps and bill, or one step with all its attempts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import click

from paidonce.cli.arguments import LAST_STEP
from paidonce.cli.connections import OpenStore, open_checked
from paidonce.cli.documents.json_documents import run_document, step_document, time_text, value_of
from paidonce.cli.output import first_and_last, json_option, print_json, shortened, tags_text, tell, tell_lines
from paidonce.cli.tables import SafeTable, output_console
from paidonce.cli.texts.bill_text import bill_text
from paidonce_models.errors import NotFound
from paidonce_models.store.ledger.bills import Bill, read_bill
from paidonce_models.store.queries import (
    AttemptView,
    RunView,
    StepView,
    read_attempts,
    read_run,
    read_step_payloads,
    read_steps,
    resolve_run,
)

SHOWN_CHARACTERS = 2_000


@click.command()
@click.argument("run", metavar="RUN")
@click.option(
    "--step", "position", type=click.IntRange(1, LAST_STEP), metavar="N", help="Show this step and its attempts."
)
@json_option
def show(run: str, position: int | None, as_json: bool) -> None:
    """Show RUN (its id, or an alias such as a Celery task's id) and its steps in order.

    With --step: the step's arguments, its result, and each attempt's worker, times, outcome, error and traceback.
    """
    store = open_checked()
    if position is not None:
        _show_step(store, run, position, as_json)
        return
    namespace = store.namespace
    with store.database.read() as connection:
        run_id = resolve_run(connection, namespace, run)
        view, steps = read_run(connection, namespace, run_id), read_steps(connection, namespace, run_id)
        bill = read_bill(connection, run_id)
    if as_json:
        print_json(run_document(view, steps, bill))
    else:
        _print_run(view, steps, bill)


def _show_step(store: OpenStore, run: str, position: int, as_json: bool) -> None:
    namespace = store.namespace
    with store.database.read() as connection:
        run_id = resolve_run(connection, namespace, run)
        arguments, result = read_step_payloads(connection, run_id, position)
        attempts = read_attempts(connection, run_id, position)
        step = next((step for step in read_steps(connection, namespace, run_id) if step.step == position), None)
    if step is None:
        raise NotFound(f"run {run_id} has no step {position}; `paidonce show {run_id}` lists its steps")
    if as_json:
        print_json(step_document(run_id, step, arguments, result, attempts))
    else:
        _print_step(run_id, step, arguments, result, attempts)


def _print_run(run: RunView, steps: Sequence[StepView], bill: Bill) -> None:
    why = f" ({run.state_reason})" if run.state_reason else ""
    _print_pairs(
        {
            "run": run.run_id,
            "agent": run.agent if run.agent_version is None else f"{run.agent} (version {run.agent_version})",
            "state": f"{run.state}{why}",
            "key": run.key,
            "tags": tags_text(run.tags),
            "parent": run.parent_run_id,
            "created": time_text(run.created_at),
            "finished": time_text(run.finished_at),
            "input": _shown(run.input),
            "result": _shown(run.result),
            "error": _error_text(run.error),
        }
    )
    if steps:
        table = SafeTable(
            "step", "name", "kind", "state", "attempts", "worker", "finished", "error", box=None, pad_edge=False
        )
        first, last = first_and_last(steps)
        for step in [*first, *last]:
            if last and step is last[0]:
                table.add_row("…", f"{len(steps) - len(first) - len(last):,} more")
            lost = f" ({step.lost} lost)" if step.lost else ""
            table.add_row(
                str(step.step),
                step.name if step.child_run_id is None else f"{step.name} → {step.child_run_id}",
                step.kind,
                step.state,
                f"{step.attempts}{lost}",
                step.worker or "",
                time_text(step.finished_at) or "",
                shortened(_error_text(step.error) or ""),
            )
        click.echo()
        output_console().print(table)
        if last:
            click.echo(
                f"These are the first and the last of {len(steps):,} steps; --json shows all, --step N shows one."
            )
        for step in [*first, *last]:
            if step.waits_for is not None:
                tell(f"step {step.step} is {step.state}: {step.waits_for}")
    click.echo(f"\n{bill_text(bill)}")


def _print_step(
    run_id: str, step: StepView, arguments: bytes, result: bytes | None, attempts: Sequence[AttemptView]
) -> None:
    _print_pairs(
        {
            "run": run_id,
            "step": f"{step.step} {step.name} ({step.kind})",
            "state": step.state,
            "waits for": step.waits_for,
            "arguments": _shown(arguments),
            ("kept" if step.state == "blocked" else "result"): _shown(result),
            "error": _error_text(step.error),
            "child run": step.child_run_id,
        }
    )
    for attempt in attempts:
        tell()
        tell(f"attempt {attempt.number}: {attempt.outcome or 'under way'}")
        _print_pairs(
            {
                "  worker": attempt.worker,
                "  started": time_text(attempt.claimed_at),
                "  finished": time_text(attempt.ended_at),
                "  error": _error_text(attempt.error),
            }
        )
        if attempt.traceback:
            tell_lines("".join(f"    {line}\n" for line in attempt.traceback.rstrip("\n").split("\n")))


def _print_pairs(pairs: Mapping[str, str | None]) -> None:
    """Names and values in two columns, without unknown or empty ones."""
    width = max(len(name) for name in pairs)
    for name, value in pairs.items():
        if value:
            tell(f"{name:<{width}}  {value}")


def _shown(data: bytes | None) -> str | None:
    if data is None:
        return None
    text = json.dumps(value_of(data), ensure_ascii=False)
    if len(text) <= SHOWN_CHARACTERS:
        return text
    return f"{text[:SHOWN_CHARACTERS]}… ({len(data):,} bytes; --json shows all)"


def _error_text(error: Mapping[str, object] | None) -> str | None:
    return None if error is None else f"{error.get('type', 'Error')}: {error.get('message', '')}"
