"""PostgreSQL's single statements write the rows that the generic ones write, and refuse what those refuse.

``TEST_SHARE`` sets how many of a hundred cases the slow form plays for each thing that can happen meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from paidonce_models.store.steps.completion import Acceptance
from tests.long_proofs import share_of
from tests.models.stored_runs import Store
from tests.models.twin_paths import (
    DISTURBANCES,
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
        generic, single = scene.alone(), scene.alone_in_one()
        check_twin(generic, single, before, single.acceptance is None)
        check_batch(single, scene.alone_in_batch(), single.acceptance is None)
        if single.acceptance is None:  # what is refused, what is written already, what was given up as unknown
            assert generic.acceptance is not Acceptance.ACCEPTED or generic.rows == before or scene.is_left_to_generic
    if scene.fits_together():
        generic, single = scene.together(), scene.together_in_one()
        check_twin(generic, single, before, single.acceptance is Acceptance.OVERTAKEN)
        check_batch(single, scene.together_in_batch(), single.acceptance is Acceptance.OVERTAKEN)
        if single.acceptance is Acceptance.OVERTAKEN:
            assert generic.acceptance is not Acceptance.ACCEPTED or scene.is_left_to_generic
    if scene.fits_as_advance():
        generic, single = scene.advanced(), scene.advanced_in_one()
        check_twin(generic, single, before, not single.acceptance)
        check_batch(single, scene.advanced_in_batch(), not single.acceptance)
        if not single.acceptance:
            assert not generic.acceptance or scene.is_left_to_generic
    assert rows_of(store) == before


def check_twin(generic: Outcome, single: Outcome, before: Rows, is_refused: bool) -> None:
    """A statement that refuses writes nothing; one that accepts writes what the generic path accepts and writes."""
    if is_refused:
        assert single.rows == before
    else:
        assert (single.acceptance, single.messages) == (generic.acceptance, generic.messages)
        assert single.rows == generic.rows


def check_batch(single: Outcome, batch: Outcome, is_refused: bool) -> None:
    """A batch of one accepts and refuses as the single statement does."""
    assert batch.acceptance is not is_refused
    assert batch.rows == single.rows


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
    with undone(store) as connection:
        taken = commit_in(connection, [item for item, _ in ways.values()]) if ways else set()
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
