"""Names of calls: by its token a probe holds its place."""

from __future__ import annotations

import uuid


def new_token() -> str:
    """A name for a call that has none of its own."""
    return uuid.uuid4().hex
