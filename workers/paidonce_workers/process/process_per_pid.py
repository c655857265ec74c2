"""``ProcessPerPid``: gives each process its own ``WorkerProcess``, also a child that was forked from the worker."""

from __future__ import annotations

import os
import socket
import threading
import uuid
from collections.abc import Callable

from paidonce.broker.celery_app import PaidonceCelery
from paidonce.declarations.registry import Registry
from paidonce.settings import Settings
from paidonce_workers.process.worker_parts import WorkerParts
from paidonce_workers.process.worker_process import Role, WorkerProcess
from paidonce_workers.recovery.marked_slices import CarefulPeriod


class ProcessPerPid:
    """Makes one ``WorkerProcess`` for each process id, when that process first asks for it."""

    def __init__(
        self,
        *,
        app: PaidonceCelery,
        settings: Settings,
        registry: Registry,
        parts: WorkerParts,
        role: Role = Role.WORKER,
        host_program: str | None = None,
    ) -> None:
        """``role`` is that of this process; processes forked from it are children of its pool.

        ``host_program`` is the module that an isolation host runs; without it, suspects run in children.
        """
        self._host_program = host_program
        self._role = role
        self._pid = os.getpid()
        self._app = app
        self._settings = settings
        self._registry = registry
        self._parts = parts
        self._lock = threading.Lock()
        self._made: dict[int, WorkerProcess] = {}
        self.registered_as = ""
        self._period = CarefulPeriod()

    def current(self) -> WorkerProcess:
        """The ``WorkerProcess`` of the calling process, with its heartbeat running."""
        pid = os.getpid()
        process = self._made.get(pid)
        if process is None:
            with self._lock:
                process = self._made.get(pid)
                if process is None:
                    process = self._make(pid)
        return process

    def drain_isolated(self, seconds: float) -> Callable[[], object]:
        """Let this process's isolation hosts end within ``seconds``; returns a function that waits for them."""
        process = self._made.get(os.getpid())
        if process is None or process.isolation is None:
            return lambda: None
        process.isolation.drain(seconds)
        return process.isolation.wait

    def _make(self, pid: int) -> WorkerProcess:
        worker = f"{socket.gethostname()}:{pid}:{uuid.uuid4().hex[:6]}"
        process = WorkerProcess(
            app=self._app,
            settings=self._settings,
            registry=self._registry,
            parts=self._parts,
            worker=worker,
            period=self._period,
            role=self._role if pid == self._pid else Role.POOL_CHILD,
            host_program=self._host_program,
        )
        if not self.registered_as:
            self.registered_as = worker
        # A forked child keeps its parent's wiring unused: dropping it would close connections that they share.
        self._made[pid] = process
        process.start_capture()
        process.start_prices()
        process.start_breakers()
        process.start_witness(self.registered_as)
        process.start_heartbeat(self.registered_as)
        return process
