"""How long a text from outside may be that the store keeps in a column or an index.

Owns the limits, in the bytes that the store counts: PostgreSQL takes no index row
above 2,704 bytes, and a character may have four. A limit in characters lets a text
through that no commit can hold, after it was promised.

    runs (namespace, agent, key)                    64 + 150 + 2,000
    run_aliases (namespace, alias)                  64 + 255 characters
    budgets, budget_accounts (…, subject, …)        64 + tag: twice 1,000, with period, unit and span
    daily_costs (…, agent, step, tool, model, …)    64 + 150 + 200 + twice 200 characters
    a queue's name                                  150, and ours before it: RabbitMQ takes 255
"""

from __future__ import annotations

from paidonce_models.json_values import shown

MAX_NAME_BYTES = 150
"""Of agents and queues."""
MAX_STEP_NAME_BYTES = 200
MAX_VERSION_BYTES = 100
MAX_KEY_BYTES = 2_000
MAX_ALIAS_CHARACTERS = 255
MAX_TAG_BYTES = 1_200
"""Of the name of a tag and of its value; a setting may allow less."""


def is_storable(text: str) -> bool:
    """JSON can carry NUL and half a surrogate pair; PostgreSQL's texts cannot."""
    return "\x00" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def fits(value: object, limit_bytes: int) -> bool:
    """Whether a value is a text of at least one character that a store can keep in so many bytes."""
    return (
        isinstance(value, str)
        and 0 < len(value) <= limit_bytes
        and is_storable(value)
        and len(value.encode()) <= limit_bytes
    )


def found_instead(value: object) -> str:
    """What was found where such a text was expected, for an error: short, and its size where that is what is wrong."""
    if not isinstance(value, str):
        return shown(value)
    if not value:
        return "an empty text"
    if not is_storable(value):
        return f"{shown(value)}, with a NUL or half a surrogate pair, which no store can hold"
    return f"{shown(value)} of {len(value.encode())} bytes"
