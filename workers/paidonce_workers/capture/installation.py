"""Installs the taps, once per process, and removes them.

Done where a worker process is wired, in the child that runs a step alone, and by
``paidonce.testing`` around a body. A process that only submits runs never gets
here. Wrapped are ``Client`` and ``AsyncClient`` of ``httpx`` and ``httpx2`` and
``aiohttp``'s session, when they are imported, and ``Thread.start`` and ``ThreadPoolExecutor.submit``.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from types import ModuleType
from typing import ClassVar, Final

from paidonce.declarations.current_step import executing
from paidonce_models.forks import in_child
from paidonce_workers.capture.aiohttp_tap import AIOHTTP_METHOD, AiohttpTap
from paidonce_workers.capture.capture_errors import Faults
from paidonce_workers.capture.http_tap import METHOD, HttpTap
from paidonce_workers.capture.import_watch import ImportWatch
from paidonce_workers.capture.provider_endpoints import HostTable
from paidonce_workers.capture.threads import ThreadTap
from paidonce_workers.capture.wrapping import Layer, Tap, put

LIBRARIES: Final = ("httpx", "httpx2", "aiohttp")
_lock: Final = threading.RLock()


class Installation:
    """The taps of this process. ``install`` creates it or joins the existing one."""

    present: ClassVar[Installation | None] = None
    """One per process, like what it patches: the taps must not be installed twice."""

    def __init__(self, provider_hosts: Iterable[tuple[str, str]]) -> None:
        self._faults = Faults()
        self._http = HttpTap(HostTable(provider_hosts), self._faults)
        self._aiohttp = AiohttpTap(self._http, self._faults)
        self._threads = ThreadTap(self._faults)
        self._watch = ImportWatch(LIBRARIES, self._tap_library)
        self._layers: list[Layer] = []
        self._users = 1
        in_child(self, Installation._pass_through)

    def uninstall(self) -> None:
        """Leave; the last one removes the taps. A tap that others have wrapped since stays, switched off."""
        with _lock:
            self._users -= 1
            if self._users:
                return
            Installation.present = None
            self._watch.end()
            self._http.is_on = False
            for layer in reversed(self._layers):
                layer.take_away()
            self._layers.clear()

    def _pass_through(self) -> None:
        """In a forked child: record nothing. A step's child logs what it pays for; a worker's child installs afresh."""
        _lock._at_fork_reinit()  # type: ignore[attr-defined]  # as the stdlib does
        Installation.present = None
        self._watch.end()
        self._http.is_on = False
        of_a_step = executing.get(None) is not None
        for layer in self._layers:
            layer.tap = self._http.tell if of_a_step and layer.name == METHOD else None

    def _join(self, provider_hosts: Iterable[tuple[str, str]]) -> None:
        self._users += 1
        own = tuple(provider_hosts)
        if own:
            self._http.hosts = HostTable(own)

    def _begin(self) -> None:
        with self._faults.contained("tapping threads"):
            self._put(threading.Thread, "start", self._threads.start)
            if "start" in threading.Timer.__dict__:  # OpenTelemetry patches its `start` separately
                self._put(threading.Timer, "start", self._threads.start, abstract=threading.Timer.__mro__[1:])
            self._put(ThreadPoolExecutor, "submit", self._threads.submit, abstract=(Executor,))
        self._watch.begin()

    def _tap_library(self, library: ModuleType) -> None:
        with _lock, self._faults.contained("tapping an HTTP library"):
            if library.__name__ == "aiohttp":
                self._put(library.ClientSession, AIOHTTP_METHOD, self._aiohttp.sending(library), is_async=True)
                return
            self._put(library.Client, METHOD, self._http.sending(library))
            self._put(library.AsyncClient, METHOD, self._http.sending_async(library), is_async=True)

    def _put(
        self, owner: type, name: str, tap: Tap, *, is_async: bool = False, abstract: tuple[type, ...] = ()
    ) -> None:
        layer = put(owner, name, tap, is_async=is_async, abstract=abstract)
        if layer is None:
            raise LookupError(f"{owner.__qualname__} has no {name}")
        if layer not in self._layers:
            self._layers.append(layer)


def install(provider_hosts: Iterable[tuple[str, str]] = ()) -> Installation:
    """Capture in this process from now on; ``uninstall`` ends it. A second call joins the existing installation."""
    with _lock:
        if Installation.present is not None:
            Installation.present._join(provider_hosts)
        else:
            Installation.present = Installation(provider_hosts)
            Installation.present._begin()
        return Installation.present


@contextmanager
def capturing(provider_hosts: Iterable[tuple[str, str]] = ()) -> Iterator[None]:
    """Capture while the block runs."""
    installation = install(provider_hosts)
    try:
        yield
    finally:
        installation.uninstall()
