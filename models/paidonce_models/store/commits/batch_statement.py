"""One statement of PostgreSQL that commits what several runs have to write, each by its own guards.

The same acts as in ``completion`` and ``advancing``, for a set of items. First all rows are locked and checked, runs
in the order of their ids, then their steps; a row that is locked elsewhere is skipped. Then only the items that passed
are written. An item that did not pass writes nothing and affects no other item. If a part still finds fewer rows than
have passed, the statement divides by zero and is undone as a whole.

A cached plan is still used when the tables have grown. So no plan may choose how the tables are joined: rows are
found by their whole key in a LATERAL subquery that cannot be merged into the rest (FOR UPDATE, OFFSET 0), and written
by their physical address, which is exact while the row is locked. If a row was changed after the statement began, the
locked version has an address that this statement cannot see; its item does not pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Final

from paidonce_models.states import AttemptOutcome, StepState
from paidonce_models.store.commits.items import Item, Part
from paidonce_models.store.runs.events import REDELIVER_AFTER_US
from paidonce_models.store.runs.run_states import HAS_STOPPED_STEPS
from paidonce_models.store.state_guards import attempt_may_become, run_is_open, step_may_become
from paidonce_models.store.steps.claims import HAS_BUDGETS

DIVISION_BY_ZERO: Final = "22012"
"""The SQLSTATE of a statement that has undone itself."""

Execute = Callable[[str, Sequence[str]], list[tuple[Any, ...]]]
"""Runs a statement with numbered parameters, which commits by itself, and returns its rows."""

# A step that was given up as unknown changes its run's state too: ``completion`` writes that.
_MAY_END = step_may_become(StepState.SUCCEEDED, StepState.FAILED, only=[StepState.RUNNING], column="steps.state")
_MAY_BE_CANCELLED = step_may_become(StepState.CANCELLED, column="steps.state")
_REDELIVERED = f"now_us + {REDELIVER_AFTER_US}"

_GIVEN: Final = (
    "given AS MATERIALIZED (SELECT g.*, clock.now_us FROM (SELECT paidonce_now() AS now_us OFFSET 0) AS clock, "
    "json_to_recordset($1::json) AS g (key text, run text, space text, place int, number int, becomes text, "
    "ended_as text, kind_of_event text, failures int, result text, failure text, trace text, facts text, "
    "happened_at_us bigint, called text, made_calls json, from_seq bigint, to_seq bigint, goes_to text, reason "
    "text, wakes_at_us bigint, version text, minor text, of_shard smallint, root text, of_agent text, urgency "
    "smallint, run_failure text, ends boolean, run_result text, taken int, holder text, lease_us bigint))"
)
# The guards of ``advancing``, under the run's lock. An advance fails if another that has read the same history was
# committed first; with a completion it also fails after any new event. Steps that a budget or a circuit has stopped
# affect the run's state, and child runs are cancelled one by one: ``advancing`` writes such runs. A budgeted claim must
# reserve first.
_ADVANCE_GUARDS = (
    " AND (given.from_seq IS NULL OR runs.consumed_seq = given.from_seq "
    "AND (given.place IS NULL OR runs.last_seq = given.from_seq)"
    f" AND (given.ends OR NOT {HAS_STOPPED_STEPS.format(run_id='runs.id')}))"
)
_CLAIM_GUARD = f" AND (given.taken IS NULL OR NOT {HAS_BUDGETS['postgresql']})"
_END_GUARD = (
    " AND (given.ends IS NULL OR NOT EXISTS (SELECT 1 FROM steps WHERE steps.run_id = runs.id "
    f"AND steps.child_run_id IS NOT NULL AND steps.position <> given.place AND {_MAY_BE_CANCELLED}))"
)
_LOCKED = (
    "locked AS MATERIALIZED (SELECT given.*, held.* FROM given CROSS JOIN LATERAL (SELECT runs.ctid AS run_row "
    f"FROM runs WHERE runs.id = given.run AND {run_is_open('runs.state')}{{guards}} FOR UPDATE SKIP LOCKED) AS held)"
)
# The fence: under the step's lock, the attempt must still be the step's. A zombie gets no number for an event. While
# the attempt runs, only the heartbeat writes its row too: it adds to the sums.
_OURS = (
    "ours AS MATERIALIZED (SELECT locked.*, held.step_row, tried.attempt_row FROM locked "
    "LEFT JOIN LATERAL (SELECT steps.ctid AS step_row FROM steps WHERE steps.run_id = locked.run "
    f"AND steps.position = locked.place AND steps.attempt = locked.number AND {_MAY_END} FOR UPDATE SKIP LOCKED) "
    "AS held ON true LEFT JOIN LATERAL (SELECT attempts.ctid AS attempt_row FROM attempts "
    "WHERE attempts.run_id = locked.run AND attempts.position = locked.place AND attempts.number = locked.number "
    f"AND {attempt_may_become(*AttemptOutcome)} OFFSET 0) AS tried ON true "
    "WHERE locked.place IS NULL OR held.step_row IS NOT NULL AND tried.attempt_row IS NOT NULL)"
)
_SEEN = "EXISTS (SELECT 1 FROM {table} WHERE {table}.ctid = {source}.{row} OFFSET 0)"
_PASSED = "passed AS MATERIALIZED (SELECT * FROM {source} WHERE {seen})"
# Several steps of one run may end at once, each with its own event.
_APPENDED = (
    "appended AS (UPDATE runs SET last_seq = last_seq + more.events, publish_count = 0, "
    f"publish_at_us = {_REDELIVERED} FROM (SELECT run, run_row, now_us, count(*) AS events FROM passed "
    "WHERE from_seq IS NULL GROUP BY run, run_row, now_us) AS more WHERE runs.ctid = more.run_row "
    "RETURNING more.run, runs.last_seq - more.events AS before_seq, more.events)"
)
_CONSUMED = (
    "consumed AS (UPDATE runs SET consumed_seq = passed.to_seq, "
    "last_seq = CASE WHEN passed.place IS NULL THEN runs.last_seq ELSE passed.to_seq END, "
    "publish_at_us = CASE WHEN passed.place IS NULL AND runs.last_seq > passed.to_seq "
    f"THEN {_REDELIVERED} ELSE NULL END, publish_count = 0, "
    "state = passed.goes_to, state_reason = passed.reason, wake_at_us = passed.wakes_at_us, "
    "agent_version = passed.version, python_minor = passed.minor, error = passed.run_failure, "
    "started_at_us = coalesce(runs.started_at_us, passed.now_us){end} "
    "FROM passed WHERE runs.ctid = passed.run_row AND passed.from_seq IS NOT NULL "
    "RETURNING passed.run, runs.last_seq - 1 AS before_seq, 1::bigint AS events)"
)
_END_COLUMNS = (
    ", result_id = CASE WHEN passed.ends THEN passed.run_result ELSE runs.result_id END, "
    "finished_at_us = CASE WHEN passed.ends THEN passed.now_us ELSE runs.finished_at_us END"
)
_ENDED = (
    "ended AS (UPDATE steps SET state = passed.becomes, result_id = passed.result, error = passed.failure, "
    "failed = failed + passed.failures, lease_owner = NULL, lease_expires_at_us = NULL, finished_at_us = passed.now_us "
    "FROM passed WHERE steps.ctid = passed.step_row RETURNING passed.run)"
)
_RECORDED = (
    "recorded AS MATERIALIZED (SELECT passed.key AS of_key, r.* FROM passed, "
    "LATERAL paidonce_record_calls(passed.run, passed.place, passed.number, passed.called, passed.made_calls) AS r "
    "WHERE passed.made_calls IS NOT NULL)"
)
_TRIED = (
    "tried AS (UPDATE attempts SET outcome = passed.ended_as, ended_at_us = passed.now_us, error = passed.failure, "
    "traceback = passed.trace{sums} FROM passed{recorded} WHERE attempts.ctid = passed.attempt_row "
    f"AND {attempt_may_become(*AttemptOutcome)} RETURNING passed.run)"
)
_SUMS = (
    ", calls = calls + coalesce(n, 0), unpriced_calls = unpriced_calls + coalesce(u, 0), "
    "input_tokens = paidonce_add(input_tokens, i), output_tokens = paidonce_add(output_tokens, o), "
    "cost_nanousd = paidonce_add(cost_nanousd, c)"
)
_LOGGED = (
    "logged AS (INSERT INTO run_events (run_id, seq, namespace, kind, position, attempts, payload_id, data, "
    "recorded_at_us) SELECT passed.run, moved.before_seq + row_number() OVER (PARTITION BY passed.run "
    "ORDER BY passed.place), passed.space, passed.kind_of_event, passed.place, "
    "passed.number, passed.result, passed.facts, coalesce(passed.happened_at_us, passed.now_us) "
    "FROM passed JOIN ({moved}) AS moved ON moved.run = passed.run WHERE passed.place IS NOT NULL)"
)
# In the order of their ids, so that two transactions which share some cannot deadlock.
_STORED = (
    "stored AS (INSERT INTO payloads (namespace, id, codec, size, sha256, inline) "
    "SELECT p.space, p.id, p.codec, p.size, p.sha256, decode(p.content, 'hex') "
    "FROM json_to_recordset($2::json) AS p (key text, space text, id text, codec text, size bigint, sha256 text, "
    "content text) WHERE p.key IN (SELECT passed.key FROM passed) ORDER BY 2, 1 "
    "ON CONFLICT (namespace, id) DO NOTHING)"
)
_TAKEN = "WHEN passed.taken = s.place THEN"
_ASKED = (
    "asked AS (INSERT INTO steps (run_id, namespace, shard, root_run_id, agent, priority, position, created_seq, kind, "
    "name, queue, delivery, max_lost, args_id, state, attempt, lease_owner, lease_expires_at_us, started_at_us, lost, "
    "failed, publish_at_us, publish_count, created_at_us) SELECT passed.run, passed.space, passed.of_shard, "
    "passed.root, passed.of_agent, passed.urgency, s.place, s.created_seq, s.kind, s.name, s.queue, s.delivery, "
    "s.max_lost, s.args_id, {claim}, 0, 0, {publish}, 0, passed.now_us FROM passed "
    "JOIN json_to_recordset($3::json) AS s (run text, place int, created_seq bigint, kind text, name text, "
    "queue text, delivery text, max_lost int, args_id text) ON s.run = passed.run "
    "RETURNING run_id, position, namespace, root_run_id, agent, name, state, lease_owner, started_at_us)"
)
_SCHEDULED = _ASKED.format(claim="'scheduled', 0, NULL, NULL, NULL", publish=_REDELIVERED)
_SCHEDULED_OR_TAKEN = _ASKED.format(
    claim=f"CASE {_TAKEN} 'running' ELSE 'scheduled' END, CASE {_TAKEN} 1 ELSE 0 END, "
    f"CASE {_TAKEN} passed.holder END, CASE {_TAKEN} passed.now_us + passed.lease_us END, "
    f"CASE {_TAKEN} passed.now_us END",
    publish=f"CASE {_TAKEN} NULL ELSE {_REDELIVERED} END",
)
_OPENED = (
    "opened AS (INSERT INTO attempts (run_id, position, number, namespace, root_run_id, agent, step, worker, "
    "claimed_at_us, calls, unpriced_calls) SELECT run_id, position, 1, namespace, root_run_id, agent, name, "
    "lease_owner, started_at_us, 0, 0 FROM asked WHERE state = 'running')"
)
# Unlike the other rows, these were not locked before: a claim may be changing such a step. So they are found by their
# run, not by an address, which the claim would change. This statement still sees the step that it completes in its old
# state, so that step is excluded.
_LEFT_OPEN = (
    "rest AS (UPDATE steps SET state = 'cancelled', finished_at_us = (SELECT now_us FROM given LIMIT 1), "
    "publish_at_us = NULL WHERE steps.run_id = ANY (ARRAY(SELECT passed.run FROM passed WHERE passed.ends)) "
    f"AND {_MAY_BE_CANCELLED} AND NOT EXISTS (SELECT 1 FROM passed WHERE passed.run = steps.run_id "
    "AND passed.place = steps.position))"
)
_EVERYTHING: Final = ~Part.CALLS
"""What the statement of a larger batch can write; one plan for all of them costs less than each exact one once."""


def commit_items(execute: Execute, items: Sequence[Item]) -> set[str]:
    """Commit items; returns the keys of those that are committed, which know when. Of the others nothing is written.

    Of one run there is either one exclusive item or any number of others. Raises what ``execute`` raises; a division by
    zero has undone everything.
    """
    parts = Part.NOTHING
    for item in items:
        parts |= item.parts
    alone = any(Part.ADVANCE not in item.parts for item in items)
    if len(items) > 1:
        parts, alone = parts | _EVERYTHING, True
    given = sorted(items, key=lambda item: item.key)
    parameters = [
        f"[{','.join(item.encoded for item in given)}]",
        f"[{','.join(item.payloads for item in given if item.payloads)}]",
        f"[{','.join(item.steps for item in given if item.steps)}]",
    ]
    rows = execute(statement_for(parts, alone=alone, is_one=len(items) == 1), parameters)
    committed: dict[str, int] = dict(rows)
    for item in items:
        item.committed_at_us = committed.get(item.key, item.committed_at_us)
    return set(committed)


@lru_cache(maxsize=256)
def statement_for(parts: Part, *, alone: bool, is_one: bool) -> str:
    """The statement that can write these parts; ``alone``: also completions without an advance.

    ``is_one``: there are no others whose writes must not be undone with it.
    """
    moved = []
    if Part.COMPLETION in parts and alone:
        moved.append("appended")
    if Part.ADVANCE in parts:
        moved.append("consumed")
    clauses = [*_finding(parts, is_one=is_one), *_moving(parts, moved)]
    if Part.COMPLETION in parts:
        clauses += _completing(parts, moved)
    if Part.PAYLOADS in parts:
        clauses.append(_STORED)
    if Part.STEPS in parts:
        clauses += [_SCHEDULED_OR_TAKEN, _OPENED] if Part.CLAIM in parts else [_SCHEDULED]
    if Part.END in parts:
        clauses.append(_LEFT_OPEN)
    # A parameter that is not used must be given a type.
    unused = "".join(
        f" AND ${number}::text IS NOT NULL"
        for part, number in ((Part.PAYLOADS, 2), (Part.STEPS, 3))
        if part not in parts
    )
    misses = " + ".join(f"abs({miss})" for miss in _misses(parts, moved))
    return (
        f"WITH {', '.join(clauses)} SELECT key, now_us FROM passed "
        f"WHERE 1 / (CASE WHEN {misses} = 0 THEN 1 ELSE 0 END) = 1{unused}"
    )


def _finding(parts: Part, *, is_one: bool) -> list[str]:
    """From what is given to what has passed."""
    guards = ((Part.ADVANCE, _ADVANCE_GUARDS), (Part.CLAIM, _CLAIM_GUARD), (Part.END, _END_GUARD))
    clauses = [_GIVEN, _LOCKED.format(guards="".join(guard for part, guard in guards if part in parts))]
    source = "locked"
    if Part.COMPLETION in parts:
        clauses.append(_OURS)
        source = "ours"
    if is_one:
        return [*clauses[:-1], clauses[-1].replace(source, "passed", 1)]
    seen = _SEEN.format(table="runs", source=source, row="run_row")
    if Part.COMPLETION in parts:
        seen += f" AND (ours.place IS NULL OR {_SEEN.format(table='steps', source='ours', row='step_row')})"
    return [*clauses, _PASSED.format(source=source, seen=seen)]


def _moving(parts: Part, moved: Sequence[str]) -> list[str]:
    """What changes the run's row."""
    consumed = _CONSUMED.format(end=_END_COLUMNS if Part.END in parts else "")
    return [{"appended": _APPENDED, "consumed": consumed}[each] for each in moved]


def _completing(parts: Part, moved: Sequence[str]) -> list[str]:
    """What ends an attempt."""
    logged = _LOGGED.format(moved=" UNION ALL ".join(f"SELECT * FROM {each}" for each in moved))
    if Part.CALLS not in parts:
        return [_ENDED, _TRIED.format(sums="", recorded=""), logged]
    tried = _TRIED.format(sums=_SUMS, recorded=" LEFT JOIN recorded ON recorded.of_key = passed.key")
    return [_ENDED, _RECORDED, tried, logged]


def _misses(parts: Part, moved: Sequence[str]) -> list[str]:
    """Differences that are 0 if all that has passed is written."""
    runs = " - ".join(f"(SELECT coalesce(sum(events), 0) FROM {each})" for each in moved)
    misses = [f"(SELECT count(*) FROM passed) - {runs}"]
    if Part.COMPLETION in parts:
        completed = "(SELECT count(*) FROM passed WHERE place IS NOT NULL)"
        misses += [f"{completed} - (SELECT count(*) FROM {each})" for each in ("ended", "tried")]
    return misses
