"""Conditions on states for the store's statements, derived from the tables of moves in ``states``.

A statement that writes a state names the new state and, if it is for fewer, the old ones. A move that the table does
not have is refused when the module is imported. The text is the same each time, so that drivers keep it prepared.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import StrEnum
from typing import TypeVar

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

S = TypeVar("S", bound=StrEnum | None)


def run_may_become(*targets: RunState, only: Collection[RunState] = (), column: str = "state") -> str:
    """SQL: a run in a state from which each of ``targets`` is a legal move; ``only`` restricts those states.

    Raises ``IllegalTransition`` if the table lacks a move from one of ``only``. A state among the ``targets`` may stay
    as it is.
    """
    sources = _sources("run", RUN_MOVES, targets, only)
    return _is_one_of(sources, column)


def step_may_become(*targets: StepState, only: Collection[StepState] = (), column: str = "state") -> str:
    """The same for a step."""
    sources = _sources("step", STEP_MOVES, targets, only)
    return _is_one_of(sources, column)


def attempt_may_become(*targets: AttemptOutcome, only: Collection[AttemptOutcome | None] = ()) -> str:
    """The same for an attempt's outcome; a running one has none."""
    sources = _sources("attempt", ATTEMPT_MOVES, targets, only)
    known = [source for source in sources if source is not None]
    conditions = ["outcome IS NULL"] if None in sources else []
    conditions += [_is_one_of(known, "outcome")] if known else []
    return conditions[0] if len(conditions) == 1 else f"({' OR '.join(conditions)})"


def run_is(*states: RunState, column: str = "state") -> str:
    """SQL: the run's state is one of these."""
    return _is_one_of([state for state in RunState if state in states], column)


def step_is(*states: StepState, column: str = "state") -> str:
    """SQL: the step's state is one of these, in this order: SQLite uses a partial index only for its own order."""
    return _is_one_of(states, column)


def run_has_ended(column: str = "state") -> str:
    """SQL: the run's state is terminal."""
    return run_is(*RUN_TERMINAL, column=column)


def run_is_open(column: str = "state", *, but: Collection[RunState] = ()) -> str:
    """SQL: the run has not ended, and is in none of the states ``but``."""
    return _is_none_of([state for state in RunState if state in RUN_TERMINAL or state in but], column)


def step_has_ended(column: str = "state") -> str:
    """SQL: the step has its outcome."""
    return step_is(*(state for state in StepState if state in STEP_TERMINAL), column=column)


def step_is_open(column: str = "state") -> str:
    """SQL: the step has no outcome yet."""
    return _is_none_of([state for state in StepState if state in STEP_TERMINAL], column)


def step_is_claimable(column: str = "state") -> str:
    """SQL: the step waits to be claimed, once it is due."""
    return step_may_become(StepState.RUNNING, column=column)


def _sources(what: str, table: Mapping[S, frozenset[S]], targets: Collection[S], only: Collection[S]) -> list[S]:
    """The states of ``only``, else all that may move to each of the targets, in the table's order."""
    for source in only:
        for target in targets:
            if target is not source and target not in table[source]:
                raise IllegalTransition(
                    f"a statement would take a {what} from {source} to {target}; states.py has no such move"
                )
    return [source for source in table if (source in only if only else table[source].issuperset(targets))]


def _is_one_of(states: Collection[StrEnum | None], column: str) -> str:
    if len(states) == 1:
        return f"{column} = '{next(iter(states))}'"
    return f"{column} IN ({_listed(states)})"


def _is_none_of(states: Collection[StrEnum], column: str) -> str:
    return f"{column} NOT IN ({_listed(states)})"


def _listed(states: Collection[StrEnum | None]) -> str:
    return ", ".join(f"'{state}'" for state in states)
