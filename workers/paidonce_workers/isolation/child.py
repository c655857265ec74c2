"""Running one step's body alone in a child process, so that a step that kills its process condemns only itself.

The child is ``python -m paidonce_workers.isolated``; the claim, the calls and the answer travel
through pipes, pickled between two processes of the same code. It dies with its parent.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Final

from paidonce.policies import Failure
from paidonce.usage import CallRecorder
from paidonce_models.errors import PaidonceError
from paidonce_models.pricing import PriceRow
from paidonce_models.store.claims import Claim
from paidonce_models.usage import CallRecord

POLL_SECONDS: Final = 0.2
END_SECONDS: Final = 5.0
"""What a child may take to end after its answer; threads that the body left behind go no further."""
TELL_SECONDS: Final = 1.0
"""What a step spends is known to the process that renews its lease, and does not die with the child."""


class ChildDied(PaidonceError):
    """The child process that ran a step alone ended without an answer."""

    code = "child_died"


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
    answer: bytes | ErrorInChild | None = None


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
    answers, answers_of_child = Pipe(duplex=False)
    with answers:
        with answers_of_child:
            child = subprocess.Popen(
                [sys.executable, "-m", "paidonce_workers.isolated", str(answers_of_child.fileno())],
                stdin=subprocess.PIPE,
                pass_fds=(answers_of_child.fileno(),),
                env={**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)},
            )
        try:
            if child.stdin is None:
                raise ChildDied("the child has no standard input")
            try:
                task = (replace(claim, arguments=bytes(claim.arguments)), modules, provider_hosts, price_rows)
                child.stdin.write(pickle.dumps(task))
                child.stdin.flush()
            except BrokenPipeError:
                pass
            answer = _answer(answers, recorder)
            try:
                child.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                pass
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
            if child.stdin is not None:
                try:
                    child.stdin.close()
                except BrokenPipeError:
                    pass
    if answer is None:
        status = child.returncode
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        raise ChildDied(
            f"step {claim.position} ({claim.name}) of run {claim.run_id} killed the process it ran alone in ({how})"
        )
    if isinstance(answer, ErrorInChild):
        raise ChildError(answer)
    return answer


def _answer(answers: Connection, recorder: CallRecorder) -> bytes | ErrorInChild | None:
    """What the body came to, ``None`` if the child ended without saying; its calls are taken over as they come."""
    while True:
        # In small waits, so that an interrupt of this thread strikes between two of them.
        if not answers.poll(POLL_SECONDS):
            continue
        try:
            message: Message = answers.recv()
        except (EOFError, OSError):  # it ended, perhaps in the middle of a message
            return None
        recorder.take_over(message.calls)
        if message.answer is not None:
            return message.answer


class Teller:
    """In the child: tells the parent what the body came to, and every second the calls that it has finished."""

    def __init__(self, answers: Connection, recorder: CallRecorder) -> None:
        self._answers = answers
        self._recorder = recorder
        self._lock = threading.Lock()
        threading.Thread(target=self._tell_calls, name="paidonce-calls", daemon=True).start()

    def tell(self, answer: bytes | ErrorInChild) -> None:
        """The end of the body, with the calls that were not told of before."""
        with self._lock:
            self._answers.send(Message(self._recorder.drain(), answer))

    def _tell_calls(self) -> None:
        while True:
            time.sleep(TELL_SECONDS)
            with self._lock:
                calls = self._recorder.drain()
                if calls:
                    self._answers.send(Message(calls))
