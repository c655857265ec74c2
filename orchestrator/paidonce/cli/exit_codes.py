"""What the exit codes of ``paidonce`` mean; the errors' own are in ``paidonce_models.errors``."""

from __future__ import annotations

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNAVAILABLE = 3
EXIT_RUN_ENDED = 5
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143

MEANINGS: dict[int, str] = {
    EXIT_OK: "done",
    EXIT_FAILED: "an unexpected error; the message says what went wrong, and a bug shows its traceback",
    EXIT_USAGE: "wrong usage, invalid input, or an unusable setting or module",
    EXIT_UNAVAILABLE: "the store or the broker cannot be reached or refuses writes, or the store has a different "
    "schema version",
    4: "no such run or step",
    EXIT_RUN_ENDED: "the run failed, was cancelled or is blocked",
    6: "the run did not end within --timeout; it continues",
    EXIT_INTERRUPTED: "interrupted by Ctrl-C; submitted runs are stored and continue",
    EXIT_TERMINATED: "ended by SIGTERM; submitted runs are stored and continue",
}
"""Each exit code and what it says."""
