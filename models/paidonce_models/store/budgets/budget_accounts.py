"""The accounts of budgets: opening one with the spend that the ledger holds, and reading balances under their lock.

Accounts are locked last in every transaction, in the order of their keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import Connection, bindparam, text

from paidonce_models.budgets import AGENT, RUN, Account, Balance, Period, Unit
from paidonce_models.instants import EPOCH, microseconds_of
from paidonce_models.unpriced_calls import IS_UNPRICED

_BALANCES = (
    "SELECT key, spent, reserved FROM budget_accounts WHERE namespace = :namespace AND key IN :keys ORDER BY key"
)
# In the order in which ``spending`` writes them: Python's, whatever the database's collation.
_BALANCES_STATEMENTS = {
    "postgresql": text(f'{_BALANCES} COLLATE "C" FOR UPDATE').bindparams(bindparam("keys", expanding=True)),
    "sqlite": text(_BALANCES).bindparams(bindparam("keys", expanding=True)),
}
# Claims that open the same account race: the second inserts nothing and reads the first one's row, under its lock.
_OPEN = text(
    "INSERT INTO budget_accounts (namespace, key, subject, period, unit, span, spent, reserved, unpriced_calls, "
    "opened_at_us) VALUES (:namespace, :key, :subject, :period, :unit, :span, :spent, 0, :unpriced_calls, "
    "paidonce_now()) ON CONFLICT (namespace, key) DO NOTHING"
)

_FAMILY = (
    "(WITH RECURSIVE family AS (SELECT id FROM runs WHERE id = :span "
    "UNION ALL SELECT child.id FROM runs child JOIN family ON child.parent_run_id = family.id) SELECT id FROM family)"
)
_TREE = "(SELECT id FROM runs WHERE root_run_id = :span)"
_SUBJECTS = {
    "postgresql": "(SELECT entry->>0 FROM json_array_elements(CAST(r.lineage AS json)) AS entry)",
    "sqlite": "(SELECT json_extract(value, '$[0]') FROM json_each(r.lineage))",
}
_OF_SUBJECT = "EXISTS (SELECT 1 FROM runs r WHERE r.id = {table}.run_id AND :subject IN {subjects})"
_CALLS = (
    "SELECT coalesce(sum(cost_nanousd), 0) AS usd, coalesce(sum(coalesce(input_tokens, 0) + "
    f"coalesce(output_tokens, 0)), 0) AS tokens, coalesce(sum(CASE WHEN {IS_UNPRICED} THEN 1 ELSE 0 END), 0) "
    "AS unpriced FROM calls WHERE namespace = :namespace AND "
)
_STEPS = "SELECT count(*) AS steps FROM attempts WHERE namespace = :namespace AND number = 1 AND "


def lock_balances(connection: Connection, namespace: str, accounts: Sequence[Account]) -> dict[str, Balance]:
    """The balances of these accounts by key, locked until the transaction ends; opens those that are missing."""
    keys = sorted(account.key for account in accounts)
    found = _locked(connection, namespace, keys)
    missing = [account for account in sorted(accounts, key=lambda each: each.key) if account.key not in found]
    if missing:
        for account in missing:
            _open(connection, namespace, account)
        found = _locked(connection, namespace, keys)
    return found


def _locked(connection: Connection, namespace: str, keys: list[str]) -> dict[str, Balance]:
    rows = connection.execute(
        _BALANCES_STATEMENTS[connection.dialect.name], {"namespace": namespace, "keys": keys}
    ).all()
    return {row.key: Balance(spent=int(row.spent), reserved=int(row.reserved)) for row in rows}


def _open(connection: Connection, namespace: str, account: Account) -> None:
    spent, unpriced = _spent_before(connection, namespace, account)
    connection.execute(
        _OPEN,
        {
            "namespace": namespace,
            "key": account.key,
            "subject": account.subject,
            "period": account.budget.period.value,
            "unit": account.budget.unit.value,
            "span": account.span,
            "spent": spent,
            "unpriced_calls": unpriced,
        },
    )


def _spent_before(connection: Connection, namespace: str, account: Account) -> tuple[int, int]:
    """The spend in this span before the account existed, in its unit, and calls without a price."""
    parameters: dict[str, object] = {"namespace": namespace, "span": account.span, "subject": account.subject}
    counts_steps = account.budget.unit is Unit.STEPS
    table = "attempts" if counts_steps else "calls"
    if account.budget.period is Period.RUN:
        runs = _FAMILY if account.subject.startswith((AGENT, RUN)) else _TREE
        condition = f"run_id IN {runs}"
    else:
        begins, ends = bounds_of(account.span)
        condition = _OF_SUBJECT.format(table=table, subjects=_SUBJECTS[connection.dialect.name])
        if counts_steps:
            condition += " AND claimed_at_us >= :begins AND claimed_at_us < :ends"
            parameters |= {"begins": microseconds_of(begins), "ends": microseconds_of(ends)}
        else:
            condition += " AND day >= :first AND day < :after"
            parameters |= {"first": begins.strftime("%Y-%m-%d"), "after": ends.strftime("%Y-%m-%d")}
    if counts_steps:
        return int(connection.execute(text(_STEPS + condition), parameters).scalar_one()), 0
    row = connection.execute(text(_CALLS + condition), parameters).one()
    if account.budget.unit is Unit.TOKENS:
        return int(row.tokens), 0
    return int(row.usd), int(row.unpriced)


def bounds_of(span: str) -> tuple[datetime, datetime]:
    """The beginning of a day (``2026-11-25``) or month (``2026-11``) in UTC, and that of the next."""
    year, month, *day = (int(part) for part in span.split("-"))
    begins = EPOCH.replace(year=year, month=month, day=day[0] if day else 1)
    if day:
        return begins, begins + timedelta(days=1)
    return begins, (begins + timedelta(days=31)).replace(day=1)
