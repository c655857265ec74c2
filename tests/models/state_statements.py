"""Every statement of the store that writes a state, found by its text, and the worlds that they are played in."""

from __future__ import annotations

import ast
import importlib
import itertools
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg
from sqlalchemy import Connection, TextClause, insert, text

import paidonce_models.store as store_package
from paidonce_models.states import AttemptOutcome, RunState, StepState
from paidonce_models.store.commits.batch_statement import commit_items
from paidonce_models.store.commits.items import Item
from paidonce_models.tables import Attempt, Run, Step
from tests.models.stored_runs import NAMESPACE, QUEUE, START_US

_WRITES_STATE = re.compile(r"UPDATE (?:runs|steps|attempts) SET (?:(?:(?!WHERE).)*?, )?(?:state|outcome) = ", re.DOTALL)
_ONLY_POSTGRESQL = ("claims._CLAIM_AT_ONCE",)

_ADVANCED = [RunState.RUNNING, RunState.WAITING, RunState.BLOCKED]
_ENDED = [RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED]
_DONE = [StepState.SUCCEEDED, StepState.FAILED]
_REPORTED = [each for each in AttemptOutcome if each not in (AttemptOutcome.LOST, AttemptOutcome.FENCED)]
TARGETS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "advancing._CONSUME_STATEMENTS[False, False]": {"state": _ADVANCED},
    "advancing._CONSUME_STATEMENTS[True, False]": {"state": _ADVANCED},
    "advancing._CONSUME_STATEMENTS[False, True]": {"state": _ENDED},
    "advancing._CONSUME_STATEMENTS[True, True]": {"state": _ENDED},
    "advancing._END_PARENT_STEP": {"state": [*_DONE, StepState.CANCELLED]},
    "completion._END_STEP": {"state": _DONE},
    **{f"completion._END_ATTEMPT[{each}]": {"outcome": [each]} for each in _REPORTED},
    **{f"completion._OVERRULE_ATTEMPT[{each}]": {"outcome": [each]} for each in ("cancelled", "fenced")},
    **{f"ending_steps._END[{each}]": {"state": [each]} for each in _DONE},
}
"""Of the statements that are given a state as a parameter: which their callers give."""

_PARAMETERS: Mapping[str, object] = {
    **{"namespace": NAMESPACE, "position": 1, "attempt": 1, "positions": [1], "completed": -1, "shard": 0},
    **{"worker": "w1", "owner": None, "anyway": 1, "alone": 1, "lease_us": 1_000_000, "redeliver": 0, "taken": 9},
    **{"from_seq": 1, "to_seq": 2, "reason": None, "wake_at_us": None, "agent_version": "1", "python_minor": "3.11"},
    **{"error": "{}", "run_error": None, "result_id": None, "run_result_id": None, "traceback": None, "failed": 1},
    **{"counted": 1, "retry_after_us": 0, "kind": "step_failed", "data": None, "recorded_at_us": None, "calls": "[]"},
    **{"step": "module.work", "steps": "[]", "agent": "count", "priority": 5, "patience_us": 0, "queue": QUEUE},
    **{"name": "count", "names": ["count"], "version": "1", "signature": "other code"},
    **{f"payload_{name}": [] for name in ("ids", "codecs", "sizes", "sha256s", "inlines")},
    **dict.fromkeys(("too_many_runs", "too_many_steps", "too_many_timers", "too_much_data"), ""),
}


