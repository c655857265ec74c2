"""Which broker and Redis a process uses, and their spelling per library."""

from __future__ import annotations

from pathlib import Path

import pytest

from paidonce.broker.broker_urls import broker_url, redis_client_url, redis_url
from paidonce.settings import load_settings


@pytest.fixture(autouse=True)
def empty_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PAIDONCE_BROKER_URL", "PAIDONCE_REDIS_URL", "PAIDONCE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def test_breakers_use_the_broker_where_it_speaks_redis() -> None:
    settings = load_settings(broker_url="redis://h:1/2")
    assert (broker_url(settings), redis_url(settings)) == ("redis://h:1/2", "redis://h:1/2")


def test_rabbitmq_alone_has_no_redis() -> None:
    assert redis_url(load_settings(broker_url="amqp://h")) is None
    assert redis_url(load_settings(broker_url="amqp://h", redis_url="rediss://r")) == "rediss://r"


def test_a_unix_socket_is_spelled_for_each_library() -> None:
    settings = load_settings(broker_url="unix:///run/valkey.sock")
    assert settings.broker_url == "redis+socket:///run/valkey.sock"
    assert redis_client_url("redis+socket:///run/valkey.sock?virtual_host=3") == "unix:///run/valkey.sock?db=3"
    assert redis_client_url("rediss://r") == "rediss://r"
