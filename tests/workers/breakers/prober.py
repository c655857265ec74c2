"""A process of a fleet: reads orders from its connection, a line each, and answers each with a line of JSON.

One program is the parent of a fleet: it forks a process for each connection to
its socket, before there are any breakers, so that a fleet costs one start of
Python.

``admit CIRCUIT TOKEN AT`` asks at that instant of the machine's monotonic clock,
so that many processes ask at once; ``hold CIRCUIT TOKEN`` asks and, as a probe,
renews its place until it is told ``report TOKEN EFFECT``, or dies.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time

from paidonce.policies import BreakerPolicy
from paidonce_workers.breakers import (
    SUCCESS,
    Admission,
    CircuitBreakers,
    CircuitChange,
    Failure,
    circuit_decisions,
    failure,
)

POLICY = BreakerPolicy(consecutive_failures=1, open_base_seconds=0.05, open_cap_seconds=0.05, open_jitter=0.0)


class Prober:
    """One process's breakers and what it was admitted to."""

    def __init__(self, url: str, namespace: str, probe_seconds: float) -> None:
        self.breakers = CircuitBreakers(
            url,
            namespace=namespace,
            classify=lambda error: Failure(kinds=frozenset()),
            probe_seconds=probe_seconds,
        )
        self.changes: list[CircuitChange] = []
        self.breakers.subscribe(self.changes.append)
        self.admissions: dict[str, Admission] = {}
        self.beat_seconds = probe_seconds / 4

    def admit(self, circuit: str, token: str, at: float) -> dict[str, object]:
        while time.monotonic() < at - 0.002:
            time.sleep(0.001)
        while time.monotonic() < at:
            pass
        admission = self.admissions[token] = self.breakers.admit(circuit, POLICY, token=token)
        return {"verdict": admission.verdict.value, "is_shared": admission.is_shared}

    def report(self, token: str, effect: str) -> dict[str, object]:
        self.breakers.report(self.admissions.pop(token), SUCCESS if effect == "success" else failure({"down"}))
        self.breakers._announcer.wait_until_told(10)
        return {"moves": [f"{change.source} -> {change.target}" for change in self.changes]}

    def beat(self) -> None:
        while True:
            time.sleep(self.beat_seconds)
            self.breakers.renew(list(self.admissions))

    def obey(self, order: list[str]) -> dict[str, object]:
        if order[0] == "admit":
            return self.admit(order[1], order[2], float(order[3]))
        if order[0] == "hold":
            return self.admit(order[1], order[2], 0.0)
        if order[0] == "report":
            return self.report(order[1], order[2])
        raise SystemExit(f"no such order: {order}")


def serve(connection: socket.socket, url: str, namespace: str, probe_seconds: str) -> None:
    """One process of the fleet, until its connection is closed."""
    prober = Prober(url, namespace, float(probe_seconds))
    threading.Thread(target=prober.beat, daemon=True).start()
    with connection.makefile("rw") as pipe:
        for line in pipe:
            order = line.split()
            answer = {"pid": os.getpid()} if order == ["who"] else prober.obey(order)
            print(json.dumps(answer), file=pipe, flush=True)


def main(path: str, url: str, namespace: str, probe_seconds: str) -> None:
    """The parent of the fleet."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    print("ready", flush=True)
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            try:
                serve(connection, url, namespace, probe_seconds)
            finally:
                os._exit(0)
        connection.close()


if __name__ == "__main__":
    circuit_decisions.LIMIT_SECONDS = 20.0  # type: ignore[misc]  # a machine that runs tests may be busy, and nothing is away
    main(*sys.argv[1:])
