"""Runs one step's body in a separate process, so that a step that kills its process affects only itself.

        the waiting process -> ``python -m`` body_process -> the body's process

The claim, the calls and the result travel through pipes, pickled between processes of the same code. The two processes
form a session: a body that signals its process group reaches nothing else. They die with the process that waits.
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from paidonce.usage.call_recorder import CallRecorder
from paidonce_models.errors import PaidonceError
from paidonce_models.pricing import PriceRow
from paidonce_models.privacy.masking import current_masker
from paidonce_models.store.steps.claims import Claim
from paidonce_workers.bodies.blocked_attempts import AttemptBlocked, BlockedAttempt
from paidonce_workers.isolation import body_process
from paidonce_workers.isolation.frames import WORD_BYTES, FrameReader
from paidonce_workers.isolation.messages import MASKED_NAMES, ErrorInChild, Message, Task

POLL_SECONDS: Final = 0.2
END_SECONDS: Final = 5.0
"""Seconds that a child may take to end after its result; threads that the body left behind are killed with it."""
KILL_SECONDS: Final = 2.0
READ_BYTES: Final = 1 << 18


class ChildDied(PaidonceError):
    """The child process that ran a step alone ended without a result."""

    code = "child_died"


class ChildError(Exception):
    """The body failed in the child."""

    def __init__(self, raised: ErrorInChild) -> None:
        super().__init__(str(raised.error.get("message", "")))
        self.paidonce_error = raised.error
        self.paidonce_traceback = raised.traceback
        self.failure = raised.failure


def run_in_child(
    claim: Claim,
    modules: tuple[str, ...],
    provider_hosts: tuple[tuple[str, str], ...],
    price_rows: tuple[PriceRow, ...],
    recorder: CallRecorder,
) -> bytes:
    """The body's result as JSON. Raises ``ChildDied`` or the body's error; an interrupt kills the child."""
    task = Task(
        claim=replace(claim, arguments=bytes(claim.arguments)),
        modules=modules,
        provider_hosts=provider_hosts,
        price_rows=price_rows,
        word=os.urandom(WORD_BYTES),
    )
    answers, answers_of_child = os.pipe()
    try:
        try:
            child = _begin(answers_of_child)
        finally:
            os.close(answers_of_child)
        answer: bytes | ErrorInChild | BlockedAttempt | None = None
        try:
            _hand(child, pickle.dumps(task))
            answer = _answer(child, answers, task.word, recorder)
            _has_ended(child, END_SECONDS)
        finally:
            _end(child, and_all_it_began=answer is None)
    finally:
        os.close(answers)
    if answer is None:
        raise ChildDied(
            f"step {claim.position} ({claim.name}) of run {claim.run_id} killed the process it ran alone in "
            f"({describe_end(child.returncode)})"
        )
    if isinstance(answer, ErrorInChild):
        raise ChildError(answer)
    if isinstance(answer, BlockedAttempt):
        raise AttemptBlocked(answer)
    return answer


def describe_end(status: int) -> str:
    """How a process ended, for people."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"signal {-status}, {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"


def _begin(answers: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", body_process.__name__, str(os.getpid()), str(answers)],
        stdin=subprocess.PIPE,
        pass_fds=(answers,),
        start_new_session=True,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
            MASKED_NAMES: ",".join(current_masker().names),
        },
    )


def _hand(child: subprocess.Popen[bytes], task: bytes) -> None:
    if child.stdin is None:
        raise ChildDied("the child has no standard input")
    try:
        child.stdin.write(task)
        child.stdin.flush()
    except BrokenPipeError:  # it has ended; the code below finds out how
        return


def _answer(
    child: subprocess.Popen[bytes], answers: int, word: bytes, recorder: CallRecorder
) -> bytes | ErrorInChild | BlockedAttempt | None:
    """The body's end, ``None`` if the child ended without reporting it; its calls are recorded as they arrive."""
    frames = FrameReader(word)
    for data in _read(child, answers):
        for content in frames.feed(data):
            message: Message = pickle.loads(content)
            recorder.take_over(message.calls, message.awaited)
            if message.answer is not None:
                return message.answer
    return None


def _read(child: subprocess.Popen[bytes], answers: int) -> Iterator[bytes]:
    """What comes through the pipe until it is closed or the child has ended.

    Processes that the body left behind may keep the pipe open for ever.
    """
    ended = False
    while True:
        # In short waits, so that an interrupt of this thread can strike between two of them.
        readable, _, _ = select.select([answers], [], [], 0 if ended else POLL_SECONDS)
        if readable:
            data = os.read(answers, READ_BYTES)
            if not data:
                return
            yield data
        elif ended:
            return
        else:
            ended = _is_over(child)  # what it wrote before is read in the next round


def _is_over(child: subprocess.Popen[bytes]) -> bool:
    """Whether it has ended; does not reap it where the system can tell without."""
    if child.returncode is not None or not hasattr(os, "waitid"):
        return child.poll() is not None
    return os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None


def _has_ended(child: subprocess.Popen[bytes], seconds: float) -> bool:
    ends_at = time.monotonic() + seconds
    while not _is_over(child):
        if time.monotonic() > ends_at:
            return False
        time.sleep(0.01)
    return True


def _end(child: subprocess.Popen[bytes], *, and_all_it_began: bool) -> None:
    """Make sure that the child is gone, and with it whatever a dead body left behind in its session."""
    if not _is_over(child):
        child.terminate()  # it kills the body and reaps it
        _has_ended(child, KILL_SECONDS)
    if and_all_it_began:
        try:
            os.killpg(child.pid, signal.SIGKILL)  # not reaped yet, so its number cannot be another group's
        except (ProcessLookupError, PermissionError):  # nobody is left of it
            pass
    if child.poll() is None:
        child.kill()
        child.wait()
    if child.stdin is not None:
        try:
            child.stdin.close()
        except BrokenPipeError:
            pass
