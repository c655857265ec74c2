"""What an operator may configure of PostgreSQL's sessions: the schema's name, and a pooler before the server.

Separate from ``sessions``, so that settings are read without SQLAlchemy.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final

_SCHEMA_NAME: Final = re.compile(r"(?!pg_|information_schema$)[a-z_][a-z0-9_]{0,62}")
SCHEMA_RULE: Final = "name of small letters, digits and _, at most 63, not beginning with a digit or pg_"


class Pooler(StrEnum):
    """What is between us and the server."""

    AUTO = "auto"
    SESSION = "session"
    TRANSACTION = "transaction"


def is_schema_name(name: str) -> bool:
    """Whether a schema may have that name, which never needs quotes."""
    return _SCHEMA_NAME.fullmatch(name) is not None
