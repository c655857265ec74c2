"""The statement behind a table of costs: rows, what a limit left out, and the total, in one snapshot.

One text, two sources. ``paidonce costs`` reads kept sums (``daily_costs``, ``run_totals``, ``run_costs``, and the calls
that are not in them yet), ``--sql`` prints the same statement over the ledger's own rows (``ledger_calls``), so that
anyone can recompute the figures with ``psql`` or ``sqlite3``. What lost attempts may have been billed stands beside the
money, never in it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from paidonce_models.errors import InvalidInput

TOKEN_COLUMNS = ("input_tokens", "cache_read_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens")
_COUNTED = ("calls", "unpriced_calls", "lost_attempts", "lost_without_estimate")
_ESTIMATE = "possibly_billed_nanousd"
_KNOWN = (*TOKEN_COLUMNS, "cost_nanousd", _ESTIMATE)
MEASURES = (*_COUNTED, *_KNOWN)
_SPENT = ("calls", "unpriced_calls", *TOKEN_COLUMNS, "cost_nanousd")
"""The measures that calls have; those of ``_LOST`` are about attempts whose worker vanished."""
_LOST = ("lost_attempts", "lost_without_estimate", _ESTIMATE)
_NOTHING_LOST = f"0 AS lost_attempts, 0 AS lost_without_estimate, CAST(NULL AS BIGINT) AS {_ESTIMATE}"
_PLAIN_TAG = re.compile(r"[A-Za-z0-9_-]+")
"""Names that a JSON path can hold as they are; for others SQLite looks through the object."""


class Dimension(StrEnum):
    """What costs can be grouped by; a tag is grouped by as ``tag:NAME``."""

    AGENT = "agent"
    STEP = "step"
    TOOL = "tool"
    MODEL = "model"
    RUN = "run"
    CAUSE = "cause"
    DAY = "day"


TAG_PREFIX = "tag:"
LEDGER = "ledger_calls"
"""The view of all calls, each with its cause."""
_IN_DAILY = frozenset(set(Dimension) - {Dimension.RUN})
_IN_TOTALS = frozenset({Dimension.RUN, Dimension.AGENT})
_IN_RUNS = _IN_TOTALS | {Dimension.CAUSE, Dimension.DAY}
_BY_RUN = ("run_totals", "run_costs")
_COLUMNS = {dimension: dimension.value for dimension in Dimension} | {Dimension.RUN: "run_id"}
_UNKNOWN_REST = {Dimension.TOOL, Dimension.MODEL}
"""Nobody knows which tool or model the unknown rest of a lost attempt would have used."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CostQuestion:
    """What is asked: the namespace, the names to group by, the first UTC day, one agent, at most so many rows."""

    namespace: str
    by: Sequence[str] = ()
    since_day: str | None = None
    agent: str | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        for name in self.by:
            if tag_of(name) is None and name not in set(Dimension):
                known = ", ".join(Dimension)
                raise InvalidInput(f"costs cannot be grouped by {name!r}; expected {known} or tag:NAME")
            if tag_of(name) == "":
                raise InvalidInput("tag: needs the tag's name, as in tag:customer")
        if len(set(self.by)) != len(self.by):
            raise InvalidInput(f"costs are grouped by each name once, found {', '.join(self.by)}")
        if self.limit is not None and self.limit < 1:
            raise InvalidInput(f"a limit of {self.limit} rows shows nothing; expected 1 or more, or none")


def tag_of(name: str) -> str | None:
    """The tag's name in ``tag:NAME``; ``None`` for anything else."""
    return name.removeprefix(TAG_PREFIX) if name.startswith(TAG_PREFIX) else None


def kept_sums(question: CostQuestion) -> str:
    """The table whose sums answer; ``ledger_calls`` where none fits (a tool within a run, say)."""
    dimensions = {name for name in question.by if tag_of(name) is None}
    if len(dimensions) == len(question.by) and dimensions <= _IN_DAILY:
        return "daily_costs"
    if dimensions <= _IN_TOTALS and question.since_day is None:
        return "run_totals"
    return "run_costs" if dimensions <= _IN_RUNS else LEDGER


