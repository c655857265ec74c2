"""Every statement that writes a state, played from every state: the tables of moves govern, and hold nothing else."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping

import pytest

from paidonce_models.errors import IllegalTransition
from paidonce_models.states import (
    ATTEMPT_MOVES,
    RUN_MOVES,
    RUN_TERMINAL,
    STEP_MOVES,
    STEP_TERMINAL,
    AttemptOutcome,
    RunState,
    StepState,
)
from paidonce_models.store.commits.items import Item, advance_item, completion_item, together_item
from paidonce_models.store.runs.advancing import Progress, RunEnd
from paidonce_models.store.runs.runs_head import RunHead
from paidonce_models.store.state_guards import attempt_may_become, run_may_become, step_may_become
from paidonce_models.store.steps.claims import Claim
from tests.models.state_statements import Moves, Worlds, state_statements, statements_in_functions
from tests.models.stored_runs import NAMESPACE, Store, failure, new_step, success


def _moves(table: Mapping[object, Collection[object]]) -> Moves:
    return {(None if a is None else str(a), str(b)) for a, targets in table.items() for b in targets}


@pytest.mark.parametrize(
    "shared_store",
    ["sqlite", pytest.param("postgresql", marks=[pytest.mark.service, pytest.mark.slow])],
    indirect=True,
)
def test_the_statements_make_the_moves_of_the_tables_and_no_others(store: Store) -> None:
    legal = {"runs": _moves(RUN_MOVES), "steps": _moves(STEP_MOVES), "attempts": _moves(ATTEMPT_MOVES)}
    made: dict[str, Moves] = {table: set() for table in legal}
    statements = [each for each in state_statements() if each.runs_on(store.database.engine.dialect.name)]
    assert len(statements) > 40
    with store.database.write() as connection:
        worlds = Worlds(connection)
        for each in statements:
            moves = worlds.play(each)
            illegal = {table: found - legal[table] for table, found in moves.items()}
            assert not any(illegal.values()), f"{each.name} makes moves that states.py lacks: {illegal}"
            assert any(moves.values()), f"{each.name} moves nothing in any world: its guards are not met there"
            for table, found in moves.items():
                made[table] |= found
    assert made == legal


_RUN = {"namespace": NAMESPACE, "root_run_id": "root", "agent": "count", "queue": "q", "priority": 5}
_CLAIM = {"kind": "step", "name": "module.work", "lost": 0, "failed": 0, "claimed_at_us": 1, "consumed_seq": 1}
_UNUSED = {"python_minor": None, "state_reason": None, "parent_run_id": None, "parent_position": None, "input_id": None}


def _items() -> Iterator[tuple[str, Callable[[str], Item]]]:
    """One of each kind that a committer is given, for a run of the worlds."""

    def claim(run_id: str) -> Claim:
        return Claim(run_id=run_id, position=1, attempt=1, elapsed_us=0, arguments=b"1", **_CLAIM, **_RUN)  # type: ignore[arg-type]

    def head(run_id: str) -> RunHead:
        stands = {"agent_version": "1", "state": RunState.RUNNING, "last_seq": 1, "consumed_seq": 1, "depth": 0}
        return RunHead(id=run_id, shard=0, **stands, **_RUN, **_UNUSED)  # type: ignore[arg-type]

    def progress(state: RunState) -> Progress:
        end = RunEnd(state=state) if state.is_terminal else None
        following = [] if end else [new_step(9, "step", 2)]
        given = {"from_seq": 1, "to_seq": 2, "state_reason": None, "wake_at_us": None, "agent_version": "1"}
        return Progress(state=state, python_minor="3.11", new_steps=following, end=end, **given)  # type: ignore[arg-type]

    for make in (success, failure):
        yield f"{make.__name__} alone", lambda run_id, make=make: completion_item(make(claim(run_id)))  # type: ignore[misc]
        for state in (RunState.RUNNING, RunState.WAITING, RunState.BLOCKED, *RUN_TERMINAL):
            yield (
                f"{make.__name__}, run {state}",
                lambda run_id, make=make, state=state: together_item(  # type: ignore[misc]
                    make(claim(run_id)), head(run_id), progress(state), 1
                ),
            )
    for state in (RunState.RUNNING, RunState.WAITING, RunState.BLOCKED):
        yield f"advance, run {state}", lambda run_id, state=state: advance_item(head(run_id), progress(state))  # type: ignore[misc]


@pytest.mark.slow
@pytest.mark.parametrize("shared_store", [pytest.param("postgresql", marks=pytest.mark.service)], indirect=True)
def test_a_committer_makes_only_moves_of_the_tables(store: Store) -> None:
    legal = {"runs": _moves(RUN_MOVES), "steps": _moves(STEP_MOVES), "attempts": _moves(ATTEMPT_MOVES)}
    with store.database.write() as connection:
        worlds = Worlds(connection)
        for name, make in _items():
            moves = worlds.play_items(make)
            illegal = {table: found - legal[table] for table, found in moves.items()}
            assert not any(illegal.values()), f"{name} makes moves that states.py lacks: {illegal}"
            assert any(moves.values()), f"{name} moves nothing in any world: its guards are not met there"


def test_no_statement_that_writes_hides_in_a_function() -> None:
    assert statements_in_functions() == []


def test_a_guard_for_a_move_that_the_table_lacks_is_refused() -> None:
    with pytest.raises(IllegalTransition, match="take a step from held to running"):
        step_may_become(StepState.RUNNING, only=[StepState.HELD])


def test_guards_name_the_states_of_the_tables_in_their_order() -> None:
    assert step_may_become(StepState.RUNNING, column="s.state") == "s.state IN ('scheduled', 'retrying')"
    assert step_may_become(StepState.UNKNOWN) == "state = 'running'"
    assert run_may_become(RunState.PAUSED, only=[RunState.RUNNING]) == "state = 'running'"
    assert attempt_may_become(AttemptOutcome.FENCED) == "(outcome IS NULL OR outcome = 'lost')"
    assert attempt_may_become(AttemptOutcome.LOST) == "outcome IS NULL"


def test_what_has_ended_has_no_moves() -> None:
    assert {RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED} == RUN_TERMINAL
    assert {StepState.SUCCEEDED, StepState.FAILED, StepState.CANCELLED} == STEP_TERMINAL
