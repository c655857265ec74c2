"""Starts a body's own process (``python -m`` this module), and stands between it and its parent.

Forks before anything is imported. The child runs the body (``isolation.isolated_body``); this process only waits, and
ends as the child did. A body that kills its parent process kills this one, a body that closes all its descriptors
leaves this one's open, and if the process that waits for the body dies, the kernel ends both.
"""

import ctypes
import os
import resource
import signal
import sys

PR_SET_PDEATHSIG = 1


def _die_with(parent: int) -> None:
    """Linux only; elsewhere the body detects the end of its standard input."""
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    except (AttributeError, OSError):
        return
    if os.getppid() != parent:  # it died before prctl took effect
        os._exit(1)


def _volunteer_for_the_oom_killer() -> None:
    """Out of memory, let the kernel kill the suspect and not the worker beside it."""
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("1000")
    except OSError:
        return


def main(parent: int, answers: int) -> None:
    """``answers`` is the descriptor of the pipe to the process ``parent``."""
    _die_with(parent)
    middle = os.getpid()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    body = os.fork()
    if body == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        _die_with(middle)
        _volunteer_for_the_oom_killer()
        # Imported only here: imports cost time and memory, and this process needs none of them.
        from paidonce_workers.isolation.isolated_body import run  # noqa: PLC0415

        run(answers, middle)
        return
    # Asked to end it: only its parent can make sure that nothing of it is left, not even a zombie.
    signal.signal(signal.SIGTERM, lambda *_: os.kill(body, signal.SIGKILL))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    _, status = os.waitpid(body, 0)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # one core file is enough
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(max(code, 0))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
