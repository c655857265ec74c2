"""A body in its own process: reads a claim, runs the body, writes the result. ``child`` is the other side."""

from __future__ import annotations

import asyncio
import os
import pickle
import sys
import threading
import time
from functools import partial
from typing import Any, Final

from paidonce.configuration.module_loading import load_modules
from paidonce.declarations.registry import default_registry
from paidonce.policies import describe_failure
from paidonce.usage.call_recorder import CallRecorder
from paidonce.user_errors import error_of, traceback_of
from paidonce_models.pricing import PriceBook
from paidonce_models.privacy.masking import mask_names
from paidonce_models.privacy.safe_logs import keep_reports_quiet, safe_trace
from paidonce_models.usage import CallRecord
from paidonce_workers.bodies.blocked_attempts import AttemptBlocked, BlockedAttempt, not_held
from paidonce_workers.bodies.declared_body import run_declared
from paidonce_workers.bodies.forked_bodies import await_in_this_process, call_in_this_process
from paidonce_workers.capture import install
from paidonce_workers.isolation.frames import FrameWriter
from paidonce_workers.isolation.messages import MASKED_NAMES, TELL_SECONDS, ErrorInChild, Message, Task

NO_WAY_TO_ANSWER: Final = 70
"""Exit status if the body left no way to report its result."""


def run(answers: int, keeper: int) -> None:
    """Run one step and end. ``answers`` is the pipe, which the process ``keeper`` also keeps open."""
    keep_reports_quiet()
    sys.excepthook = lambda _kind, error, _trace: print(safe_trace(error), file=sys.stderr)
    mask_names(os.environ.get(MASKED_NAMES, "").split(","))
    stdin = os.dup(0)
    with os.fdopen(os.dup(0), "rb") as given:
        task: Task = pickle.load(given)
    threading.Thread(target=_die_with_parent, args=(stdin,), name="paidonce-parent-watch", daemon=True).start()
    install(task.provider_hosts)
    load_modules(task.modules)
    prices = PriceBook(task.price_rows)
    recorder = CallRecorder(prices=lambda: prices)
    teller = Teller(FrameWriter(task.word, answers, keeper), recorder)
    declaration = default_registry.step(task.claim.name)

    def call(fn: Any, args: list[object], kwargs: dict[str, object]) -> object:
        result: Any = call_in_this_process(partial(fn, *args, **kwargs))
        return (
            asyncio.run(await_in_this_process(result)) if declaration is not None and declaration.is_async else result
        )

    try:
        if declaration is None:
            raise not_held(task.claim, task.modules)
        answer: bytes | ErrorInChild | BlockedAttempt = run_declared(declaration, task.claim, recorder, None, call)
    except AttemptBlocked as stopped:
        answer = stopped.blocked
    except BaseException as error:  # noqa: BLE001 - whatever the body raises is its answer
        answer = ErrorInChild(error_of(error), traceback_of(error), describe_failure(error))
    try:
        teller.tell(answer)
    except OSError as error:
        print(f"paidonce: the result of {task.claim.name} is lost: {error}", file=sys.__stderr__)
        os._exit(NO_WAY_TO_ANSWER)


def _die_with_parent(stdin: int) -> None:
    try:
        while os.read(stdin, 4096):
            continue
    except OSError:  # the body closed it; on Linux the kernel watches as well
        return
    os._exit(1)


class Teller:
    """Reports the body's end to the parent, and every second the calls that have finished."""

    def __init__(self, answers: FrameWriter, recorder: CallRecorder) -> None:
        self._answers = answers
        self._recorder = recorder
        self._lock = threading.Lock()
        threading.Thread(target=self._tell_calls, name="paidonce-calls", daemon=True).start()

    def tell(self, answer: bytes | ErrorInChild | BlockedAttempt) -> None:
        """Report the end of the body, with the calls that were not reported yet."""
        with self._lock:
            self._answers.write(pickle.dumps(Message(self._recorder.drain(), answer)))

    def _tell_calls(self) -> None:
        told: list[CallRecord] = []
        while True:
            time.sleep(TELL_SECONDS)
            with self._lock:
                awaited = self._recorder.awaited()
                calls = self._recorder.begin_flush()
                written = False
                try:
                    if calls or awaited != told:
                        self._answers.write(pickle.dumps(Message(calls, awaited=awaited)))
                    told, written = awaited, True
                finally:
                    self._recorder.end_flush(calls, written=written)