@dataclass(frozen=True, kw_only=True)
class StateStatement:
    """A statement that writes a state. ``name`` is its module and variable, with the key in a dictionary."""

    name: str
    statement: TextClause

    def runs_on(self, dialect: str) -> bool:
        """Whether this engine is given the statement."""
        others = {"postgresql", "sqlite"} - {dialect}
        if any(f"[{other}" in self.name for other in others):
            return False
        return dialect == "postgresql" or not self.name.startswith(_ONLY_POSTGRESQL)

    def parameters(self) -> Iterator[dict[str, object]]:
        """What it is given besides a run's id; each state that a caller may give is there once."""
        names = set(self.statement._bindparams)
        given = TARGETS.get(self.name) or TARGETS.get(self.name.partition("[")[0]) or {}
        assert names & {"state", "step_state", "outcome"} == set(given), f"TARGETS does not know {self.name}"
        common = {name: _PARAMETERS[name] for name in names - set(given) - {"run_id", "root_run_id"}}
        for number in range(max([len(targets) for targets in given.values()], default=1)):
            yield common | {name: str(targets[number % len(targets)]) for name, targets in given.items()}


def state_statements() -> list[StateStatement]:
    """All of them, wherever in the package they stand."""
    found: dict[str, StateStatement] = {}
    for module in pkgutil.walk_packages(store_package.__path__, f"{store_package.__name__}."):
        for name, value in vars(importlib.import_module(module.name)).items():
            for full_name, statement in _clauses(f"{module.name.rpartition('.')[2]}.{name}", value):
                if _WRITES_STATE.search(str(statement)):
                    found.setdefault(f"{full_name}", StateStatement(name=full_name, statement=statement))
    return list(found.values())


def _clauses(name: str, value: object) -> Iterator[tuple[str, TextClause]]:
    if isinstance(value, TextClause):
        yield name, value
    elif isinstance(value, dict):
        for key, each in value.items():
            shown = ", ".join(map(str, key)) if isinstance(key, tuple) else str(key)
            yield from _clauses(f"{name}[{shown}]", each)
    elif isinstance(value, (list, tuple)):
        for number, each in enumerate(value):
            yield from _clauses(f"{name}[{number}]", each)


def statements_in_functions() -> list[str]:
    """Where a function holds the text of a statement that writes; ``state_statements`` would not find it."""
    found = []
    for path in Path(store_package.__path__[0]).rglob("*.py"):
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(function, ast.FunctionDef):
                texts = [each.value for each in ast.walk(function) if isinstance(each, ast.Constant)]
                if any(isinstance(each, str) and re.search(r"\bUPDATE \w+ SET\b", each) for each in texts):
                    found.append(f"{path.name}: {function.name}")
    return found


Moves = set[tuple[str | None, str | None]]


