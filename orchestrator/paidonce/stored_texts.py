"""Length limits of texts from outside that the store keeps in a column or an index.

Owns the limits, in bytes as the store counts: PostgreSQL accepts no index row above
2,704 bytes, and a character may take four. A limit in characters would accept a text
that no commit can store, after it was promised.

    runs (namespace, agent, key)                    64 + 150 + 2,000
    run_aliases (namespace, alias)                  64 + 255 characters
    budgets, budget_accounts (…, subject, …)        64 + tag: twice 1,000, with period, unit and span
    daily_costs (…, agent, step, tool, model, …)    64 + 150 + 200 + twice 200 characters
    a queue's name                                  150, and ours before it: RabbitMQ takes 255
"""

from __future__ import annotations

from paidonce_models.payloads.json_values import shown

MAX_NAME_BYTES = 150
"""Of agents and queues."""
MAX_STEP_NAME_BYTES = 200
MAX_VERSION_BYTES = 100
MAX_KEY_BYTES = 2_000
MAX_ALIAS_CHARACTERS = 255
MAX_TAG_BYTES = 1_200
"""Of the name of a tag and of its value; a setting may allow less."""


def is_storable(text: str) -> bool:
    """JSON can hold NUL and lone surrogates; PostgreSQL's texts cannot."""
    try:
        text.encode()  # refuses nothing but surrogates, and looks at each character faster than we could
    except UnicodeEncodeError:
        return False
    return "\x00" not in text


def fits(value: object, limit_bytes: int) -> bool:
    """Whether a value is a non-empty text that a store can keep in so many bytes."""
    return (
        isinstance(value, str)
        and 0 < len(value) <= limit_bytes
        and is_storable(value)
        and len(value.encode()) <= limit_bytes
    )


def found_instead(value: object) -> str:
    """Describe for an error what was found instead of such a text: short, with its size if that is the problem."""
    if not isinstance(value, str):
        return shown(value)
    if not value:
        return "an empty text"
    if not is_storable(value):
        return f"{shown(value)}, with a NUL or half a surrogate pair, which no store can hold"
    return f"{shown(value)} of {len(value.encode())} bytes"
