"""Running one step's body in a process of its own, so that a step that kills its process condemns only itself.

    whoever waits -> ``python -m paidonce_workers.isolated`` -> the body's process

The claim, the calls and the answer travel through pipes, pickled between processes of the same code. They form a
session of their own: a body that signals its process group reaches nobody else. They die with whoever waits.
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
from dataclasses import dataclass, replace
from typing import Final

from paidonce.policies import Failure
from paidonce.usage import CallRecorder
from paidonce_models.errors import PaidonceError
from paidonce_models.masking import current_masker
from paidonce_models.pricing import PriceRow
from paidonce_models.store.claims import Claim
from paidonce_models.usage import CallRecord
from paidonce_workers.blocked_attempts import AttemptBlocked, BlockedAttempt
from paidonce_workers.isolation.frames import WORD_BYTES, FrameReader

POLL_SECONDS: Final = 0.2
END_SECONDS: Final = 5.0
"""What a child may take to end after its answer; threads that the body left behind go no further."""
KILL_SECONDS: Final = 2.0
MASKED_NAMES: Final = "PAIDONCE_MASKED_NAMES"
TELL_SECONDS: Final = 1.0
"""What a step spends is known to the process that renews its lease, and does not die with the child."""
READ_BYTES: Final = 1 << 18


class ChildDied(PaidonceError):
    """The child process that ran a step alone ended without an answer."""

    code = "child_died"


@dataclass(frozen=True, kw_only=True)
class Task:
    """What the child is told. ``word`` marks what it answers."""

    claim: Claim
    modules: tuple[str, ...]
    provider_hosts: tuple[tuple[str, str], ...]
    price_rows: tuple[PriceRow, ...]
    word: bytes


@dataclass(frozen=True)
class ErrorInChild:
    """What the body raised, with its traceback as text, and what kind of failure it is to policies.

    The exception and its classes do not leave the child.
    """

    error: dict[str, object]
    traceback: str
    failure: Failure


@dataclass(frozen=True)
class Message:
    """What the child tells: calls that have finished since the last one, and at the end what the body came to."""

    calls: list[CallRecord]
    answer: bytes | ErrorInChild | BlockedAttempt | None = None


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
    """The JSON of what the body returned. Raises ``ChildDied`` or the body's error; an interrupt kills the child."""
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
        [sys.executable, "-m", "paidonce_workers.isolated", str(os.getpid()), str(answers)],
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
    except BrokenPipeError:  # it has ended; how, is seen below
        return


def _answer(
    child: subprocess.Popen[bytes], answers: int, word: bytes, recorder: CallRecorder
) -> bytes | ErrorInChild | BlockedAttempt | None:
    """What the body came to, ``None`` if the child ended without saying; its calls are taken over as they come."""
    frames = FrameReader(word)
    for data in _read(child, answers):
        for content in frames.feed(data):
            message: Message = pickle.loads(content)
            recorder.take_over(message.calls)
            if message.answer is not None:
                return message.answer
    return None


def _read(child: subprocess.Popen[bytes], answers: int) -> Iterator[bytes]:
    """What comes through the pipe until it is closed or the child has ended.

    Processes that the body has left behind may keep the pipe open for ever.
    """
    ended = False
    while True:
        # In small waits, so that an interrupt of this thread strikes between two of them.
        readable, _, _ = select.select([answers], [], [], 0 if ended else POLL_SECONDS)
        if readable:
            data = os.read(answers, READ_BYTES)
            if not data:
                return
            yield data
        elif ended:
            return
        else:
            ended = _is_over(child)  # what it has written before is read in the next round


def _is_over(child: subprocess.Popen[bytes]) -> bool:
    """Whether it has ended; it is not reaped by the question, where the system can answer without."""
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
    """Make sure that the child is gone; what a body that died has left behind in its session goes with it."""
    if not _is_over(child):
        child.terminate()  # it kills the body and reaps it
        _has_ended(child, KILL_SECONDS)
    if and_all_it_began:
        try:
            os.killpg(child.pid, signal.SIGKILL)  # not reaped yet: its number is no other group's
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
