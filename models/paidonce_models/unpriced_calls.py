"""What an unpriced call is: one that makes a sum of money a lower bound. In Python and in SQL, side by side.

A failed request that reports no tokens is normally not billed: it is a call, but needs no price. Migrations 0002 (the
view ``ledger_calls``) and 0006 (``paidonce_record_calls``) have the same condition as text of their time; a test
compares all of them on every kind of call.
"""

from __future__ import annotations

from typing import Final

IS_UNPRICED: Final = (
    "(cost_nanousd IS NULL AND NOT (status = 'failed' AND input_tokens IS NULL AND output_tokens IS NULL))"
)
"""SQL: whether a row of ``calls`` is unpriced."""


def is_unpriced(
    *, cost_nanousd: int | None, has_failed: bool, input_tokens: int | None, output_tokens: int | None
) -> bool:
    """Whether a call is unpriced; ``IS_UNPRICED`` says the same of a row."""
    return cost_nanousd is None and not (has_failed and input_tokens is None and output_tokens is None)