def cost_statement(question: CostQuestion, source: str, dialect: str) -> tuple[str, dict[str, object]]:
    """The statement and its parameters. Columns: ``line`` (row, others, total), ``place``, ``d1`` …, ``MEASURES``.

    ``place`` counts the rows; in the other two lines it is how many rows they sum. ``source`` is ``ledger_calls`` or a
    table of sums, to which the calls are added that it does not hold yet. On SQLite each part is grouped before they
    are joined, so that it keeps only groups in its temporary tables; PostgreSQL is quicker at grouping once. Where
    there are as many groups as runs, both are quicker at ranking before they sum up.
    """
    names = [f"d{number}" for number in range(1, len(question.by) + 1)] or ["d0"]
    condition, parameters = _condition(question)
    tags = {}
    for number, name in enumerate(question.by, start=1):
        tag = tag_of(name)
        if tag is not None:
            tags[name] = _tag_value(tag, f":tag{number}", dialect)
            parameters[f"tag{number}"] = f'$."{tag}"' if _fits_path(tag, dialect) else tag
    kept = [] if source == LEDGER else [_spent(question, names, tags, source, condition, dialect=dialect)]
    unrolled = condition if source == LEDGER else f"{condition} AND rolled_up = 0"
    unkept = [
        _spent(question, names, tags, LEDGER, unrolled, dialect=dialect),
        _possibly_billed(question, names, tags, condition),
    ]
    listed = "".join(f"{alias}, " for alias in names)
    order = ", ".join(_order(question.by, names))
    limited = ""
    if question.limit is not None and question.by:
        limited = f" ORDER BY {order} LIMIT :limit"
        parameters["limit"] = question.limit
    if limited and source in _BY_RUN and not tags:
        columns = [_COLUMNS[Dimension(name)] for name in question.by]
        found = _by_column(names, columns, source, condition)
        grouping = _ranked_groups(names, found, source, condition, _together(unkept), limited)
    elif limited and source == "run_totals":
        expressions = [tags.get(name) or _column(name, source) for name in question.by]
        found = _by_expression(names, expressions, source, condition, dialect)
        grouping = _ranked_groups(names, found, source, condition, _together(unkept), limited)
    else:
        grouping = _groups(names, _together([*kept, *unkept]), limited)
    sql = f"""WITH {grouping}
SELECT 'row' AS line, row_number() OVER (ORDER BY {order}) AS place, {listed}{_measures()}
FROM shown
UNION ALL
SELECT 'others', a.places - s.places, {"NULL, " * len(names)}{_rest()}
FROM all_sums a, shown_sums s
UNION ALL
SELECT 'total', places, {"NULL, " * len(names)}{_measures()}
FROM all_sums
ORDER BY line, place"""
    return sql, parameters


def _groups(names: Sequence[str], facts: str, limited: str) -> str:
    """Every group with its sums, the first of them, and the sums of these and of all."""
    return f"""facts AS (
{facts}
), grouped AS (
    SELECT {", ".join(names)}, {_sums()},{_known_counts()}
    FROM facts GROUP BY {", ".join(names)}
), shown AS (
    SELECT * FROM grouped{limited}
), shown_sums AS (
    SELECT count(*) AS places, {_sums()},{_known_sums()}
    FROM shown
), all_sums AS (
    SELECT count(*) AS places, {_sums()},{_known_sums()}
    FROM grouped
)"""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Ranked:
    """How groups are found in a table by run: what is read first, their costs, and the rows and facts of the shown."""

    before: str
    costs: str
    shown: str
    is_same_as_unkept: str


def _by_column(names: Sequence[str], columns: Sequence[str], source: str, condition: str) -> _Ranked:
    """Groups that are columns, never NULL: the rows of those that are shown are found by the primary key."""
    same = " AND ".join(f"{source}.{column} = ranked.{name}" for column, name in zip(columns, names, strict=True))
    return _Ranked(
        before="",
        costs=f"SELECT {_aliased(columns, names)}cost_nanousd FROM {source} WHERE {condition}",
        shown=f"ranked JOIN {source} ON {same}",
        is_same_as_unkept=" AND ".join(f"unkept.{name} = ranked.{name}" for name in names),
    )


