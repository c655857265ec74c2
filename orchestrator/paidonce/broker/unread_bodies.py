"""Refuses compressed bodies, of which a few bytes can fill the memory.

kombu decompresses a body while it creates the message, before anyone can inspect it and
without a limit. Nothing of ours is compressed: large values are in the store.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kombu.exceptions import ContentDisallowed


def refuse_compression(message: Any, headers: Mapping[str, Any]) -> None:
    """Called before kombu's own ``__init__``: a message with an error is not decompressed, and its consumer is told."""
    compression = headers.get("compression")
    if compression:
        error = ContentDisallowed(
            "its body is compressed, which is not supported; send it uncompressed, without task_compression"
        )
        message.errors = [(type(error), error, None)]
