"""The second wall: no record forges a line, quotes an exception that may hold data, or shows a credential."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import threading
from collections.abc import Iterator

import pytest

from paidonce_models.errors import HistoryMismatch, StoreUnreachable
from paidonce_models.privacy.log_texts import cause_of, failure_of, loggable
from paidonce_models.privacy.safe_logs import SafeFormatter, keep_reports_quiet, safe_trace

SECRET = "Sesame-4711-open"


def formatted(name: str, message: str, *arguments: object, error: BaseException | None = None) -> str:
    info = None if error is None else (type(error), error, error.__traceback__)
    record = logging.LogRecord(name, logging.ERROR, __file__, 1, message, arguments, info)
    return SafeFormatter(logging.Formatter("%(levelname)s %(message)s")).format(record)


def raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as caught:  # noqa: BLE001 - with its traceback
        return caught


def test_a_record_is_one_line_without_credentials() -> None:
    line = formatted("paidonce.x", "task %s of %s", "a\nERROR forged\x1b[2J\u202e", "redis://:hunter2@host/0")
    assert line == "ERROR task a\\nERROR forged\\x1b[2J\\u202e of redis://:***@host/0"


def test_a_traceback_keeps_its_lines_and_loses_the_words() -> None:
    try:
        try:
            raise KeyError(SECRET)
        except KeyError as cause:
            raise ValueError(f"no {SECRET}") from cause
    except ValueError as caught:
        shown = formatted("paidonce_workers.x", "it failed", error=caught)
    assert SECRET not in shown
    assert "KeyError\n" in shown and shown.endswith("ValueError") and "test_safe_logs.py" in shown
    own = formatted("shop.agents", "it failed", error=raised(ValueError("theirs")))
    assert "theirs" in own, "what a team's own code logs is its own"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError(SECRET), "ValueError"),
        (KeyError(SECRET), "KeyError"),
        (KeyError("task"), "KeyError: 'task'"),
        (HistoryMismatch(f"history holds {SECRET}"), "HistoryMismatch"),
        (StoreUnreachable("the store is away"), "StoreUnreachable: the store is away"),
        (ConnectionRefusedError(111, "Connection refused"), "ConnectionRefusedError: Connection refused"),
        (FileNotFoundError(2, "No such file or directory", SECRET), "FileNotFoundError: No such file or directory"),
        (UnicodeDecodeError("utf-8", SECRET.encode(), 0, 1, "bad"), "UnicodeDecodeError"),
    ],
)
def test_a_log_says_of_an_exception_what_cannot_be_data(error: Exception, said: str) -> None:
    assert cause_of(error) == said
    told = failure_of(raised(error))
    assert told.startswith(f"{said} at test_safe_logs.py:")
    assert SECRET not in told + safe_trace(raised(error))


def test_a_text_from_outside_does_not_fill_a_log() -> None:
    assert len(loggable("x" * 1_000_000)) < 1_000


@pytest.fixture
def quiet_reports() -> Iterator[None]:
    hooks = threading.excepthook, sys.unraisablehook
    loggers = logging.root.manager.loggerDict
    before = {
        name: (each.level, list(each.filters)) for name, each in loggers.items() if isinstance(each, logging.Logger)
    }
    keep_reports_quiet()
    yield
    threading.excepthook, sys.unraisablehook = hooks
    for name, each in list(loggers.items()):
        if isinstance(each, logging.Logger):
            level, each.filters = before.get(name, (logging.NOTSET, []))
            each.setLevel(level)


@pytest.mark.usefixtures("quiet_reports")
def test_what_asyncio_reports_by_itself_quotes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(secret: str) -> None:
        raise LookupError(secret)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_debug(True)
        loop.slow_callback_duration = 0.0
        task = loop.create_task(fail(SECRET))
        await asyncio.sleep(0.01)
        del task
        gc.collect()
        loop.call_soon(lambda secret: 1 // 0, SECRET)
        await asyncio.sleep(0.01)

    with caplog.at_level(logging.DEBUG):
        asyncio.run(main())
    assert "Task exception was never retrieved: LookupError at" in caplog.text
    assert "ZeroDivisionError" in caplog.text and "Executing" in caplog.text
    assert SECRET not in caplog.text
