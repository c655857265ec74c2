"""A worker that ends with the command that started it: ``python -m paidonce.cli.attached_worker ARGUMENTS...``.

Standard input is a pipe from that command. Its end of file says that the command has gone, even by SIGKILL, and
is turned into the SIGTERM that lets a worker hand back what it holds.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading


def main() -> None:
    """Run Celery's program in this process, with the arguments given."""
    threading.Thread(target=_end_with_starter, args=(os.getpid(),), daemon=True, name="paidonce-starter").start()
    sys.argv[0] = "celery"
    runpy.run_module("celery", run_name="__main__", alter_sys=True)


def _end_with_starter(pid: int) -> None:
    while os.read(0, 1024):
        pass
    os.kill(pid, signal.SIGTERM)


if __name__ == "__main__":
    main()
