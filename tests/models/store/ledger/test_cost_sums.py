"""Whatever happens to runs: by cause or by anything else, from kept sums or from rows, it is the same money."""

from __future__ import annotations

import random
import threading
from collections import Counter
from itertools import combinations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, text

from paidonce_models.states import ATTEMPT_MOVES, RUN_MOVES, RUN_TERMINAL, AttemptOutcome
from paidonce_models.store.ledger.cost_queries import CostRow, CostTable, read_costs
from paidonce_models.store.ledger.cost_statements import MEASURES, CostQuestion, cost_statement, kept_sums
from paidonce_models.store.ledger.rolling_up import roll_up
from tests.long_proofs import share_of
from tests.models.ledger_acts import Lives
from tests.models.stored_runs import NAMESPACE, Store

NAMES = ("agent", "step", "tool", "model", "run", "cause", "day", "tag:customer", "tag:nobody")
GROUPINGS: list[tuple[str, ...]] = [(), *((name,) for name in NAMES), *combinations(NAMES[:8], 2)]
CAUSES = {"open", "useful", "abandoned", *(outcome for outcome in AttemptOutcome if outcome != "accepted")}


def question(by: tuple[str, ...], **options: object) -> CostQuestion:
    return CostQuestion(namespace=NAMESPACE, by=by, **options)  # type: ignore[arg-type]  # a test's own options


def added(rows: list[CostRow], name: str) -> int | None:
    known = [value for row in rows if (value := getattr(row, name)) is not None]
    return sum(known) if known else None


def check_parts(table: CostTable) -> None:
    """The parts of a table add up to its total."""
    rows = [*table.rows, *([table.others] if table.others else [])]
    for name in MEASURES:
        if name != "possibly_billed_nanousd":
            assert (added(rows, name) or 0) == (getattr(table.total, name) or 0), name


def lines(connection: Connection, by: tuple[str, ...], source: str, limit: int | None) -> list[tuple[object, ...]]:
    sql, parameters = cost_statement(question(by, limit=limit), source, connection.dialect.name)
    return [tuple(row) for row in connection.execute(text(sql), parameters)]


def check_ledger(store: Store) -> None:
    """Every grouping adds up, and the kept sums say what the rows say."""
    with store.database.read_at_once() as connection:
        calls = connection.execute(text("SELECT * FROM calls")).all()
        spent = [call.cost_nanousd for call in calls if call.cost_nanousd is not None]
        for by in GROUPINGS:
            table = read_costs(connection, question(by, limit=3))
            check_parts(table)
            assert table.total.calls == len(calls)
            assert table.total.cost_nanousd == (sum(spent) if spent else None), by
            sources = {kept_sums(question(by)), kept_sums(question(by, since_day="2000-01-01"))}
            for limit in (None, 3):
                recomputed = lines(connection, by, "ledger_calls", limit)
                for source in sources:
                    assert lines(connection, by, source, limit) == recomputed, (by, source, limit)
        expected: Counter[str] = Counter()
        for call in calls:
            expected[cause_of(connection, call)] += call.cost_nanousd or 0
        by_cause = read_costs(connection, question(("cause",))).rows
        assert {row.names["cause"]: row.cost_nanousd or 0 for row in by_cause if row.calls} == dict(expected)
        assert expected.keys() <= CAUSES


def cause_of(connection: Connection, call: object) -> str:
    """The definition, step by step, without any of the views."""
    key = {"run_id": call.run_id, "position": call.position, "number": call.attempt}  # type: ignore[attr-defined]  # row
    outcome = connection.execute(
        text("SELECT outcome FROM attempts WHERE run_id = :run_id AND position = :position AND number = :number"), key
    ).scalar_one()
    root = {"id": call.root_run_id}  # type: ignore[attr-defined]  # a row
    state = connection.execute(text("SELECT state FROM runs WHERE id = :id"), root).scalar_one()
    if state not in RUN_TERMINAL or outcome is None:
        return "open"
    if outcome == "accepted":
        return "useful" if state == "succeeded" else "abandoned"
    return str(outcome)


def live_and_check(store: Store, seed: int, acts: int) -> None:
    store.clear()
    lives = Lives(store, random.Random(seed))
    for number in range(acts):
        lives.act()
        if number % 30 == 29:
            check_ledger(store)
    check_ledger(store)
    while store.transact(roll_up, NAMESPACE):
        pass
    check_ledger(store)


CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@settings(max_examples=1, suppress_health_check=CHECKS)
@given(seed=st.integers(0, 2**32), acts=st.integers(20, 90))
def test_every_sum_is_the_same_nano_dollars_whatever_happened(shared_store: Store, seed: int, acts: int) -> None:
    live_and_check(shared_store, seed, acts)


@pytest.mark.slow
@pytest.mark.timeout(600)
@settings(max_examples=share_of(25), suppress_health_check=CHECKS)
@given(seed=st.integers(0, 2**32), acts=st.integers(20, 90))
def test_every_sum_is_the_same_nano_dollars_in_many_lives(shared_store: Store, seed: int, acts: int) -> None:
    live_and_check(shared_store, seed, acts)


@pytest.mark.slow
def test_sums_stay_right_while_several_write_and_roll_up(store: Store) -> None:
    errors: list[BaseException] = []
    done = threading.Event()

    def live(seed: int) -> None:
        lives = Lives(store, random.Random(seed))
        for _ in range(120):
            lives.act()

    def keep_rolling() -> None:
        while not done.is_set():
            store.transact(roll_up, NAMESPACE, most=5)

    def keep_reading() -> None:
        before = 0
        while not done.is_set():
            with store.database.read_at_once() as connection:
                sums = [read_costs(connection, question(by)) for by in ((), ("cause", "day"), ("run",), ("model",))]
                rows = connection.execute(text("SELECT count(*), sum(cost_nanousd) FROM calls")).one()
            for table in sums:
                check_parts(table)
                assert (table.total.calls, table.total.cost_nanousd) == (rows[0], rows[1])
            assert before <= rows[0]
            before = rows[0]

    def guarded(work: object, *arguments: object) -> None:
        try:
            work(*arguments)  # type: ignore[operator]  # one of the three above
        except BaseException as error:  # noqa: BLE001 - reported by the test's own thread
            errors.append(error)
            done.set()

    writers = [threading.Thread(target=guarded, args=(live, seed)) for seed in range(3)]
    others = [threading.Thread(target=guarded, args=(work,)) for work in (keep_rolling, keep_rolling, keep_reading)]
    for thread in (*writers, *others):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    for thread in others:
        thread.join()
    assert errors == []
    check_ledger(store)


def test_what_the_sums_take_for_final_is_final() -> None:
    """Rolling up leaves out ``lost`` and takes a run's end for its end: a new move here needs a new look there."""
    assert all(RUN_MOVES[state] == frozenset() for state in RUN_TERMINAL)
    movable = {outcome for outcome, moves in ATTEMPT_MOVES.items() if outcome is not None and moves}
    # ``blocked`` becomes ``accepted`` with an event of its run, which an ended run does not take.
    assert movable == {AttemptOutcome.LOST, AttemptOutcome.TIMED_OUT, AttemptOutcome.BLOCKED}
