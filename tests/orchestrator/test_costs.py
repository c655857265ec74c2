"""What people say of the first day of a table of costs."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import pytest

from paidonce.costs import cost_question
from paidonce_models.errors import InvalidInput

TODAY = date(2026, 11, 28)


@pytest.mark.parametrize(
    ("since", "first_day"),
    [
        (None, None),
        ("1d", "2026-11-28"),
        ("7d", "2026-11-22"),
        ("2w", "2026-11-15"),
        ("2026-11-01", "2026-11-01"),
        (date(2026, 11, 1), "2026-11-01"),
        (timedelta(days=7), "2026-11-22"),
        (datetime(2026, 11, 1, 12, tzinfo=UTC), "2026-11-01"),
        (datetime(2026, 11, 1, 1, tzinfo=timezone(timedelta(hours=2))), "2026-10-31"),
    ],
)
def test_the_first_day_is_a_utc_day(since: Any, first_day: str | None) -> None:
    assert cost_question(namespace="tests", since=since, today=TODAY).since_day == first_day


@pytest.mark.parametrize("since", ["", "0d", "7", "-7d", "yesterday", "2026-13-01", "99999w", timedelta(hours=3)])
def test_what_is_no_day_is_refused(since: Any) -> None:
    with pytest.raises(InvalidInput, match="since"):
        cost_question(namespace="tests", since=since, today=date(900, 1, 1))
