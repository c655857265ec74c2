"""Frames from an isolated body to the process that waits for it, over a pipe that the body may write to or close.

The body is user code in the same process: it may close every descriptor it finds, open a file under the pipe's number,
or write to the pipe by mistake. So a frame starts with a secret word and a digest of its content, the reader skips
everything that is not a frame, and before it writes, the sender checks whether the descriptor still is the pipe.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator
from typing import Final

WORD_BYTES: Final = 16
_HEAD: Final = struct.Struct(">Q32s")


class FrameReader:
    """Finds the frames in what was read so far."""

    def __init__(self, word: bytes) -> None:
        self._word = word
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Add what was read; yields the content of each complete frame."""
        self._buffer += data
        while (content := self._next()) is not None:
            yield content

    def _next(self) -> bytes | None:
        while True:
            begins = self._buffer.find(self._word)
            if begins < 0:
                # Junk, except for what may be the first bytes of the word.
                del self._buffer[: max(0, len(self._buffer) - len(self._word) + 1)]
                return None
            del self._buffer[:begins]
            after_head = len(self._word) + _HEAD.size
            if len(self._buffer) < after_head:
                return None
            size, digest = _HEAD.unpack_from(self._buffer, len(self._word))
            if len(self._buffer) < after_head + size:
                return None
            content = bytes(self._buffer[after_head : after_head + size])
            if hashlib.sha256(content).digest() == digest:
                del self._buffer[: after_head + size]
                return content
            del self._buffer[: len(self._word)]  # something was written in between: the next word may still be intact


class FrameWriter:
    """Writes frames to a pipe, and reopens it if user code has closed it."""

    def __init__(self, word: bytes, descriptor: int, keeper_pid: int) -> None:
        """``keeper_pid`` is a process that keeps the same pipe open under the same number."""
        self._word = word
        self._descriptor = descriptor
        self._again = f"/proc/{keeper_pid}/fd/{descriptor}"
        self._pipe = _identity(descriptor)

    def write(self, content: bytes) -> None:
        """Send one frame. Raises ``OSError`` if the pipe is closed for good or has no reader."""
        if _identity(self._descriptor) != self._pipe:
            # A file of the body may have this number now: leave it alone.
            self._descriptor = os.open(self._again, os.O_WRONLY | os.O_CLOEXEC)
            if _identity(self._descriptor) != self._pipe:
                raise OSError("the pipe for the answer was closed and cannot be found again")
        head = _HEAD.pack(len(content), hashlib.sha256(content).digest())
        rest = memoryview(self._word + head + content)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]


def _identity(descriptor: int) -> tuple[int, int] | None:
    try:
        found = os.fstat(descriptor)
    except OSError:
        return None
    return found.st_dev, found.st_ino
