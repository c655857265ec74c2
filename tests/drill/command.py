"""``paidonce drill`` run as a user runs it, in a folder of the test's own."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path


def drill(folder: Path, command: str, *, seconds: float) -> subprocess.CompletedProcess[str]:
    """Run one exercise with its options to its end, which must come within so many seconds."""
    return subprocess.run(
        [sys.executable, "-m", "paidonce.cli", "drill", *shlex.split(command)],
        cwd=folder,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=seconds,
    )
