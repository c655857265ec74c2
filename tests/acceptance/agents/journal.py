"""What a step leaves behind for the test to see: one line each in a file that all processes share."""

from __future__ import annotations

import os

VARIABLE = "ACCEPTANCE_JOURNAL"


def note(line: str) -> None:
    """One write, so that the lines of several threads and processes do not mix."""
    descriptor = os.open(os.environ[VARIABLE], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, f"{line}\n".encode())
    finally:
        os.close(descriptor)