def _by_expression(
    names: Sequence[str], expressions: Sequence[str], source: str, condition: str, dialect: str
) -> _Ranked:
    """Groups that have to be worked out, and may be NULL: once, and the rows of those that are shown by their run."""
    listed = ", ".join(names)
    return _Ranked(
        before=f""", keyed AS MATERIALIZED (
    SELECT {_aliased(expressions, names)}run_id AS of_run, cost_nanousd FROM {source} WHERE {condition}
)""",
        costs=f"SELECT {listed}, cost_nanousd FROM keyed",
        shown=f"(SELECT {', '.join(f'ranked.{name}' for name in names)}, of_run FROM ranked JOIN keyed "
        f"ON {_is_same('keyed', names, dialect)}) ranked JOIN {source} ON {source}.run_id = of_run",
        is_same_as_unkept=_is_same("unkept", names, dialect),
    )


def _is_same(table: str, names: Sequence[str], dialect: str) -> str:
    """NULL is a group as any other. Each engine has one way to say so that it need not try all pairs for."""
    if dialect == "sqlite":
        return " AND ".join(f"{table}.{name} IS ranked.{name}" for name in names)
    return " AND ".join(
        f"coalesce({table}.{name}, '') = coalesce(ranked.{name}, '') "
        f"AND ({table}.{name} IS NULL) = (ranked.{name} IS NULL)"
        for name in names
    )


def _ranked_groups(names: Sequence[str], found: _Ranked, source: str, condition: str, unkept: str, limited: str) -> str:
    """The same from a table with a row or more for each run: ranked by their cost alone, summed up only if shown.

    Of 50,000 groups that takes both engines about half the time: a group with all its sums is dear. ``unkept`` are the
    facts that ``source`` does not hold.
    """
    listed = ", ".join(names)
    facts = f"SELECT {{listed}}{', '.join(_SPENT)}, {_NOTHING_LOST}"
    from_ranked = "".join(f"ranked.{name}, " for name in names)
    return f"""unkept AS MATERIALIZED (
{unkept}
){found.before}, ranking AS MATERIALIZED (
    SELECT {listed}, CAST(sum(cost_nanousd) AS BIGINT) AS cost_nanousd
    FROM (
        {found.costs}
        UNION ALL
        SELECT {listed}, cost_nanousd FROM unkept
    ) facts GROUP BY {listed}
), ranked AS MATERIALIZED (
    SELECT {listed} FROM ranking{limited}
), shown AS (
    SELECT {listed}, {_sums()},{_known_counts()}
    FROM (
        {facts.format(listed=from_ranked)} FROM {found.shown} WHERE {condition}
        UNION ALL
        SELECT {from_ranked}{", ".join((*_SPENT, *_LOST))} FROM ranked JOIN unkept ON {found.is_same_as_unkept}
    ) facts GROUP BY {listed}
), shown_sums AS (
    SELECT count(*) AS places, {_sums()},{_known_sums()}
    FROM shown
), all_sums AS (
    SELECT (SELECT count(*) FROM ranking) AS places, {_sums()},{_known_sums()}
    FROM (
        SELECT {_sums()},{_known_counts()}
        FROM ({facts.format(listed="")} FROM {source} WHERE {condition}) kept
        UNION ALL
        SELECT {_sums()},{_known_counts()}
        FROM unkept
    ) halves
)"""


def _together(parts: Sequence[str]) -> str:
    return "\n    UNION ALL\n".join(parts)


def _condition(question: CostQuestion) -> tuple[str, dict[str, object]]:
    condition, parameters = "namespace = :namespace", {"namespace": question.namespace}
    if question.since_day is not None:
        condition += " AND day >= :since_day"
        parameters["since_day"] = question.since_day
    if question.agent is not None:
        condition += " AND agent = :agent"
        parameters["agent"] = question.agent
    return condition, dict(parameters)


def _spent(
    question: CostQuestion,
    names: Sequence[str],
    tags: Mapping[str, str],
    source: str,
    condition: str,
    *,
    dialect: str,
) -> str:
    expressions = [tags.get(name) or _column(name, source) for name in question.by] or ["1"]
    grouped = dialect == "sqlite"
    listed = ", ".join(f"sum({name}) AS {name}" if grouped else name for name in _SPENT)
    return f"""    SELECT {_aliased(expressions, names)}{listed},
        {_NOTHING_LOST}
    FROM {source} WHERE {condition}{f" GROUP BY {', '.join(names)}" if grouped else ""}"""


