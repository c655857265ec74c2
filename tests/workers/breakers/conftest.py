"""Servers that keep circuits: the Valkey that ships with Paidonce, and the machine's own Redis where there is one."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

from paidonce_workers.breakers import (
    CircuitBreakers,
    Failure,
    circuit_breakers,
    circuit_decisions,
    circuit_scripts,
    redis_connecting,
)
from tests.services.availability import service_missing
from tests.services.valkey import RedisServer

MakeBreakers = Callable[..., CircuitBreakers]

LIMITS: tuple[tuple[ModuleType, str], ...] = (
    (circuit_decisions, "LIMIT_SECONDS"),
    (circuit_breakers, "BY_HAND_SECONDS"),
    (redis_connecting, "READ_SECONDS"),
    (circuit_scripts, "CHECK_SECONDS"),
)
"""How long Redis may take to answer."""
IN_PRODUCTION = tuple(getattr(module, name) for module, name in LIMITS)
PATIENT_SECONDS = 20.0


class ServerClock:
    """What circuits take for the time of Redis: the machine's, and ahead of it by what a test has skipped."""

    def __init__(self, *breakers: CircuitBreakers) -> None:
        self._ahead_us = 0
        for each in breakers:
            each._clock = self  # of a process that decides alone
            if each._shared is not None:
                each._shared._now = self

    def __call__(self) -> int:
        return int(time.time() * 1e6) + self._ahead_us

    def skip(self, seconds: float) -> None:
        self._ahead_us += int(seconds * 1e6)


def by_type(error: BaseException) -> Failure:
    """A classifier as plain as can be: kinds are names of types, ``Retry-After`` an attribute."""
    return Failure(
        kinds=frozenset(kind.__name__ for kind in type(error).__mro__),
        retry_after_seconds=getattr(error, "retry_after_seconds", None),
    )


@pytest.fixture(scope="session")
def installed_redis_program() -> Path:
    """The machine's own ``redis-server``."""
    found = shutil.which("redis-server")
    return Path(found) if found else service_missing("no redis-server (Debian: apt install redis-server)")


@pytest.fixture(scope="session")
def installed_redis(
    installed_redis_program: Path, session_servers: set[int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RedisServer]:
    """A Redis of this session's own. Never stop it."""
    server = RedisServer(installed_redis_program, tmp_path_factory.mktemp("installed-redis"))
    try:
        server.start()
        session_servers.add(server.pid)
        yield server
    finally:
        server.kill()


@pytest.fixture(params=["valkey", pytest.param("redis", marks=pytest.mark.service)])
def circuit_server(request: pytest.FixtureRequest) -> RedisServer:
    """The test runs once on each. Never stop it, and use a namespace of your own."""
    found: RedisServer = request.getfixturevalue("redis_server" if request.param == "valkey" else "installed_redis")
    return found


@pytest.fixture
def namespace() -> str:
    """One that nobody else uses."""
    return f"test-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def make_breakers(namespace: str) -> Iterator[MakeBreakers]:
    """Makes ``CircuitBreakers`` as a worker process has them, and closes them afterwards."""
    made: list[CircuitBreakers] = []

    def make(url: str | None, **options: object) -> CircuitBreakers:
        given: dict[str, object] = {"namespace": namespace, "classify": by_type, **options}
        made.append(CircuitBreakers(url, **given))  # type: ignore[arg-type]  # tests give what fits
        return made[-1]

    yield make
    for breakers in made:
        breakers.close()


@pytest.fixture
def breakers(circuit_server: RedisServer, make_breakers: MakeBreakers) -> CircuitBreakers:
    """One process's breakers."""
    return make_breakers(circuit_server.url())


def be_patient(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in LIMITS:
        monkeypatch.setattr(module, name, PATIENT_SECONDS)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis is given longer than a call may wait: for tests of what it decides, on a machine that may be busy."""
    be_patient(monkeypatch)


@pytest.fixture
def asks_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A circuit that was closed a moment ago is asked about all the same."""
    monkeypatch.setattr(circuit_decisions, "CLOSED_SECONDS", 0.0)


@contextmanager
def hurried() -> Iterator[None]:
    """For what a ``patient`` test does with a Redis that does not answer: it is given as long as in production."""
    with pytest.MonkeyPatch.context() as patch:
        for (module, name), seconds in zip(LIMITS, IN_PRODUCTION, strict=True):
            patch.setattr(module, name, seconds)
        yield
