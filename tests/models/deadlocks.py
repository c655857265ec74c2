"""Deadlocks that PostgreSQL breaks and the store tries again."""

from __future__ import annotations

import pytest

from paidonce_models.database import transactions


def watch_deadlocks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The deadlocks that PostgreSQL has broken; a transaction that is tried again would hide them."""
    deadlocks: list[str] = []
    is_passing = transactions.is_passing

    def watched(error: Exception) -> bool:
        if getattr(getattr(error, "orig", None), "sqlstate", None) == "40P01":
            deadlocks.append(str(error))
        return is_passing(error)

    monkeypatch.setattr(transactions, "is_passing", watched)
    return deadlocks
