"""A stand whose workers share circuits in a Valkey."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from paidonce.policies import describe_failure
from paidonce_workers.breakers import CircuitBreakers
from tests.services.valkey import RedisServer
from tests.workers.stand import Stand


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
