"""PostgreSQL's batches write the rows that the generic statements write, and refuse what those refuse.

``TEST_SHARE`` sets how many of a hundred cases the slow form plays for each thing that can happen meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from paidonce_models.store.commits.items import completion_item
from paidonce_models.store.steps.completion import Acceptance, complete_alone
from tests.long_proofs import share_of
from tests.models.stored_runs import Store, failure, success
from tests.models.twin_paths import (
    DISTURBANCES,
    EMPTY,
    USUAL,
    Outcome,
    Rows,
    Scene,
    Twin,
    all_rows,
    commit_in,
    rows_of,
    stop_the_clock,
    twins,
    undone,
)
from tests.services.postgres import fresh_database

MANY = share_of(100)
PROFILE = settings(
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    phases=set(Phase) - {Phase.explain},
)


@pytest.fixture(scope="module")
def twin_store(postgres_server: str) -> Iterator[Store]:
    with fresh_database(postgres_server) as url:
        store = Store(url)
        stop_the_clock(store)
        yield store
        store.database.close()


@pytest.mark.parametrize("meanwhile", DISTURBANCES)
def test_both_paths_write_the_same_rows_in_some_usual_cases(twin_store: Store, meanwhile: str) -> None:
    for twin in USUAL[list(DISTURBANCES).index(meanwhile) % 4 :: 4]:
        check(twin_store, meanwhile, twin)


@pytest.mark.slow
@pytest.mark.parametrize("meanwhile", DISTURBANCES)
def test_both_paths_write_the_same_rows_in_every_usual_case(twin_store: Store, meanwhile: str) -> None:
    for twin in USUAL:
        check(twin_store, meanwhile, twin)


@pytest.mark.parametrize("meanwhile", DISTURBANCES)
@settings(PROFILE, max_examples=1)
@given(twin=twins)
def test_both_paths_write_the_same_rows(twin_store: Store, meanwhile: str, twin: Twin) -> None:
    check(twin_store, meanwhile, twin)


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize("meanwhile", DISTURBANCES)
@settings(PROFILE, max_examples=MANY)
@given(twin=twins)
def test_both_paths_write_the_same_rows_in_many_cases(twin_store: Store, meanwhile: str, twin: Twin) -> None:
    check(twin_store, meanwhile, twin)


def check(store: Store, meanwhile: str, twin: Twin) -> None:
    scene = Scene(store, twin, DISTURBANCES[meanwhile])
    before = rows_of(store)
    if scene.fits_alone():
        generic, batch = scene.alone(), scene.alone_in_batch()
        check_twin(generic, batch, before)
        if not batch.acceptance:  # what is refused, what is written already, what was given up as unknown
            assert generic.acceptance is not Acceptance.ACCEPTED or generic.rows == before or scene.is_left_to_generic
    if scene.fits_together():
        generic, batch = scene.together(), scene.together_in_batch()
        check_twin(generic, batch, before)
        if not batch.acceptance:
            assert generic.acceptance is not Acceptance.ACCEPTED or scene.is_left_to_generic
    if scene.fits_as_advance():
        generic, batch = scene.advanced(), scene.advanced_in_batch()
        check_twin(generic, batch, before)
        if not batch.acceptance:
            assert not generic.acceptance or scene.is_left_to_generic
    assert rows_of(store) == before


def check_twin(generic: Outcome, batch: Outcome, before: Rows) -> None:
    """A batch that refuses writes nothing; one that accepts writes what the generic path accepts and writes."""
    if not batch.acceptance:
        assert batch.rows == before
        return
    assert generic.acceptance in (True, Acceptance.ACCEPTED)
    assert batch.messages == generic.messages
    assert batch.rows == generic.rows


@settings(PROFILE, max_examples=8)
@given(played=st.lists(st.tuples(st.sampled_from(list(DISTURBANCES)), twins | st.sampled_from(USUAL)), min_size=2))
def test_a_batch_writes_for_each_run_what_the_generic_path_writes(
    twin_store: Store, played: list[tuple[str, Twin]]
) -> None:
    check_batch_of_several(twin_store, played)


@pytest.mark.slow
@pytest.mark.timeout(0)
@settings(PROFILE, max_examples=4 * MANY)
@given(
    played=st.lists(
        st.tuples(st.sampled_from(list(DISTURBANCES)), twins | st.sampled_from(USUAL)), min_size=2, max_size=12
    )
)
def test_a_batch_writes_for_each_run_what_the_generic_path_writes_in_many_cases(
    twin_store: Store, played: list[tuple[str, Twin]]
) -> None:
    check_batch_of_several(twin_store, played)


def check_batch_of_several(store: Store, played: list[tuple[str, Twin]]) -> None:
    """What is taken is written as the generic path writes it, what is not has left no trace, and each is its own."""
    scenes = [
        Scene(store, twin, DISTURBANCES[meanwhile], beside_others=number > 0)
        for number, (meanwhile, twin) in enumerate(played)
    ]
    before = rows_of(store)
    ways = {scene.head.id: way for scene in scenes if (way := scene.item()) is not None}
    runs = {item.key: run_id for run_id, (item, _) in ways.items()}
    with undone(store) as connection:
        keys = commit_in(connection, [item for item, _ in ways.values()]) if ways else set()
        taken = {runs[key] for key in keys}
        in_batch = all_rows(connection)
    with undone(store) as connection:
        for run_id in sorted(taken):
            assert ways[run_id][1](connection)
        assert all_rows(connection) == in_batch
    for scene in scenes:
        if scene.head.id in ways.keys() - taken and not scene.is_left_to_generic:
            with undone(store) as connection:
                assert not ways[scene.head.id][1](connection)
    assert rows_of(store) == before


@pytest.mark.parametrize("meanwhile", DISTURBANCES)
def test_steps_of_one_run_that_end_at_once_are_written_as_one_after_the_other(
    twin_store: Store, meanwhile: str
) -> None:
    """Of a fan-out, that is: each with its result and its calls; the first may be fenced."""
    twin_store.transact(lambda connection: connection.execute(EMPTY))
    run_id = twin_store.running(steps=6)
    claims = [twin_store.claimed(run_id, position) for position in (1, 3, 4, 5, 6)]
    completions = [success(claim, "x" * claim.position) for claim in claims[:4]] + [failure(claims[4])]
    DISTURBANCES[meanwhile](twin_store, claims[0])
    before = rows_of(twin_store)
    items = [completion_item(each) for each in completions]
    with undone(twin_store) as connection:
        keys = commit_in(connection, items)
        in_batch = all_rows(connection)
    with undone(twin_store) as connection:
        for completion, item in zip(completions, items, strict=True):
            if item.key in keys:
                assert complete_alone(connection, completion) is Acceptance.ACCEPTED
        assert all_rows(connection) == in_batch
    assert len(keys) >= 4 or keys == set()
    assert rows_of(twin_store) == before
