"""What each view and grouping of costs says, on runs put together by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest

from paidonce_models.errors import InvalidInput
from paidonce_models.states import RunState
from paidonce_models.store.ledger.call_rows import insert_calls
from paidonce_models.store.ledger.cost_queries import CostTable, read_costs
from paidonce_models.store.ledger.cost_statements import CostQuestion, Dimension, kept_sums
from paidonce_models.store.ledger.cost_views import VIEWS, read_view
from paidonce_models.store.ledger.rolling_up import roll_up
from paidonce_models.store.recovery.lost_steps import reclaim_step
from paidonce_models.store.runs.advancing import RunEnd
from paidonce_models.usage import CallKind, CallRecord, CallStatus, UsageSource
from tests.models.stored_runs import NAMESPACE, PRICE_NANOUSD, SECOND_US, Store, failure, key_of, succeeded, success

FAILED = RunEnd(state=RunState.FAILED, error={"type": "ValueError", "message": "no"})
DAY_US = 86_400_000_000


def ask(store: Store, *by: str, **options: Any) -> CostTable:
    with store.database.read_at_once() as connection:
        return read_costs(connection, CostQuestion(namespace=NAMESPACE, by=by, **options))


def costs(store: Store, *by: str, **options: Any) -> dict[Any, int | None]:
    """Money by name, or by names."""
    rows = ask(store, *by, **options).rows
    return {tuple(row.names.values()) if len(by) > 1 else row.names[by[0]]: row.cost_nanousd for row in rows}


def view(store: Store, name: str, columns: str, order: str = "1") -> list[tuple[Any, ...]]:
    query = f"SELECT {columns} FROM {name} WHERE namespace = :namespace ORDER BY {order}"
    return [tuple(row) for row in store.rows(query, namespace=NAMESPACE)]


def call(cost: int | None = PRICE_NANOUSD, *, at_us: int = 1_700_000_000_000_000, **options: Any) -> CallRecord:
    return CallRecord(
        **{
            "kind": CallKind.LLM,
            "started_at_us": at_us,
            "usage_source": UsageSource.PROVIDER,
            "cost_nanousd": cost,
            **options,
        }
    )


def paid(
    store: Store, calls: Sequence[CallRecord], *, end: RunEnd | None = None, name: str = "plan", **run: Any
) -> str:
    """A run of one step that made these calls; under way unless it has an end."""
    run_id = store.submit(**run).run_id
    store.advance(run_id, steps=1, name=name)
    store.complete(replace(success(store.claimed(run_id)), calls=calls))
    if end is not None:
        store.advance(run_id, end=end)
    return run_id


def roll(store: Store) -> int:
    return store.transact(roll_up, NAMESPACE)


def test_a_store_without_calls_knows_no_money(store: Store) -> None:
    table = ask(store, "agent")
    assert table.rows == ()
    assert (table.total.calls, table.total.cost_nanousd, table.total.possibly_billed_nanousd) == (0, None, 0)


def test_a_cause_follows_the_attempt_and_the_root_run(store: Store) -> None:
    paid(store, [call(1)])
    paid(store, [call(2)], end=succeeded())
    paid(store, [call(4)], end=FAILED)
    run_id = store.running()
    store.complete(replace(failure(store.claimed(run_id), retry_after_us=0), calls=[call(8)]))
    store.clock.move(SECOND_US)
    zombie = store.claimed(run_id)
    store.transact(reclaim_step, key_of(zombie), why="gone", alone=True, anyway=True)
    store.complete(replace(success(store.claimed(run_id)), calls=[call(16)]))
    store.complete(replace(success(zombie), calls=[call(32)]))
    assert costs(store, "cause") == {"open": 1 + 8 + 16 + 32, "useful": 2, "abandoned": 4}
    store.advance(run_id, end=succeeded())
    expected = {"open": 1, "useful": 2 + 16, "abandoned": 4, "failed": 8, "fenced": 32}
    assert costs(store, "cause") == expected
    assert roll(store) == 5
    assert costs(store, "cause") == expected


def test_a_zombie_that_reports_after_its_run_was_rolled_up_is_fenced(store: Store) -> None:
    run_id = store.running()
    zombie = store.claimed(run_id)
    store.transact(reclaim_step, key_of(zombie), why="gone", alone=True, anyway=True)
    store.complete(replace(success(store.claimed(run_id)), calls=[call(1)]))
    store.advance(run_id, end=succeeded())
    store.transact(insert_calls, claim=zombie, records=[call(2)])
    assert roll(store) == 1
    assert costs(store, "cause") == {"useful": 1, "lost": 2}
    store.complete(replace(success(zombie), calls=[call(4)]))
    assert costs(store, "cause") == {"useful": 1, "fenced": 6}
    assert roll(store) == 2
    assert costs(store, "cause") == {"useful": 1, "fenced": 6}


def test_a_child_run_is_spent_by_itself_and_judged_by_its_root(store: Store) -> None:
    root = paid(store, [call(1)])
    store.advance(root, children=1)
    (child,) = store.rows("SELECT id FROM runs WHERE parent_run_id = :root", root=root)
    store.advance(child.id, steps=1, name="dig")
    store.complete(replace(success(store.claimed(child.id)), calls=[call(2)]))
    store.advance(child.id, end=succeeded())
    assert roll(store) == 0, "the child's money is open until its root has ended"
    assert costs(store, "run", "cause") == {(root, "open"): 1, (child.id, "open"): 2}
    store.advance(root, end=FAILED)
    assert roll(store) == 2
    assert costs(store, "run", "cause") == {(root, "abandoned"): 1, (child.id, "abandoned"): 2}


@pytest.mark.parametrize("rolled", [False, True])
def test_each_grouping_names_what_its_rows_share(store: Store, rolled: bool) -> None:
    first = paid(store, [call(1, model_requested="m1"), call(2, tool="sql")], end=succeeded(), tags={"customer": "ada"})
    second = paid(store, [call(4, model_billed="m2", at_us=DAY_US)], end=succeeded(), agent="write", name="draft")
    if rolled:
        assert roll(store) == 3
    assert costs(store, "agent") == {"count": 3, "write": 4}
    assert costs(store, "step") == {"plan": 3, "draft": 4}
    assert costs(store, "tool") == {None: 5, "sql": 2}
    assert costs(store, "model") == {"m1": 1, "m2": 4, None: 2}
    assert costs(store, "run") == {first: 3, second: 4}
    assert costs(store, "day") == {"1970-01-02": 4, "2023-11-14": 3}
    assert costs(store, "tag:customer") == {"ada": 3, None: 4}
    assert costs(store, "tag:customer", "tool") == {("ada", None): 1, ("ada", "sql"): 2, (None, None): 4}
    assert costs(store, "model", since_day="2023-11-14") == {"m1": 1, None: 2}
    assert costs(store, "step", agent="write") == {"draft": 4}
    assert view(store, "costs_by_agent", "agent, calls, cost_nanousd") == [("count", 2, 3), ("write", 1, 4)]
    assert view(store, "costs_by_step", "agent, step, cost_nanousd") == [("count", "plan", 3), ("write", "draft", 4)]
    assert view(store, "costs_by_tool", "tool, cost_nanousd", "2") == [("sql", 2), (None, 5)]
    assert view(store, "costs_by_model", "model, cost_nanousd", "2") == [("m1", 1), (None, 2), ("m2", 4)]
    assert view(store, "costs_by_day", "day, cost_nanousd") == [("1970-01-02", 4), ("2023-11-14", 3)]
    assert view(store, "costs_by_cause", "cause, cost_nanousd") == [("useful", 7)]
    assert view(store, "costs_by_tag", "tag, value, cost_nanousd") == [("customer", "ada", 3)]
    assert view(store, "costs_by_run", "run_id, agent, cost_nanousd", "3") == [
        (first, "count", 3),
        (second, "write", 4),
    ]


def test_what_a_limit_leaves_out_is_one_line_and_in_the_total(store: Store) -> None:
    for cost in (1, 2, 4):
        paid(store, [call(cost)])
    table = ask(store, "run", limit=2)
    assert [row.cost_nanousd for row in table.rows] == [4, 2]
    assert table.others is not None
    assert (table.others_rows, table.others.cost_nanousd, table.total.cost_nanousd) == (1, 1, 7)


def test_tags_may_hold_any_character(store: Store) -> None:
    odd = {'na"me': "it's", "名前": "値 %s :x", "a.b": "\\", "path[0]": "🙂\n", "$": ""}
    paid(store, [call(3)], tags=odd, end=succeeded())
    for name, value in odd.items():
        assert costs(store, f"tag:{name}") == {value: 3}
    assert roll(store) == 1
    for name, value in odd.items():
        assert costs(store, f"tag:{name}") == {value: 3}
    found = {(tag, value) for tag, value in view(store, "costs_by_tag", "tag, value")}
    assert found == set(odd.items())


def test_a_failed_request_without_usage_is_a_call_and_nobody_waits_for_its_price(store: Store) -> None:
    missing = UsageSource.MISSING
    paid(store, [call(None, status=CallStatus.FAILED, usage_source=missing), call(5)])
    total = ask(store).total
    assert (total.calls, total.unpriced_calls, total.cost_nanousd) == (2, 0, 5)
    paid(store, [call(None, status=CallStatus.FAILED, input_tokens=3), call(None, status=CallStatus.CUT)])
    total = ask(store).total
    assert (total.calls, total.unpriced_calls, total.cost_nanousd) == (4, 2, 5)
    assert tuple(store.row("SELECT sum(unpriced_calls) FROM attempts")) == (2,)


def test_a_lost_attempt_may_be_billed_for_what_the_step_costs_otherwise(store: Store) -> None:
    paid(store, [call(100), call(50)], end=succeeded())
    paid(store, [call(50)], end=succeeded())
    for name, recorded in (("plan", 30), ("plan", 1000), ("never", None)):
        run_id = store.submit().run_id
        store.advance(run_id, steps=1, name=name)
        claim = store.claimed(run_id)
        if recorded is not None:
            store.transact(insert_calls, claim=claim, records=[call(recorded)])
        store.transact(reclaim_step, key_of(claim), why="gone", alone=True, anyway=True)
    columns = "step, recorded_nanousd, basis_nanousd, estimate_nanousd"
    assert view(store, "possibly_billed", columns, "1, 2") == [
        ("never", None, None, None),
        ("plan", 30, 100, 70),
        ("plan", 1000, 100, 0),
    ]
    by_step = {row.names["step"]: row for row in ask(store, "step").rows}
    assert by_step["plan"].possibly_billed_nanousd == 70
    assert by_step["plan"].cost_nanousd == 200 + 1030, "never inside the money"
    assert (by_step["never"].possibly_billed_nanousd, by_step["never"].calls) == (None, 0)
    total = ask(store, "model").total
    assert (total.possibly_billed_nanousd, total.lost_attempts, total.lost_without_estimate) == (70, 3, 1)


def test_what_nobody_can_estimate_stays_unknown_beside_runs_that_lost_nothing(store: Store) -> None:
    run_id = store.submit().run_id
    store.advance(run_id, steps=1, name="never")
    store.transact(reclaim_step, key_of(store.claimed(run_id)), why="gone", alone=True, anyway=True)
    paid(store, [call(7)], end=succeeded())
    paid(store, [call(5)], end=succeeded())
    for _ in range(2):
        for by in ("step", "run", "tag:user"):
            table = ask(store, by, limit=1)
            assert (table.total.possibly_billed_nanousd, table.total.lost_attempts) == (None, 1), by
        table = ask(store, "run", limit=1)
        assert (table.rows[0].possibly_billed_nanousd, table.rows[0].cost_nanousd) == (0, 7)
        assert table.others is not None
        assert (table.others.possibly_billed_nanousd, table.others.lost_without_estimate) == (None, 1)
        roll(store)


def test_retries_are_costed_by_tool(store: Store) -> None:
    run_id = store.running()
    store.complete(replace(failure(store.claimed(run_id), retry_after_us=0), calls=[call(1, tool="sql")]))
    store.clock.move(SECOND_US)
    again = [call(2, tool="sql"), call(4, tool="sql", http_retry=1), call(8)]
    store.complete(replace(success(store.claimed(run_id)), calls=again))
    store.advance(run_id, end=succeeded())
    columns = "tool, calls, retry_calls, cost_nanousd, retry_cost_nanousd, wasted_cost_nanousd"
    expected = [("sql", 3, 2, 7, 6, 1), (None, 1, 1, 8, 8, None)]
    assert view(store, "retry_costs_by_tool", columns, "cost_nanousd") == expected
    roll(store)
    assert view(store, "retry_costs_by_tool", columns, "cost_nanousd") == expected


def test_a_success_costs_what_the_failures_around_it_cost_too(store: Store) -> None:
    for cost in range(1, 21):
        paid(store, [call(cost)], end=succeeded())
    paid(store, [call(90)], end=FAILED)
    paid(store, [call(1000)])
    columns = (
        "agent, ended_runs, successful_runs, cost_nanousd, cost_per_success_nanousd, p50_cost_nanousd, p95_cost_nanousd"
    )
    assert view(store, "costs_per_successful_run", columns) == [("count", 21, 20, 300, 15, 10, 19)]


def test_runs_of_unknown_cost_make_the_cost_of_a_success_a_lower_bound(store: Store) -> None:
    paid(store, [call(10)], end=succeeded())
    paid(store, [call(None)], end=succeeded())
    paid(store, [call(30)], end=succeeded())
    paid(store, [call(None)], end=succeeded(), agent="blind")
    columns = "agent, successful_runs, cost_nanousd, unpriced_calls, p50_cost_nanousd, p95_cost_nanousd"
    expected = [("blind", 1, None, 1, None, None), ("count", 3, 40, 1, 10, 30)]
    assert view(store, "costs_per_successful_run", columns) == expected
    roll(store)
    assert view(store, "costs_per_successful_run", columns) == expected


def test_what_a_family_spent_stands_beside_its_root_alone(store: Store) -> None:
    root = store.running()
    store.advance(root, children=2)
    kids = [row.id for row in store.rows("SELECT id FROM runs WHERE parent_run_id = :root", root=root)]
    for child, cost in zip(kids, (2, 3), strict=True):
        store.advance(child, steps=1, name="dig")
        store.complete(replace(success(store.claimed(child)), calls=[call(cost)]))
    columns = "run_id, calls, cost_nanousd, tree_cost_nanousd"
    expected = sorted([(root, 0, None, 5), (kids[0], 1, 2, None), (kids[1], 1, 3, None)])
    assert view(store, "costs_by_run", columns) == expected
    store.complete(replace(success(store.claimed(root)), calls=[call(1)]))
    assert view(store, "costs_by_run", columns) == sorted([(root, 1, 1, 6), *expected[1:]])


def test_steps_that_one_crash_cut_off_are_avoided_once(store: Store) -> None:
    run_id = store.running(steps=4)
    for position in (1, 2):
        store.complete(replace(success(store.claimed(run_id, position)), calls=[call(7)]))
    cut_off = [store.claimed(run_id, position) for position in (3, 4)]
    store.clock.move(SECOND_US)
    for claim in cut_off:
        store.transact(reclaim_step, key_of(claim), why="gone", alone=True, anyway=True)
    columns = "agent, reason, crashes, runs, steps_not_repeated, cost_nanousd"
    assert view(store, "avoided_costs", columns) == [("count", "lost", 1, 1, 2, 14)]
    store.clock.move(SECOND_US)
    store.transact(reclaim_step, key_of(store.claimed(run_id, 3)), why="gone", alone=True, anyway=True)
    assert view(store, "avoided_costs", columns) == [("count", "lost", 2, 1, 4, 28)]


def test_data_quality_says_how_much_is_estimated_missing_and_unpriced(store: Store) -> None:
    estimated, missing = UsageSource.ESTIMATED, UsageSource.MISSING
    calls = [call(1), call(1), call(1, usage_source=estimated), call(None, usage_source=missing)]
    paid(store, calls, end=succeeded())
    roll(store)
    columns = "agent, calls, estimated_calls, missing_calls, unpriced_calls, estimated_percent"
    (row,) = view(store, "data_quality", columns)
    assert row[:5] == ("count", 4, 1, 1, 1)
    assert float(row[5]) == 25.0


def test_runs_far_above_their_agents_median_are_named(store: Store) -> None:
    for _ in range(4):
        paid(store, [call(10)])
    dear = paid(store, [call(31)])
    long = store.running(steps=4)
    columns = "run_id, steps, median_steps, cost_nanousd, median_cost_nanousd"
    expected = {(dear, 1, 1, 31, 10), (long, 4, 1, None, 10)}
    assert set(view(store, "unusual_runs", columns)) == expected


@pytest.mark.parametrize("name", VIEWS)
def test_every_view_can_be_read_in_its_order(store: Store, name: str) -> None:
    found = store.read(read_view, name, NAMESPACE, limit=10)
    assert (found.columns, found.rows) == (tuple(VIEWS[name].columns), ())


def test_a_question_that_makes_no_sense_is_refused() -> None:
    for by in (("colour",), ("tag:",), ("agent", "agent")):
        with pytest.raises(InvalidInput):
            CostQuestion(namespace=NAMESPACE, by=by)
    with pytest.raises(InvalidInput, match="limit of 0"):
        CostQuestion(namespace=NAMESPACE, limit=0)


def test_kept_sums_answer_every_question_that_must_be_fast() -> None:
    def kept(*by: str, since_day: str | None = None) -> str:
        return kept_sums(CostQuestion(namespace=NAMESPACE, by=by, since_day=since_day))

    for two in combinations(set(Dimension) - {Dimension.RUN}, 2):
        assert kept(*two) == "daily_costs"
    for by in (["run"], ["tag:customer"], ["tag:customer", "run"], ["agent", "tag:a", "tag:b"]):
        assert kept(*by) == "run_totals"
        assert kept(*by, since_day="2026-11-01") == "run_costs"
    for by in (["tag:customer", "cause"], ["run", "day"]):
        assert kept(*by) == "run_costs"
    assert kept("run", "tool") == "ledger_calls"