class Worlds:
    """Runs of one or two steps, one in every combination of states that a statement could tell apart."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._runs: list[dict[str, object]] = []
        self._steps: list[dict[str, object]] = []
        self._attempts: list[dict[str, object]] = []
        for run, step in itertools.product(RunState, StepState):
            for reason in ("history_mismatch", "no_worker", "unknown_outcome", "result_not_storable"):
                if reason == "history_mismatch" or run in (RunState.BLOCKED, RunState.WAITING):
                    self._add(run=run, step=step, reason=reason)
        for run in RunState:
            self._add(run=run, unread=1)
        for outcome in AttemptOutcome:
            self._add(outcome=outcome)
        for other in StepState:
            self._add(other=other)
        for delivery, max_lost in itertools.product(("at_least_once", "at_most_once"), (1, 5)):
            self._add(delivery=delivery, max_lost=max_lost)
        connection.execute(insert(Run), self._runs)
        connection.execute(insert(Step), self._steps)
        connection.execute(insert(Attempt), self._attempts)
        self._before = self._states()

    def _add(
        self,
        *,
        run: RunState = RunState.RUNNING,
        step: StepState = StepState.RUNNING,
        outcome: AttemptOutcome | None = None,
        other: StepState | None = None,
        reason: str = "history_mismatch",
        unread: int = 0,
        delivery: str = "at_least_once",
        max_lost: int = 5,
    ) -> None:
        run_id = f"world-{len(self._runs)}"
        common: dict[str, object] = {"namespace": NAMESPACE, "root_run_id": run_id, "agent": "count"}
        waits = {"queue": QUEUE, "created_at_us": START_US - 1, "publish_at_us": START_US}
        given: dict[str, object] = {"state": str(run), "state_reason": reason, "blocked_signature": "count"}
        given |= {"last_seq": 1 + unread, "consumed_seq": 1, "cancel_requested_at_us": START_US, "agent_version": "1"}
        self._runs.append({"id": run_id, **common, **waits, **given})
        for position, state in enumerate([step, other], start=1):
            if state is not None:
                given = {"kind": "step", "name": "count", "args_id": "", "created_seq": 1, "attempt": 1}
                given |= {"delivery": delivery, "max_lost": max_lost, "lease_owner": "w1", "state": str(state)}
                self._steps.append({"run_id": run_id, "position": position, **common, **waits, **given})
        given = {"step": "count", "worker": "w1", "claimed_at_us": START_US, "outcome": outcome and str(outcome)}
        self._attempts.append({"run_id": run_id, "position": 1, "number": 1, **common, **given})

    def play(self, each: StateStatement) -> dict[str, Moves]:
        """The moves that a statement makes in all worlds, by table; afterwards the worlds are as they were."""
        moves: dict[str, Moves] = {"runs": set(), "steps": set(), "attempts": set()}
        names = set(each.statement._bindparams)
        for parameters in each.parameters():
            with self._connection.begin_nested() as savepoint:
                self._execute(each, [parameters | of_run for of_run in self._keys(names)])
                for (table, key), state in self._states().items():
                    before = self._before.get((table, key), state)
                    if before != state:
                        moves[table].add((before, state))
                savepoint.rollback()
        return moves

    def play_items(self, make: Callable[[str], Item]) -> dict[str, Moves]:
        """The moves of a committer's statement with one item for each run, as one batch and by itself."""
        moves: dict[str, Moves] = {"runs": set(), "steps": set(), "attempts": set()}
        items = {str(run["id"]): make(str(run["id"])) for run in self._runs}
        taken: list[set[str]] = []
        for batches in ([list(items.values())], [[item] for item in items.values()]):
            taken.append(set())
            with self._connection.begin_nested() as savepoint:
                for batch in batches:
                    taken[-1] |= self._commit(batch)
                for (table, key), state in self._states().items():
                    before = self._before.get((table, key), state)
                    if before != state:
                        moves[table].add((before, state))
                savepoint.rollback()
        assert taken[0] == taken[1]
        return moves

    def _commit(self, batch: list[Item]) -> set[str]:
        raw = self._connection.connection.dbapi_connection
        assert isinstance(raw, psycopg.Connection)
        cursor = psycopg.RawCursor(raw)
        with self._connection.begin_nested() as savepoint:
            try:
                return commit_items(lambda sql, given: cursor.execute(sql, given).fetchall(), batch)  # type: ignore[arg-type]
            except psycopg.errors.DivisionByZero:
                savepoint.rollback()
                return set()

    def _keys(self, names: set[str]) -> list[dict[str, object]]:
        """For each run what says that it is meant; once nothing for a statement that looks for its runs itself."""
        if "run_id" not in names:
            return [{}]
        return [dict.fromkeys(names & {"run_id", "root_run_id"}, run["id"]) for run in self._runs]

    def _execute(self, each: StateStatement, parameters: list[dict[str, object]]) -> None:
        # One by one: a list of its own cannot be one of many, and Python 3.13's sqlite3 takes no RETURNING there.
        for of_run in parameters:
            self._connection.execute(each.statement, of_run)

    def _states(self) -> dict[tuple[str, object], str | None]:
        found: dict[tuple[str, object], str | None] = {}
        for table, key, column in (
            ("runs", "id", "state"),
            ("steps", "run_id, position", "state"),
            ("attempts", "run_id, position, number", "outcome"),
        ):
            for *of_row, state in self._connection.execute(text(f"SELECT {key}, {column} FROM {table}")):
                found[table, tuple(of_row)] = state
        return found
