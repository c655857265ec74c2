"""Running one step's body alone in a child process, so that a step that kills its process condemns only itself.

The child is ``python -m paidonce_workers.isolated``; claim and answer travel
through pipes, pickled between two processes of the same code. It dies with its parent.
"""

from __future__ import annotations

import os
import pickle
import select
import subprocess
import sys
from dataclasses import replace
from typing import Any

from paidonce.policies import Failure
from paidonce.usage import CallRecorder
from paidonce_models.errors import PaidonceError
from paidonce_models.pricing import PriceRow
from paidonce_models.store.claims import Claim

POLL_SECONDS = 0.2


class ChildDied(PaidonceError):
    """The child process that ran a step alone ended without an answer."""

    code = "child_died"


class ChildError(Exception):
    """What the body raised in the child, with its traceback as text, and what kind of failure it is."""

    def __init__(self, error: dict[str, object], traceback: str, failure: Failure) -> None:
        super().__init__(str(error.get("message", "")))
        self.paidonce_error = error
        self.paidonce_traceback = traceback
        self.failure = failure


def run_in_child(
    claim: Claim,
    modules: tuple[str, ...],
    provider_hosts: tuple[tuple[str, str], ...],
    price_rows: tuple[PriceRow, ...],
    recorder: CallRecorder,
) -> bytes:
    """The JSON of what the body returned. Raises ``ChildDied`` or the body's error; an interrupt kills the child."""
    answer_read, answer_write = os.pipe()
    child = subprocess.Popen(
        [sys.executable, "-m", "paidonce_workers.isolated", str(answer_write)],
        stdin=subprocess.PIPE,
        pass_fds=(answer_write,),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)},
    )
    os.close(answer_write)
    try:
        if child.stdin is None:
            raise ChildDied("the child has no standard input")
        try:
            task = (replace(claim, arguments=bytes(claim.arguments)), modules, provider_hosts, price_rows)
            child.stdin.write(pickle.dumps(task))
            child.stdin.flush()
        except BrokenPipeError:
            pass
        answer = _read_all(answer_read)
        status = child.wait()
    finally:
        os.close(answer_read)
        if child.poll() is None:
            child.kill()
            child.wait()
        if child.stdin is not None:
            try:
                child.stdin.close()
            except BrokenPipeError:
                pass
    if not answer:
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        raise ChildDied(
            f"step {claim.position} ({claim.name}) of run {claim.run_id} killed the process it ran alone in ({how})"
        )
    kind, value, calls = pickle.loads(answer)
    recorder.take_over(calls)
    if kind == "error":
        raise ChildError(*value)
    result: bytes = value
    return result


def _read_all(descriptor: int) -> bytes:
    parts: list[bytes] = []
    while True:
        # In small waits, so that an interrupt of this thread strikes between two of them.
        readable, _, _ = select.select([descriptor], [], [], POLL_SECONDS)
        if not readable:
            continue
        part = os.read(descriptor, 1 << 16)
        if not part:
            return b"".join(parts)
        parts.append(part)


def answer_of(claim: Claim, run: Any, recorder: CallRecorder, describe: Any) -> bytes:
    """In the child: run the body and pickle what it came to."""
    try:
        result = run()
    except BaseException as error:  # noqa: BLE001 - whatever the body raises is its answer
        return pickle.dumps(("error", describe(error), recorder.drain()))
    return pickle.dumps(("result", result, recorder.drain()))
