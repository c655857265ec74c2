"""Steps that kill the process they run in, or try to confuse whoever waits for them."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from paidonce import agent, step

MEBIBYTE = 1 << 20
LEFT = "left-behind-by-a-deadly-step"


@step(name="deadly.dies", max_lost=9)
def dies(how: str) -> str:
    """In the way that is asked for."""
    match how:
        case "segfault":
            ctypes.string_at(0)
        case "exit 0":
            os._exit(0)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "terminate":
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        case "exit in a thread":
            threading.Thread(target=lambda: os._exit(4)).start()
            time.sleep(60)
        case "kill the parent":
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(60)
        case "kill the group":
            os.killpg(0, signal.SIGKILL)
        case "die and leave a child":
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", LEFT], close_fds=False)
            os._exit(5)
    return "alive"


@step(name="deadly.lives")
def lives(how: str) -> str:
    """Does what looks deadly and is not."""
    match how:
        case "closes everything":
            sys.stdin = sys.stdout = sys.stderr = None  # type: ignore[assignment]
            os.closerange(0, 4096)
            for _ in range(64):
                os.open(os.devnull, os.O_RDWR)
        case "writes junk everywhere":
            threading.Thread(target=sys.exit).start()
            for descriptor in range(3, 64):
                try:
                    os.write(descriptor, b"junk" * 100)
                except OSError:
                    continue
        case "runs out of memory":
            used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + 200 * MEBIBYTE,) * 2)
            bytearray(1000 * MEBIBYTE)
    return "alive"


@agent(name="deadly-steps")
async def deadly(how: str) -> str:
    """Awaits the first."""
    return await dies(how)


@agent(name="harmless")
async def harmless(how: str) -> str:
    """Awaits the second."""
    return await lives(how)


@step(name="deadly.waits")
def waits(folder: str) -> str:
    """Says that it has begun, and ends when it may."""
    Path(folder, "began").touch()
    while not Path(folder, "go").exists():
        time.sleep(0.02)
    return "alive"


@agent(name="patient")
async def patient(folder: str) -> str:
    """Awaits it."""
    return await waits(folder)
