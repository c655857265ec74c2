"""Log lines that nothing from outside can forge and that contain no credential: the second line of defence.

Owns a formatter around another one, and the hooks for what the interpreter itself reports. The first line of defence
is each log call: it names ids, and shows of an exception only what ``log_texts`` permits.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterable

from paidonce_models.privacy.log_texts import cause_of, failure_of
from paidonce_models.privacy.masking import current_masker, mask
from paidonce_models.privacy.visible_text import visible, visible_lines

LOOK_AT_VARIABLES_EVERY_SECONDS = 1.0
QUOTED_TASK_ERRORS = "celery.app.trace"
"""Celery's log of failed tasks: our errors quote no data, those of a team's own tasks are theirs to decide."""
_INFRASTRUCTURE = (
    *("paidonce", "celery", "kombu", "amqp", "asyncio", "concurrent", "sqlalchemy", "alembic", "redis"),
    *("multiprocessing", "py", "psycopg"),
)
_TALKATIVE = (
    *("openai", "anthropic", "httpx", "httpx2", "httpcore", "urllib3", "requests", "aiohttp", "litellm", "LiteLLM"),
    *("google_genai", "google", "pydantic_ai", "botocore", "boto3", "langchain", "mcp"),
)
"""Clients that log prompts, responses and headers at DEBUG."""


class SafeFormatter(logging.Formatter):
    """Formats like ``inner``: on one line, without credentials, without exception messages that may quote data."""

    def __init__(self, inner: logging.Formatter | None = None) -> None:
        super().__init__()
        self._inner = inner if inner is not None else logging.Formatter()
        self._literals: list[str] = []
        self._look_again_at = 0.0

    def format(self, record: logging.LogRecord) -> str:
        """The record as text; other handlers see it unchanged."""
        copy = logging.makeLogRecord(record.__dict__)
        copy.msg, copy.args = visible(self._masked(_message_of(record))), None
        copy.exc_info = None
        if record.exc_info and record.exc_info[1] is not None:
            copy.exc_text = visible_lines(self._masked(_trace_of(record.name, record.exc_info[1])))
        elif record.exc_text:
            copy.exc_text = visible_lines(self._masked(record.exc_text))
        return self._inner.format(copy)

    def _masked(self, text: str) -> str:
        # The environment is not read again for each of a thousand lines per second.
        now = time.monotonic()
        masker = current_masker()
        if now >= self._look_again_at:
            self._literals = masker.secret_values(os.environ)
            self._look_again_at = now + LOOK_AT_VARIABLES_EVERY_SECONDS
        return masker.mask(text, self._literals)


def make_safe(handlers: Iterable[logging.Handler]) -> None:
    """Wrap the formatter of each handler; idempotent."""
    for handler in handlers:
        if not isinstance(handler.formatter, SafeFormatter):
            handler.setFormatter(SafeFormatter(handler.formatter))


def keep_reports_quiet() -> None:
    """From now on the reports of the interpreter, asyncio and clients quote no data; idempotent.

    For processes that run steps: their threads, tasks and finalizers belong to user code.
    """
    log = logging.getLogger("asyncio")
    if not any(isinstance(each, _OfAsyncio) for each in log.filters):
        log.addFilter(_OfAsyncio())
    pool = logging.getLogger("celery.pool")
    if not any(isinstance(each, _OfPools) for each in pool.filters):
        pool.addFilter(_OfPools())
    for name in _TALKATIVE:
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.INFO)
    threading.excepthook = _thread_failed
    sys.unraisablehook = _ignored


def safe_trace(error: BaseException) -> str:
    """A traceback whose exceptions show only what a log may contain, with their causes."""
    parts: list[str] = []
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen and len(parts) < 10:
        seen.add(id(following))
        places = "".join(traceback.format_tb(following.__traceback__)[-40:])
        head = "Traceback (most recent call last):\n" if places else ""
        parts.append(f"{head}{places}{cause_of(following)}")
        before = following.__cause__
        following = before if before is not None or following.__suppress_context__ else following.__context__
    return "\n\nThe error above led to this one:\n\n".join(reversed(parts))


def _message_of(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # noqa: BLE001 - a wrong format string or a `__str__` that raises must not lose the record
        return str(record.msg)


def _trace_of(name: str, error: BaseException) -> str:
    is_ours = name != QUOTED_TASK_ERRORS and name.partition(".")[0].startswith(_INFRASTRUCTURE)
    return safe_trace(error) if is_ours else mask("".join(traceback.format_exception(error))).rstrip("\n")


_CALLBACK = "Exception in callback"


class _OfAsyncio(logging.Filter):
    """asyncio logs a task that was never awaited with its exception, and slow callbacks with their arguments."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Passes every record, without the data that it quotes."""
        error = record.exc_info[1] if record.exc_info else None
        first = str(record.msg).partition("\n")[0]
        if first.startswith(_CALLBACK):
            first = _CALLBACK  # what follows is the callback with its arguments
        if error is not None:
            record.msg, record.args = "%s: %s", (first, failure_of(error))
            record.exc_info = record.exc_text = None
        elif isinstance(record.args, tuple):
            record.msg = first
            record.args = tuple(each if isinstance(each, int | float) else type(each).__name__ for each in record.args)
        else:
            record.msg = first
        return True


class _OfPools(logging.Filter):
    """At DEBUG Celery's pools quote the body of every message."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Passes every record, without the arguments."""
        if str(record.msg).startswith("TaskPool: Apply"):
            record.msg, record.args = "TaskPool: Apply a task", None
        return True


def _thread_failed(failed: threading.ExceptHookArgs) -> None:
    if failed.exc_type is SystemExit or failed.exc_value is None:
        return
    name = failed.thread.name if failed.thread is not None else "unknown"
    logging.getLogger("paidonce.reports").error(
        "thread %s ended with %s", visible(name), failure_of(failed.exc_value), extra={"event": "thread_failed"}
    )


def _ignored(ignored: sys.UnraisableHookArgs) -> None:
    if ignored.exc_value is not None:
        logging.getLogger("paidonce.reports").error(
            "an exception was ignored in a %s: %s",
            type(ignored.object).__name__,
            failure_of(ignored.exc_value),
            extra={"event": "exception_ignored"},
        )
