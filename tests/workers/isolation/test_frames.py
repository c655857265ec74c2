"""The answer of an isolated body is found among junk, and its pipe is found again where the body has closed it."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from paidonce_workers.isolation.frames import WORD_BYTES, FrameReader, FrameWriter

WORD = bytes(range(WORD_BYTES))


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe whose other end stays open under a number of its own, as the process in between keeps it."""
    reading, writing = os.pipe()
    yield reading, writing
    for descriptor in (reading, writing):
        try:
            os.close(descriptor)
        except OSError:
            pass


def read(reading: int) -> list[bytes]:
    os.set_blocking(reading, False)
    return list(FrameReader(WORD).feed(os.read(reading, 1 << 16)))


def test_frames_are_found_whatever_the_size_of_the_pieces(pipe: tuple[int, int]) -> None:
    writer = FrameWriter(WORD, pipe[1], os.getpid())
    contents = [b"", b"one", os.urandom(5000), WORD, WORD * 3]
    for content in contents:
        writer.write(content)
    data = os.read(pipe[0], 1 << 16)
    chance = random.Random(1)
    for _ in range(50):
        reader = FrameReader(WORD)
        found, begins = [], 0
        while begins < len(data):
            ends = begins + chance.randint(1, 400)
            found += list(reader.feed(data[begins:ends]))
            begins = ends
        assert found == contents


def test_junk_before_between_and_inside_of_frames_is_passed_over(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    writer = FrameWriter(WORD, writing, os.getpid())
    writer.write(b"broken into")
    whole = os.read(reading, 1 << 16)
    os.write(writing, b"junk" + WORD[:7])
    writer.write(b"first")
    os.write(writing, b"\x00" * 100 + whole[:-4] + b"junk" + whole[-4:])
    writer.write(b"second")
    assert read(reading) == [b"first", b"second"]


def test_a_word_with_no_frame_behind_it_hides_nothing_but_itself() -> None:
    assert list(FrameReader(WORD).feed(WORD + b"\xff" * 40)) == []


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the pipe is found again through /proc")
def test_a_pipe_that_was_closed_is_found_again_and_a_file_in_its_place_left_alone(
    pipe: tuple[int, int], tmp_path: Path
) -> None:
    reading, keeper = pipe
    number = os.dup(keeper)
    writer = FrameWriter(WORD, number, os.getpid())
    # As if another process kept it: the writer looks for it under the number of the one that stays open.
    writer._again = f"/proc/{os.getpid()}/fd/{keeper}"
    os.close(number)
    file = os.open(tmp_path / "file", os.O_CREAT | os.O_RDWR)
    try:
        assert file == number, "the lowest free number"
        writer.write(b"answer")
        assert read(reading) == [b"answer"]
        assert (tmp_path / "file").read_bytes() == b""
    finally:
        os.close(file)


def test_a_pipe_that_cannot_be_found_again_is_an_error_and_no_writing_elsewhere(pipe: tuple[int, int]) -> None:
    reading, keeper = pipe
    number = os.dup(keeper)
    writer = FrameWriter(WORD, number, os.getpid())
    os.close(number)
    with pytest.raises(OSError):
        writer.write(b"answer")
    os.close(keeper)
    assert os.read(reading, 10) == b""
