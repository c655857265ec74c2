"""One attempt of a step in this process: claim, body, completion, without a worker around it.

Owns what a worker's executor does between a claim and a completion, reduced to
what a simulation needs: no heartbeat thread, no time limit, no child process.
The claim is the workers' own statement; the completion is handed back to be
delivered when the simulation decides.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from paidonce.current_step import CurrentStep, executing
from paidonce.declarations import StepDeclaration
from paidonce.lazy_results import drop, is_lazy, lazy_message
from paidonce.testing.capturing import capturing
from paidonce.usage import CallRecorder, innermost_tool, recording_into
from paidonce.user_errors import error_of, traceback_of
from paidonce_models.errors import DeclarationError
from paidonce_models.payloads import split
from paidonce_models.states import AttemptOutcome
from paidonce_models.store.claims import Claim
from paidonce_models.store.completion import Completion


@dataclass(kw_only=True)
class Executor:
    """Runs step bodies; ``fakes`` stand in for the bodies of steps by name."""

    worker: str
    now_us: Callable[[], int]
    uniform: Callable[[float, float], float]
    limit_bytes: int
    fakes: Mapping[str, Callable[..., Any]] = field(default_factory=dict)

    def execute(self, claim: Claim, declaration: StepDeclaration[..., Any]) -> Completion:
        """Run the body of a claimed step; whatever ``Exception`` it raises becomes the attempt's failure."""
        recorder = CallRecorder(now_us=self.now_us)
        try:
            args, kwargs = declaration.parameters.decode_arguments(claim.arguments)
            results = declaration.result_codec  # before the body, as a worker does
            with capturing(), recording_into(recorder), _executing(claim):
                value = self._call(declaration, args, kwargs)
            where = f"result of step {claim.position} ({claim.name})"
            encoded = results.encode_result(value, where)
            return Completion(
                claim=claim,
                worker=self.worker,
                outcome=AttemptOutcome.ACCEPTED,
                result=split(encoded, limit_bytes=self.limit_bytes),
                result_json=encoded,
                calls=recorder.drain(),
            )
        except Exception as error:  # noqa: BLE001 # the step's own failure, whatever it is
            return self._failed(claim, declaration, error, recorder)

    def _failed(
        self, claim: Claim, declaration: StepDeclaration[..., Any], error: Exception, recorder: CallRecorder
    ) -> Completion:
        failures = claim.failed + 1
        retry_after_us = None
        retry = declaration.retry
        if failures < retry.max_attempts and declaration.idempotent and retry.covers(error):
            retry_after_us = int(retry.delay_seconds(failures, self.uniform) * 1e6)
        return Completion(
            claim=claim,
            worker=self.worker,
            outcome=AttemptOutcome.FAILED,
            error=error_of(error),
            traceback=traceback_of(error),
            retry_after_us=retry_after_us,
            calls=recorder.drain(),
        )

    def _call(self, declaration: StepDeclaration[..., Any], args: Any, kwargs: Any) -> Any:
        body = self.fakes.get(declaration.name, declaration.fn)
        if body is declaration.fn and not declaration.is_async:
            body = partial(_run_plainly, declaration)
        if declaration.kind == "tool":
            with innermost_tool(declaration.name):
                return run_body(body, args, kwargs)
        return run_body(body, args, kwargs)


@contextmanager
def _executing(claim: Claim) -> Iterator[None]:
    token = executing.set(
        CurrentStep(run_id=claim.run_id, step=claim.position, attempt=claim.attempt, agent=claim.agent, name=claim.name)
    )
    try:
        yield
    finally:
        executing.reset(token)


def _run_plainly(declaration: StepDeclaration[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The value of a ``def`` body. For one that nobody has worked for a worker blocks the run; here the step fails."""
    value = declaration.fn(*args, **kwargs)
    if not is_lazy(value):
        return value
    drop(value)
    raise DeclarationError(lazy_message(declaration.fn, type(value).__name__))


def run_body(body: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """The value of a ``def`` or ``async def`` body, also where a test's own event loop runs in this thread."""
    value = body(*args, **kwargs)
    if not inspect.iscoroutine(value):
        return value
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(value)
    return _in_a_thread(lambda: asyncio.run(value))


def _in_a_thread(work: Callable[[], Any]) -> Any:
    outcome: list[Any] = []
    failure: list[BaseException] = []

    def target() -> None:
        try:
            outcome.append(work())
        except BaseException as error:  # noqa: BLE001 # raised again in the caller's thread
            failure.append(error)

    thread = threading.Thread(target=contextvars.copy_context().run, args=(target,), name="paidonce-testing-body")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]
