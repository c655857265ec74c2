"""Views that statements read, by class: which columns each has. Their SQL is in migrations 0002 and 0007.

A view has no class among the tables; a test compares these with the views of a store. See ``store.columns``.
"""

from __future__ import annotations

from paidonce_models.store.columns import named


class LedgerCallRow:
    """``ledger_calls``: each call with its cause, and whether it counts as unpriced."""

    namespace: str
    id: str
    day: str
    run_id: str
    root_run_id: str
    agent: str
    tags: str
    position: int
    step: str
    attempt: int
    tool: str | None
    kind: str
    provider: str | None
    model: str | None
    """The billed model, else the requested one."""
    cause: str
    status: str
    http_retry: int
    usage_source: str
    provider_request_id: str | None
    started_at_us: int
    duration_us: int | None
    input_tokens: int | None
    cache_read_tokens: int | None
    cache_write_tokens: int | None
    output_tokens: int | None
    reasoning_tokens: int | None
    cost_nanousd: int | None
    price_source: str | None
    unpriced_calls: int
    estimated_calls: int
    missing_calls: int
    retry_calls: int
    retry_cost_nanousd: int | None
    calls: int
    rolled_up: int


class PossiblyBilledRow:
    """``possibly_billed``: what a lost attempt may have been billed in addition to what is recorded."""

    namespace: str
    day: str
    run_id: str
    root_run_id: str
    agent: str
    tags: str
    position: int
    step: str
    attempt: int
    cause: str
    recorded_nanousd: int | None
    basis_nanousd: int | None
    estimate_nanousd: int | None


LedgerCall: type[LedgerCallRow] = named("ledger_calls")
PossiblyBilled: type[PossiblyBilledRow] = named("possibly_billed")
