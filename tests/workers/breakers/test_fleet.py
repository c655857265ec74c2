"""Many real processes at one circuit, some of which are killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from paidonce_workers.breakers import CircuitState
from tests.services.valkey import RedisServer
from tests.services.waiting import wait_until
from tests.workers.breakers.conftest import MakeBreakers
from tests.workers.breakers.prober import POLICY

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300), pytest.mark.usefixtures("patient")]

ROOT = Path(__file__).parents[3]
PROCESSES = 16
ROUNDS = 100
PROBE_SECONDS = 3.0


class Process:
    """One of the fleet, at the other end of a socket."""

    def __init__(self, path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            self._pipe = connection.makefile("rw")
        pid = self.ask("who")["pid"]
        assert isinstance(pid, int)
        self.pid = pid

    def tell(self, *order: object) -> None:
        """Send an order."""
        print(*order, file=self._pipe, flush=True)

    def answer(self) -> dict[str, object]:
        """Wait for the answer to the order before."""
        found: dict[str, object] = json.loads(self._pipe.readline())
        return found

    def ask(self, *order: object) -> dict[str, object]:
        """Send an order and wait for its answer."""
        self.tell(*order)
        return self.answer()

    def end(self) -> None:
        """By SIGKILL; again does nothing."""
        if not self._pipe.closed:
            os.kill(self.pid, signal.SIGKILL)
            self._pipe.close()


@contextmanager
def fleet(url: str, namespace: str, size: int, probe_seconds: float) -> Iterator[list[Process]]:
    with tempfile.TemporaryDirectory(prefix="paidonce-fleet-", dir="/tmp") as folder:
        path = Path(folder) / "socket"
        parent = subprocess.Popen(
            [sys.executable, "-m", "tests.workers.breakers.prober", str(path), url, namespace, str(probe_seconds)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        processes: list[Process] = []
        try:
            assert parent.stdout is not None and parent.stdout.readline() == "ready\n"
            processes += [Process(path) for _ in range(size)]
            yield processes
        finally:
            for process in processes:
                process.end()
            parent.kill()
            parent.wait()
            if parent.stdout is not None:
                parent.stdout.close()


def test_sixteen_processes_at_a_half_open_circuit_send_exactly_one_probe_a_hundred_times_over(
    circuit_server: RedisServer, namespace: str, make_breakers: MakeBreakers
) -> None:
    breakers = make_breakers(circuit_server.url())
    with fleet(circuit_server.url(), namespace, PROCESSES, 60.0) as processes:
        for number, process in enumerate(processes):
            assert process.ask("hold", "warm-up", f"w{number}")["is_shared"]
        moves: list[str] = []
        for turn in range(ROUNDS):
            circuit = f"c{turn}"
            breakers.force_open(circuit, 0.001)
            at = time.monotonic() + 0.02
            for number, process in enumerate(processes):
                process.tell("admit", circuit, f"{turn}-{number}", at)
            answers = [process.answer() for process in processes]
            assert all(answer["is_shared"] for answer in answers), turn
            verdicts = [answer["verdict"] for answer in answers]
            assert (verdicts.count("probe"), verdicts.count("refused")) == (1, PROCESSES - 1), turn
            effect = "success" if turn % 2 else "failure"
            prober = verdicts.index("probe")
            processes[prober].ask("report", f"{turn}-{prober}", effect)
        for number, process in enumerate(processes):
            told = process.ask("report", f"w{number}", "success")["moves"]
            assert isinstance(told, list)
            moves += told
    assert moves.count("open -> half-open") == ROUNDS
    assert moves.count("half-open -> closed") == ROUNDS // 2
    assert moves.count("half-open -> open") == ROUNDS // 2
    assert len(moves) == 2 * ROUNDS


def test_a_killed_prober_is_followed_by_the_next_probe_and_a_living_one_is_not(
    circuit_server: RedisServer, namespace: str, make_breakers: MakeBreakers
) -> None:
    breakers = make_breakers(circuit_server.url(), probe_seconds=PROBE_SECONDS)
    with fleet(circuit_server.url(), namespace, 3, PROBE_SECONDS) as (first, second, third):
        for process in (first, second, third):
            assert process.ask("hold", "warm-up", "w")["is_shared"]
        breakers.force_open("search", 0.001)
        wait_until(lambda: first.ask("hold", "search", "first")["verdict"] == "probe", "the first probe")

        until = time.monotonic() + 1.5 * PROBE_SECONDS  # it lives, and its heartbeat keeps its place
        while time.monotonic() < until:
            assert second.ask("hold", "search", "second")["verdict"] == "refused"

        first.end()
        wait_until(lambda: second.ask("hold", "search", "second")["verdict"] == "probe", "the next probe", 10)
        assert third.ask("hold", "search", "third")["verdict"] == "refused"
        assert second.ask("report", "second", "success")["moves"] == ["half-open -> closed"]
        assert third.ask("hold", "search", "third")["verdict"] == "admitted"
    assert {status.circuit: status.state for status in breakers.states()}["search"] is CircuitState.CLOSED


def test_any_number_of_killed_probers_does_not_stop_the_fleet_from_probing(
    circuit_server: RedisServer, namespace: str, make_breakers: MakeBreakers
) -> None:
    breakers = make_breakers(circuit_server.url(), probe_seconds=0.3)
    breakers.force_open("search", 0.001)
    with fleet(circuit_server.url(), namespace, 4, 0.3) as processes:
        for process in processes:
            wait_until(lambda process=process: process.ask("hold", "search", "p")["verdict"] == "probe", "a probe")  # type: ignore[misc]
            process.end()
    assert wait_until(lambda: breakers.admit("search", POLICY, token="last").is_probe, "the last probe", 5)
