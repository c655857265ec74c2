"""Identifiers: UUID version 7, so that rows of the same time are close together in an index."""

from __future__ import annotations

import os
import time
from typing import NewType

RunId = NewType("RunId", str)
WorkerId = NewType("WorkerId", str)


def uuid7(unix_milliseconds: int | None = None) -> str:
    """A new UUIDv7 (RFC 9562, section 5.7) in its 36-character form."""
    milliseconds = time.time_ns() // 1_000_000 if unix_milliseconds is None else unix_milliseconds
    random_bits = int.from_bytes(os.urandom(10), "big")
    value = (milliseconds & 0xFFFF_FFFF_FFFF) << 80
    value |= 0x7 << 76
    value |= ((random_bits >> 62) & 0x0FFF) << 64
    value |= 0b10 << 62
    value |= random_bits & 0x3FFF_FFFF_FFFF_FFFF
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def new_run_id() -> RunId:
    """A new run's id."""
    return RunId(uuid7())
