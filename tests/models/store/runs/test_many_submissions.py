"""Submitting many runs at once: row for row what submitting them one by one writes."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from threading import Barrier
from unittest.mock import patch

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paidonce_models.budgets import lineage_of
from paidonce_models.errors import KeyConflict
from paidonce_models.payloads.encoding import canonical_sha256, encode_json
from paidonce_models.payloads.payload_parts import split
from paidonce_models.store.queries import resolve_run
from paidonce_models.store.runs import bulk_insert, submission
from paidonce_models.store.runs.submission import NewRun, Outcome, Submitted, submit_run, submit_runs
from tests.models.stored_runs import NAMESPACE, Store, new_run

PRODUCERS = 4
ROWS = (
    "SELECT * FROM runs ORDER BY id",
    "SELECT * FROM run_events ORDER BY run_id, seq",
    "SELECT * FROM payloads WHERE id IN (SELECT input_id FROM runs) ORDER BY id",
    "SELECT * FROM run_aliases ORDER BY alias",
)
VALUES = st.sampled_from([1, "text", {"a": None}, "\ud800", 2**80, "x" * 5_000, [{"n": n} for n in range(3_000)]])
RUNS = st.builds(
    dict,
    value=VALUES,
    key=st.sampled_from([None, None, "a", "b", "ä\u20ac'\"\\{}"]),
    tags=st.sampled_from([{}, {"user": "u'1\"\\"}, {"b": "\n", "a": "ä"}]),
    priority=st.integers(0, 9),
    queue=st.sampled_from(["paidonce.default", "paidonce.other"]),
    agent=st.sampled_from(["count", "a'gent"]),
    alias=st.sampled_from([None, "alias-1", "alias-2"]),
    shard=st.integers(0, 3),
    child=st.booleans(),
)


def _runs(drawn: Sequence[dict[str, object]]) -> list[NewRun]:
    """Runs with ids of their own; of two with the same agent and key only the first."""
    numbers = count(1)
    taken: set[tuple[object, object]] = set()
    made: list[NewRun] = []
    for options in drawn:
        key = (options["agent"], options["key"])
        if options["key"] is not None and key in taken:
            continue
        taken.add(key)
        given = {"value": options["value"]}
        child = {
            "parent_run_id": "parent",
            "parent_position": 3,
            "root_run_id": "root",
            "depth": 2,
            "agent_version": "7",
            "trace_context": "00-ab",
            "lineage": lineage_of("parent", "count", {"user": "u"}, None),
        }
        made.append(
            NewRun(
                namespace=NAMESPACE,
                run_id=f"run-{next(numbers):03}",
                input=split(encode_json(given)),
                input_sha256=canonical_sha256(given),
                **{name: value for name, value in options.items() if name not in ("value", "child")},  # type: ignore[arg-type]
                **(child if options["child"] else {}),  # type: ignore[arg-type]
            )
        )
    return made


def _stored(store: Store) -> list[list[tuple[object, ...]]]:
    """Every row, without the times: an injected clock goes on while PostgreSQL works."""
    rows = [[row._asdict() for row in store.rows(query)] for query in ROWS]
    return [
        [tuple((name, value) for name, value in row.items() if not name.endswith("_us")) for row in table]
        for table in rows
    ]


def _one_by_one(store: Store, runs: Sequence[NewRun]) -> list[Outcome]:
    outcomes: list[Outcome] = []
    for new in runs:
        try:
            outcomes.append(store.transact(submit_run, new))
        except KeyConflict as conflict:
            outcomes.append(conflict)
    return outcomes


def _told(outcomes: Sequence[Outcome]) -> list[object]:
    return [outcome if isinstance(outcome, Submitted) else (outcome.message, outcome.details) for outcome in outcomes]


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=st.lists(RUNS, max_size=3), drawn=st.lists(RUNS, min_size=1, max_size=6))
def test_many_at_once_write_what_they_write_one_by_one(
    store: Store, before: list[dict[str, object]], drawn: list[dict[str, object]]
) -> None:
    known = [replace(new, run_id=f"known-{new.run_id}", alias=None) for new in _runs(before)]
    runs = _runs(drawn)
    # Which of two runs in one call keeps a common alias is left open.
    aliases = [new.alias for new in runs if new.alias is not None]
    if len(set(aliases)) < len(aliases):
        runs = [replace(new, alias=None) for new in runs]
    store.clear()
    # The plain statements say on both engines what is to be written.
    with patch.object(submission, "insert_at_once", submission._insert):
        _one_by_one(store, known)
        told = _told(_one_by_one(store, runs))
    expected = _stored(store)
    store.clear()
    _one_by_one(store, known)
    assert _told(store.transact(submit_runs, runs)) == told
    assert _stored(store) == expected


def test_a_repeated_call_finds_the_runs_that_it_has_created(store: Store) -> None:
    """Its response was lost: nobody knows whether it was committed."""
    runs = [new_run(number, run_id=f"run-{number}", key=None if number % 2 else f"k{number}") for number in range(6)]
    first = store.transact(submit_runs, runs)
    again = store.transact(submit_runs, runs)
    assert first == again and all(isinstance(each, Submitted) and each.created for each in again)
    assert store.row("SELECT count(*) FROM runs") == (6,) == store.row("SELECT count(*) FROM run_events")


def test_a_conflict_keeps_nothing_else_from_being_created(store: Store) -> None:
    recorded = store.submit(1, key="b")
    before, conflict, after = store.transact(
        submit_runs, [new_run(1, key="a"), new_run(2, key="b"), new_run(3, key="c", alias="third")]
    )
    assert isinstance(before, Submitted) and isinstance(after, Submitted) and before.created and after.created
    assert isinstance(conflict, KeyConflict) and conflict.details["run_id"] == recorded.run_id
    assert '{"value": 1}' in conflict.message and '{"value": 2}' in conflict.message
    assert store.read(resolve_run, NAMESPACE, "third") == after.run_id


def test_runs_without_a_key_are_listed_in_the_order_of_their_submission(store: Store) -> None:
    outcomes = store.transact(submit_runs, [new_run(number) for number in range(20)])
    ids = [outcome.run_id for outcome in outcomes if isinstance(outcome, Submitted)]
    if not store.database.is_sqlite:  # SQLite's clock stands still in tests
        assert [run_id for (run_id,) in store.rows("SELECT id FROM runs ORDER BY created_at_us")] == ids


def test_producers_that_race_for_the_same_keys_get_the_same_runs(store: Store) -> None:
    """Each has its own order of them: without a common one they would deadlock."""
    barrier = Barrier(PRODUCERS)

    def produce(number: int) -> dict[str | None, Outcome]:
        runs = [new_run(key % 40, key=f"k{key % 40}") for key in range(number * 7, number * 7 + 40)]
        runs = runs if number % 2 else runs[::-1]
        barrier.wait()
        return dict(zip((new.key for new in runs), store.transact(submit_runs, runs), strict=True))

    for _ in range(5):
        store.clear()
        with ThreadPoolExecutor(PRODUCERS) as pool:
            answers = list(pool.map(produce, range(PRODUCERS)))
        assert store.row("SELECT count(*) FROM runs") == (40,) == store.row("SELECT count(*) FROM run_events")
        for key in (f"k{number}" for number in range(40)):
            outcomes = [answer[key] for answer in answers]
            submitted = [outcome for outcome in outcomes if isinstance(outcome, Submitted)]
            assert len(submitted) == PRODUCERS and len({each.run_id for each in submitted}) == 1
            assert sum(each.created for each in submitted) == 1


def test_known_keys_are_looked_up_one_by_one_in_their_index(store: Store) -> None:
    """In a new store PostgreSQL believes that reading all runs of the namespace is cheaper, and keeps that plan."""
    if store.database.is_sqlite:
        return
    explained = bulk_insert.FIND_AT_ONCE.replace("%(namespace)s", ":namespace").replace(
        "%(runs)s::json", "CAST(:runs AS json)"
    )
    plan = "\n".join(
        line for (line,) in store.rows(f"EXPLAIN {explained}", namespace=NAMESPACE, runs='[{"agent": "count"}]')
    )
    assert "Index Scan using uq_runs_key" in plan and "ix_runs" not in plan, plan
