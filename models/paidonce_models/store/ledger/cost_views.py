"""The views that people query by name: what each answers and what its columns mean.

Their SQL is in migrations 0002 and 0007.
All of them have ``namespace`` as a column besides those listed here. Columns that end
in ``_nanousd`` are nano-dollars; NULL is unknown, never 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, text

from paidonce_models.errors import InvalidInput
from paidonce_models.store.ledger.cost_statements import with_literals

_SUMS = {
    "calls": "requests",
    "unpriced_calls": "those without a price, except failed requests that report no tokens",
    "input_tokens": "known input tokens, including those of the cache",
    "cache_read_tokens": "of these, read from the cache",
    "cache_write_tokens": "of these, written to the cache",
    "output_tokens": "known output tokens, including reasoning",
    "reasoning_tokens": "of these, reasoning",
    "cost_nanousd": "known money; a lower bound where there are unpriced calls",
}
_AGENT = {"agent": "whose run made the calls"}


@dataclass(frozen=True, kw_only=True, slots=True)
class CostView:
    """A view: what it answers, its columns, and in which order its rows are of use."""

    answers: str
    columns: Mapping[str, str]
    order: str = "cost_nanousd IS NULL, cost_nanousd DESC, 1"


VIEWS: Mapping[str, CostView] = {
    "costs_by_agent": CostView(answers="what each agent spent", columns=_AGENT | _SUMS),
    "costs_by_step": CostView(
        answers="what each step of each agent spent", columns=_AGENT | {"step": "its name"} | _SUMS
    ),
    "costs_by_tool": CostView(
        answers="what was spent inside each tool", columns={"tool": "the innermost one, NULL outside of any"} | _SUMS
    ),
    "costs_by_model": CostView(
        answers="what each model cost", columns={"model": "the billed model, else the requested one"} | _SUMS
    ),
    "costs_by_run": CostView(
        answers="what each run spent itself, without its child runs",
        columns={"run_id": "the run", "agent": "its agent", "root_run_id": "the root run"}
        | _SUMS
        | {"tree_cost_nanousd": "for a root run: known money of its whole family; do not add it up"},
    ),
    "costs_by_tag": CostView(
        answers="what each value of each tag spent; a run with two tags is in two rows",
        columns={"tag": "the tag's name", "value": "its value"} | _SUMS,
    ),
    "costs_by_day": CostView(
        answers="what each UTC day cost", columns={"day": "when the calls began"} | _SUMS, order="day"
    ),
    "costs_by_cause": CostView(
        answers="what was useful and what was not", columns={"cause": "see the table of causes"} | _SUMS
    ),
    "retry_costs_by_tool": CostView(
        answers="what retries cost",
        columns={
            "tool": "the innermost one, NULL outside of any",
            "calls": "requests",
            "retry_calls": "those of a later attempt, or repeated by the client's library",
            "cost_nanousd": "all known money",
            "retry_cost_nanousd": "cost of the retries",
            "wasted_cost_nanousd": "cost of calls whose cause is neither useful nor open",
        },
        order="retry_cost_nanousd IS NULL, retry_cost_nanousd DESC, 1",
    ),
    "costs_per_successful_run": CostView(
        answers="what a success costs, including failed runs and child runs",
        columns={
            "agent": "agent of the root run",
            "ended_runs": "root runs that have ended",
            "successful_runs": "those that succeeded",
            "cost_nanousd": "what all ended runs spent",
            "unpriced_calls": "calls without a price",
            "cost_per_success_nanousd": "the cost divided by the successful runs, rounded down",
            "p50_cost_nanousd": "half of the successful runs with known money cost no more",
            "p95_cost_nanousd": "95 of 100 of them cost no more",
        },
    ),
    "avoided_costs": CostView(
        answers="what recoveries did not pay again; never a part of the spend",
        columns={
            "agent": "whose runs recovered",
            "reason": "what they recovered from",
            "runs": "how many runs",
            "crashes": "how many crashes; steps that one crash cut off together count once",
            "steps_not_repeated": "finished steps that starting over would have repeated",
            "unpriced_calls": "calls without a price in these steps",
            "cost_nanousd": "what these steps had cost",
        },
    ),
    "refused_calls": CostView(
        answers="calls that an open circuit refused, so that nobody paid for them; counts, because what they would "
        "have cost is unknown",
        columns={
            "agent": "whose calls",
            "step": "the tool or step that was not called, or whose body's call was refused",
            "steps": "how many steps",
            "refused_calls": "how many calls",
        },
        order="refused_calls DESC, agent, step",
    ),
    "possibly_billed": CostView(
        answers="what providers may have billed for attempts whose worker vanished; never a part of the spend",
        columns={
            "day": "when the attempt began",
            "run_id": "its run",
            "root_run_id": "the root run",
            "agent": "its agent",
            "tags": "the run's tags as JSON",
            "position": "the number of its step",
            "step": "the step's name",
            "attempt": "its number",
            "cause": "lost, or open while the root run is under way",
            "recorded_nanousd": "what a heartbeat had written before",
            "basis_nanousd": "what the last 100 accepted attempts of this step cost on average, rounded down",
            "estimate_nanousd": "the basis minus what was recorded; NULL without a basis",
        },
        order="day, run_id, position, attempt",
    ),
    "budgets_now": CostView(
        answers="the balances of the budgets",
        columns={
            "subject": "whose runs",
            "period": "run, day or month (UTC)",
            "unit": "usd (in nano-dollars), tokens or steps",
            "source": "set, or declared in the agent's code",
            "limit_amount": "the limit",
            "accounts": "1 for the current day or month if anything was spent; of runs, how many",
            "spent": "in these accounts, as far as known",
            "reserved": "by attempts under way",
            "unpriced_calls": "calls without a price",
            "held_steps": "steps that wait for it",
        },
        order="subject, period, unit, source",
    ),
    "data_quality": CostView(
        answers="how far the figures can be trusted",
        columns={
            "agent": "whose calls",
            "calls": "requests",
            "estimated_calls": "those whose tokens are an estimate",
            "missing_calls": "those that report no usage",
            "unpriced_calls": "those without a price",
            "estimated_percent": "share of the first",
            "missing_percent": "share of the second",
            "unpriced_percent": "share of the third",
        },
        order="agent",
    ),
    "unusual_runs": CostView(
        answers="runs with more than 3 times their agent's median steps or money",
        columns={
            "agent": "the agent",
            "run_id": "the run",
            "state": "its state",
            "steps": "how many steps it requested",
            "median_steps": "the agent's median",
            "cost_nanousd": "what it spent itself",
            "median_cost_nanousd": "the agent's median",
        },
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewRows:
    """The rows of a view in its order; values are text, integers, floats or ``None``.

    ``is_complete`` is False where the limit left rows out.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]
    is_complete: bool


