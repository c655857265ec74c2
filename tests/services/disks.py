"""A small disk of a test's own, to be filled up: a tmpfs, for which the test must be allowed to mount."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

BLOCK = 64 * 1024


class SmallDisk:
    """A mounted tmpfs; whatever is in ``folder`` shares its few megabytes."""

    def __init__(self, megabytes: int) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="paidonce-disk-"))
        options = f"size={megabytes}m,mode=0777"
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", self.folder], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            self.folder.rmdir()
            pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")

    def fill(self) -> None:
        """Leave not a byte."""
        with (self.folder / "filler").open("ab", buffering=0) as filler:
            for size in (BLOCK, 4096, 1):
                try:
                    while True:
                        filler.write(b"\0" * size)
                except OSError:
                    continue

    def free(self) -> None:
        """Give back what was filled."""
        (self.folder / "filler").unlink(missing_ok=True)

    def remove(self) -> None:
        """Unmount it, whoever still has files open in it."""
        subprocess.run(["umount", "--lazy", self.folder], check=True, capture_output=True)
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture
def small_disk() -> Iterator[SmallDisk]:
    """32 MB. Skipped where tests do not run as root."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    disk = SmallDisk(32)
    yield disk
    disk.remove()
