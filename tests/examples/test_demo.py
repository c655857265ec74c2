"""The demo as a user starts it: a worker dies, the run goes on, the bill is right, nothing is left behind."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # publishes no types
import pytest

from paidonce.embedded import embedded_status
from tests.services.waiting import wait_until

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(240)]


def start_demo(folder: Path, latency: str = "1") -> subprocess.Popen[str]:
    """The demo in a folder of its own, with a quicker model."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    environment.pop("OPENAI_BASE_URL", None)
    return subprocess.Popen(
        [sys.executable, "-m", "examples.demo", "--latency", latency],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def demo_home(folder: Path) -> Path:
    """The home that the demo made for itself."""
    (home,) = (folder / ".paidonce" / "demo").iterdir()
    return home


def processes_of(home: Path) -> list[psutil.Process]:
    """Every process that was told of this home, whoever started it."""
    found = []
    for process in psutil.process_iter():
        try:
            told = process.environ().get("PAIDONCE_HOME") == str(home) or any(str(home) in a for a in process.cmdline())
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        if told:
            found.append(process)
    return found


def test_demo_survives_the_kill_and_pays_for_no_finished_step_twice(tmp_path: Path) -> None:
    demo = start_demo(tmp_path, latency="2")  # the kill must come within it
    output, _ = demo.communicate()
    assert demo.returncode == 0, output
    assert "SIGKILL to worker 1" in output
    assert "in the middle of: plan 4" in output
    assert "7 paid steps were not repeated" in output
    assert re.search(r"steps paid +│ 26 \(14 model calls, 12 tool calls\)", output)
    assert re.search(r"lost attempts +│ 1 ", output)
    assert re.search(r"the model server counted +│ 15 requests, 1 of them without a reader", output)
    assert re.search(r"finished steps requested again +│ 0 ", output)
    assert "No finished step was paid twice." in output
    home = demo_home(tmp_path)
    assert processes_of(home) == []
    assert not embedded_status(home).running


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 128 + signal.SIGTERM)])
def test_demo_that_is_interrupted_leaves_no_process_behind(tmp_path: Path, number: signal.Signals, code: int) -> None:
    demo = start_demo(tmp_path)
    assert demo.stdout is not None
    seen = ""
    while "calling the model" not in seen:
        line = demo.stdout.readline()
        assert line, seen
        seen += line
    home = demo_home(tmp_path)
    assert processes_of(home)
    demo.send_signal(number)
    output, _ = demo.communicate()
    assert demo.returncode == code, seen + output
    wait_until(lambda: not processes_of(home), "every process of the demo to end")
    assert not embedded_status(home).running