def read_view(connection: Connection, name: str, namespace: str, *, limit: int) -> ViewRows:
    """The first rows of a view. Raises ``InvalidInput`` for a name that is none."""
    found = connection.execute(text(_statement(name)), {"namespace": namespace, "limit": limit + 1}).all()
    rows = found[:limit]
    return ViewRows(
        columns=tuple(_view(name).columns),
        rows=tuple(tuple(value if value is None else _plain(value) for value in row) for row in rows),
        is_complete=len(found) <= limit,
    )


def view_sql(name: str, namespace: str, *, limit: int) -> str:
    """The statement behind ``read_view`` as text for ``psql`` or ``sqlite3``."""
    return with_literals(_statement(name), {"namespace": namespace, "limit": limit})


def _view(name: str) -> CostView:
    if name not in VIEWS:
        raise InvalidInput(f"no view is named {name!r}; there are {', '.join(VIEWS)}")
    return VIEWS[name]


def _statement(name: str) -> str:
    view = _view(name)
    return (
        f"SELECT {', '.join(view.columns)}\nFROM {name}\nWHERE namespace = :namespace\n"
        f"ORDER BY {view.order}\nLIMIT :limit"
    )


def _plain(value: object) -> object:
    return value if isinstance(value, str | int | float) else float(str(value))
