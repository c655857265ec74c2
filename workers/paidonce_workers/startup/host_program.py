"""``python -m paidonce_workers.startup.host_program``: a worker's isolation host, wired and run.

Holds the steps of the worker's modules and none of its agents: other processes advance runs.
"""

from __future__ import annotations

import logging
import os
import pickle
import select
import signal
import sys
import threading
from typing import Final

from paidonce.broker.celery_app import build_celery_app
from paidonce.configuration.module_loading import load_modules
from paidonce.declarations.registry import Registry, default_registry
from paidonce_models.errors import PaidonceError
from paidonce_models.privacy.masking import mask, mask_names
from paidonce_models.privacy.safe_logs import keep_reports_quiet, make_safe
from paidonce_models.privacy.visible_text import visible
from paidonce_workers.isolation_hosts.host_process import LENGTH_BYTES, READY
from paidonce_workers.isolation_hosts.hosting import Hosting
from paidonce_workers.isolation_hosts.orders import Beginning, Order, read_order
from paidonce_workers.pools.draining import end_process
from paidonce_workers.process.process_per_pid import ProcessPerPid
from paidonce_workers.process.worker_parts import WorkerParts
from paidonce_workers.process.worker_process import Role

log = logging.getLogger(__name__)

LOOK_UP_SECONDS: Final = 0.5
IDLE_SECONDS: Final = 60.0
"""A host holds an interpreter with the user's modules in memory; the next suspect may have to wait for another."""


class Program:
    """Executes orders until the worker sends no more or has died."""

    def __init__(self, beginning: Beginning, *, worker_pid: int, ready: int) -> None:
        settings = beginning.settings
        registry = Registry()
        for declaration in default_registry.steps:
            registry.add_step(declaration)
        self._parts = WorkerParts(drain_seconds=settings.drain_seconds)
        processes = ProcessPerPid(
            app=build_celery_app(settings),
            settings=settings,
            registry=registry,
            parts=self._parts,
            role=Role.ISOLATION_HOST,
        )
        self._process = processes.current()
        self._worker_pid = worker_pid
        self._ready = ready
        self._asked_to_stop = threading.Event()
        self._drain_seconds = settings.drain_seconds
        self._draining: threading.Thread | None = None
        self._hosting = Hosting(execute=self._execute, bodies=self._parts.bodies, at_once=beginning.at_once)

    def stop_soon(self, *_: object) -> None:
        """SIGTERM, which reaches every process when a whole process group is stopped."""
        self._asked_to_stop.set()

    def serve(self) -> None:
        """Run until there is nothing left to do, or no time."""
        os.write(self._ready, READY)
        unread = b""
        worker_is_there = True
        while True:
            if self._draining is not None and not self._draining.is_alive():
                break
            if self._asked_to_stop.is_set():
                self._drain(self._drain_seconds)
            idle = self._hosting.idle_seconds
            if not worker_is_there:
                # It continues with the orders it has; no other process would.
                if idle > 0:
                    break
                self._asked_to_stop.wait(LOOK_UP_SECONDS)
                continue
            if idle > IDLE_SECONDS:
                break
            if not select.select([0], [], [], LOOK_UP_SECONDS)[0]:
                # A process that the worker forked may hold the other end, and would hide the worker's death there.
                worker_is_there = os.getppid() == self._worker_pid
                continue
            data = os.read(0, 65536)
            worker_is_there = bool(data)
            *lines, unread = (unread + data).split(b"\n")
            for line in lines:
                self._obey(line)
        self._process.stop()

    def _obey(self, line: bytes) -> None:
        said = read_order(line)
        if isinstance(said, Order):
            self._hosting.take(said)
        else:
            self._drain(said)

    def _drain(self, seconds: float) -> None:
        times = self._parts
        interrupt_seconds = times.interrupt_seconds + times.hand_back_seconds
        if self._draining is not None:
            if seconds == 0:
                self._hosting.drain(0, interrupt_seconds=interrupt_seconds)
            return
        self._draining = threading.Thread(
            target=self._hosting.drain,
            args=(seconds,),
            kwargs={"interrupt_seconds": interrupt_seconds},
            name="paidonce-host-drain",
            daemon=True,
        )
        self._draining.start()

    def _execute(self, order: Order) -> None:
        if self._process.registry.step(order.name) is None:
            log.error(
                "step %d (%s) of run %s cannot be isolated: the modules %s do not hold it; name the module that "
                "declares it in PAIDONCE_AGENTS",
                order.position,
                order.name,
                order.run_id,
                ", ".join(self._process.settings.agents),
                extra={"event": "isolated_step_unknown", "run_id": order.run_id, "step": order.position},
            )
            return
        self._process.executor.execute(order.run_id, order.position, order.name, order.agent)


def main(worker_pid: int, ready: int) -> None:
    """``ready`` is the descriptor of a pipe to the worker: signals that orders are read, and shows the end."""
    # Ctrl-C on a terminal is the worker's to handle; it then sends orders.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    beginning: Beginning = pickle.loads(_read(int.from_bytes(_read(LENGTH_BYTES), "big")))
    logging.basicConfig(
        level=beginning.log_level,
        stream=sys.stderr,
        format="[%(asctime)s: %(levelname)s/isolation-host] %(message)s",
    )
    keep_reports_quiet()
    make_safe(logging.getLogger().handlers)
    mask_names(beginning.settings.masked_names)
    try:
        load_modules(beginning.settings.agents)
        program = Program(beginning, worker_pid=worker_pid, ready=ready)
    except PaidonceError as error:
        print(visible(mask(f"paidonce: {error.message}")), file=sys.stderr)
        end_process(error.exit_code)
        return
    signal.signal(signal.SIGTERM, program.stop_soon)
    program.serve()
    end_process(0)


def _read(size: int) -> bytes:
    """So many bytes of standard input, without reading ahead."""
    read = b""
    while len(read) < size:
        more = os.read(0, size - len(read))
        if not more:
            end_process(0)  # the worker is gone
        read += more
    return read


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
