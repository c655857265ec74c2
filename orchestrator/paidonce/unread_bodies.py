"""Bodies that our transports do not touch: compressed ones, of which a few bytes can fill the memory.

kombu unpacks a body while it makes the message, before anybody can look at it and
without a bound. Nothing of ours is compressed: what is large is in the store.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kombu.exceptions import ContentDisallowed


def refuse_compression(message: Any, headers: Mapping[str, Any]) -> None:
    """Before kombu's own ``__init__``: a message with an error is not unpacked, and its consumer hears of it."""
    compression = headers.get("compression")
    if compression:
        error = ContentDisallowed(
            "its body is compressed, which is not unpacked here; send it as it is, without task_compression"
        )
        message.errors = [(type(error), error, None)]
