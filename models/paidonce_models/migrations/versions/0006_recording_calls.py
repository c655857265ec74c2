"""On PostgreSQL: writing an attempt's calls as a function, for the statement that completes a step."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_FROM_RUN = {"namespace": "namespace", "run_id": "id", "root_run_id": "root_run_id", "agent": "agent", "tags": "tags"}
_GIVEN = {"position": "of_position", "step": "of_step", "attempt": "of_attempt", "rolled_up": "0"}
_OF_THE_CALL = (
    *("id", "day", "tool", "kind", "provider", "model_requested", "model_billed", "input_tokens", "cache_read_tokens"),
    *("cache_write_tokens", "output_tokens", "reasoning_tokens", "usage_source", "status", "http_retry"),
    *("provider_request_id", "started_at_us", "duration_us", "cost_nanousd", "input_cost_nanousd"),
    *("cache_read_cost_nanousd", "cache_write_cost_nanousd", "output_cost_nanousd", "other_cost_nanousd"),
    *("price_source", "input_nanousd_per_mtok", "cache_read_nanousd_per_mtok", "cache_write_nanousd_per_mtok"),
    "output_nanousd_per_mtok",
)
_COLUMNS = ", ".join((*_FROM_RUN, *_GIVEN, *_OF_THE_CALL))
_VALUES = ", ".join(
    [
        *(f"runs.{column}" for column in _FROM_RUN.values()),
        *_GIVEN.values(),
        *(f"given.{name}" for name in _OF_THE_CALL),
    ]
)

# Sums of what was written: a call that was there already is not counted again.
_RECORD_CALLS = f"""
CREATE FUNCTION paidonce_record_calls(of_run text, of_position int, of_attempt int, of_step text, records json,
    OUT n bigint, OUT u bigint, OUT i bigint, OUT o bigint, OUT c bigint) LANGUAGE plpgsql AS $$
BEGIN
    WITH written AS (
        INSERT INTO calls ({_COLUMNS})
        SELECT {_VALUES}
        FROM runs, json_populate_recordset(NULL::calls, records) AS given WHERE runs.id = of_run
        ON CONFLICT (id, day) DO NOTHING
        RETURNING cost_nanousd, input_tokens, output_tokens, status
    )
    SELECT count(*), coalesce(sum(CASE WHEN cost_nanousd IS NULL
            AND NOT (status = 'failed' AND input_tokens IS NULL AND output_tokens IS NULL) THEN 1 ELSE 0 END), 0),
        sum(input_tokens), sum(output_tokens), sum(cost_nanousd)
    INTO n, u, i, o, c FROM written;
END
$$
"""
_ADD = """
CREATE FUNCTION paidonce_add(a bigint, b bigint) RETURNS bigint LANGUAGE sql IMMUTABLE
AS $$ SELECT coalesce(a + coalesce(b, 0), b) $$
"""


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute(sa.text(_RECORD_CALLS.replace(":", "\\:")))
        op.execute(sa.text(_ADD))


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION paidonce_add(bigint, bigint)")
        op.execute("DROP FUNCTION paidonce_record_calls(text, int, int, text, json)")
