"""Putting the taps in place, once in a process, and taking them away again.

Done where a worker process is wired, in the child that runs a step alone, and
by ``paidonce.testing`` around a body; a process that only submits runs never
comes here. What is wrapped: ``Client`` and ``AsyncClient`` of ``httpx`` and
``httpx2`` and ``aiohttp``'s session when they are imported, ``Thread.start``, ``ThreadPoolExecutor.submit``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import ModuleType
from typing import Any, ClassVar, Final

from paidonce_workers.capture.aiohttp_tap import AIOHTTP_METHOD, AiohttpTap
from paidonce_workers.capture.faults import Faults
from paidonce_workers.capture.hosts import HostTable
from paidonce_workers.capture.http_tap import METHOD, HttpTap
from paidonce_workers.capture.import_watch import ImportWatch
from paidonce_workers.capture.threads import ThreadTap

LIBRARIES: Final = ("httpx", "httpx2", "aiohttp")
_lock: Final = threading.RLock()


class Installation:
    """The taps of this process. ``install`` makes it or joins the one that is there."""

    present: ClassVar[Installation | None] = None
    """What is rebound is the process's, and so is this: the taps must not stand twice."""

    def __init__(self, provider_hosts: Iterable[tuple[str, str]]) -> None:
        self._faults = Faults()
        self._http = HttpTap(HostTable(provider_hosts), self._faults)
        self._aiohttp = AiohttpTap(self._http, self._faults)
        self._threads = ThreadTap()
        self._watch = ImportWatch(LIBRARIES, self._tap_library)
        self._wrapped: list[tuple[Any, str, Any, Any]] = []
        self._users = 1

    def uninstall(self) -> None:
        """Leave; the last one takes the taps away. What somebody else has wrapped since stays, switched off."""
        with _lock:
            self._users -= 1
            if self._users:
                return
            Installation.present = None
            self._watch.end()
            self._http.is_on = self._threads.is_on = False
            for owner, name, original, wrapper in reversed(self._wrapped):
                if owner.__dict__.get(name) is wrapper:
                    setattr(owner, name, original)
            self._wrapped.clear()

    def _join(self, provider_hosts: Iterable[tuple[str, str]]) -> None:
        self._users += 1
        own = tuple(provider_hosts)
        if own:
            self._http.hosts = HostTable(own)

    def _begin(self) -> None:
        self._wrap(threading.Thread, "start", self._threads.starting)
        self._wrap(ThreadPoolExecutor, "submit", self._threads.submitting)
        self._watch.begin()

    def _tap_library(self, library: ModuleType) -> None:
        with _lock, self._faults.contained("tapping an HTTP library"):
            if library.__name__ == "aiohttp":
                session = library.ClientSession
                self._wrap(session, AIOHTTP_METHOD, lambda original: self._aiohttp.sending(library, original))
                return
            self._wrap(library.Client, METHOD, lambda original: self._http.sending(library, original))
            self._wrap(library.AsyncClient, METHOD, lambda original: self._http.sending_async(library, original))

    def _wrap(self, owner: Any, name: str, wrapping: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        if any(each is owner for each, *_ in self._wrapped):
            return
        original = owner.__dict__[name]
        wrapper = wrapping(original)
        setattr(owner, name, wrapper)
        self._wrapped.append((owner, name, original, wrapper))


def install(provider_hosts: Iterable[tuple[str, str]] = ()) -> Installation:
    """Capture from now on in this process; ``uninstall`` ends it. Installing again joins what is there."""
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
