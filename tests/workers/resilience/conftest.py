"""A stand whose workers share circuits in a Valkey."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from paidonce.policies import describe_failure
from paidonce_workers.breakers import CircuitBreakers
from paidonce_workers.resilience import attempt_circuits
from tests.services.valkey import RedisServer
from tests.workers.breakers.conftest import PATIENT_SECONDS, ServerClock, be_patient
from tests.workers.stand import Stand


@pytest.fixture(autouse=True)
def patient_circuits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine's Redis is not away."""
    be_patient(monkeypatch)
    monkeypatch.setattr(attempt_circuits, "LONGEST_REPORT_SECONDS", PATIENT_SECONDS)


@pytest.fixture
def stand() -> Iterator[Stand]:
    with Stand() as made:
        yield made


@pytest.fixture
def breakers(redis_server: RedisServer) -> Iterator[CircuitBreakers]:
    """Circuits that no other test uses."""
    made = CircuitBreakers(
        redis_server.url(), namespace=f"test-{uuid.uuid4().hex[:12]}", classify=describe_failure, probe_seconds=10.0
    )
    yield made
    made.close()


@pytest.fixture
def server_clock(breakers: CircuitBreakers) -> ServerClock:
    """The clock of those circuits, for a test that lets their time pass."""
    return ServerClock(breakers)