def _possibly_billed(question: CostQuestion, names: Sequence[str], tags: Mapping[str, str], condition: str) -> str:
    expressions = [
        tags.get(name) or ("CAST(NULL AS VARCHAR)" if name in _UNKNOWN_REST else _column(name, LEDGER))
        for name in question.by
    ] or ["1"]
    return f"""    SELECT {_aliased(expressions, names)}0, 0, {"NULL, " * len(TOKEN_COLUMNS)}NULL,
        1, CASE WHEN estimate_nanousd IS NULL THEN 1 ELSE 0 END, estimate_nanousd
    FROM possibly_billed WHERE {condition}"""


def _column(name: str, source: str) -> str:
    """In a table of sums an unknown name is the empty text."""
    column = _COLUMNS[Dimension(name)]
    return f"nullif({column}, '')" if source != LEDGER and name in _UNKNOWN_REST else column


def _aliased(expressions: Sequence[str], names: Sequence[str]) -> str:
    return "".join(f"{expression} AS {alias}, " for expression, alias in zip(expressions, names, strict=True))


def _sums() -> str:
    """Money and tokens stay NULL where nothing is known."""
    sums = [f"CAST(coalesce(sum({name}), 0) AS BIGINT) AS {name}" for name in _COUNTED]
    sums += [f"CAST(sum({name}) AS BIGINT) AS {name}" for name in _KNOWN]
    return _lines(sums)


def _measures() -> str:
    """Where no attempt was lost it is known that nothing is possibly billed."""
    estimate = f"CASE WHEN lost_attempts = 0 THEN 0 ELSE {_ESTIMATE} END AS {_ESTIMATE}"
    return ", ".join([*_COUNTED, *(name for name in _KNOWN if name != _ESTIMATE), estimate])


def _known_counts() -> str:
    """Of how many facts money and tokens are known."""
    return _lines([f"count({name}) AS known_{name}" for name in _KNOWN])


def _known_sums() -> str:
    """The same of groups that have counted them."""
    return _lines([f"coalesce(sum(known_{name}), 0) AS known_{name}" for name in _KNOWN])


def _rest() -> str:
    """All less what is shown; NULL where nothing more is known."""
    rest = [f"a.{name} - s.{name}" for name in _COUNTED]
    known = {name: f"WHEN a.known_{name} > s.known_{name} THEN a.{name} - coalesce(s.{name}, 0) END" for name in _KNOWN}
    known[_ESTIMATE] = f"WHEN a.lost_attempts = s.lost_attempts THEN 0 {known[_ESTIMATE]}"
    rest += [f"CASE {cases}" for cases in known.values()]
    return _lines(rest)


def _lines(expressions: Sequence[str]) -> str:
    return "".join(f"\n        {each}," for each in expressions)[:-1]


def _order(by: Sequence[str], names: Sequence[str]) -> list[str]:
    """Days go on from the first; everything else has the dearest first."""
    by_cost = ["cost_nanousd DESC NULLS LAST", *(f"{alias} NULLS LAST" for alias in names)]
    return [names[0], *by_cost] if by and by[0] == Dimension.DAY else by_cost


def _fits_path(tag: str, dialect: str) -> bool:
    return dialect == "sqlite" and _PLAIN_TAG.fullmatch(tag) is not None


def _tag_value(tag: str, parameter: str, dialect: str) -> str:
    if dialect == "postgresql":
        return f"CAST(tags AS json) ->> CAST({parameter} AS VARCHAR)"
    if _fits_path(tag, dialect):
        return f"json_extract(tags, {parameter})"
    return f"(SELECT entry.value FROM json_each(tags) AS entry WHERE entry.key = {parameter})"


def with_literals(sql: str, parameters: Mapping[str, object]) -> str:
    """The statement as a person can run it: each parameter written out as SQL."""

    def written(found: re.Match[str]) -> str:
        value = parameters[found[1]]
        return str(value) if isinstance(value, int) else "'" + str(value).replace("'", "''") + "'"

    return re.sub(r"(?<![:\w]):([a-z_]\w*)", written, sql)
