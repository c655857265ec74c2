"""The connections of breakers to a Redis that asks who one is, proves who it is, or stands behind sentinels."""

from __future__ import annotations

import time
from urllib.parse import quote

import pytest
import redis
from redis.connection import AbstractConnection

from paidonce_models.errors import ConfigurationError
from paidonce_workers.breakers.circuit_scripts import checker
from paidonce_workers.breakers.redis_connecting import connection_maker, refuse_cluster, shown
from tests.services.availability import free_port
from tests.services.certificates import Certificates
from tests.services.secured import MASTER, StartRedis, Watched
from tests.services.valkey import RedisServer
from tests.services.waiting import wait_until

PASSWORD = "p@ss:w/o%r#d?ü&+=;,x"
BREAKER_RIGHTS = "~paidonce:* +@connection +@read +@write +@scripting +time -@dangerous"


def tried(url: str) -> AbstractConnection:
    """A connection that has passed the check of the breakers; the caller closes it."""
    connection = connection_maker(url, "TEST")()
    connection.connect()
    checker("default")(connection)
    return connection


def test_a_user_with_few_rights_and_a_password_of_any_characters(start_redis: StartRedis) -> None:
    server = start_redis("acl")
    with redis.Redis(port=server.port) as client:
        client.execute_command("ACL", "SETUSER", "br@aker", "on", f">{PASSWORD}", *BREAKER_RIGHTS.split())
        tried(f"redis://{quote('br@aker')}:{quote(PASSWORD, safe='')}@127.0.0.1:{server.port}/0").disconnect()
        assert client.execute_command("ACL", "LOG") == []


def test_certificates_are_verified(tls_redis: RedisServer, certificates: Certificates) -> None:
    url = f"rediss://127.0.0.1:{tls_redis.port}/0"
    tried(f"{url}?ssl_ca_certs={certificates.authority}").disconnect()
    tried(f"{url}?ssl_cert_reqs=none").disconnect()
    with pytest.raises(redis.ConnectionError, match="certificate verify failed"):
        tried(url)


@pytest.mark.slow
def test_sentinels_are_asked_for_the_master_each_time(start_redis: StartRedis) -> None:
    watched = Watched(start_redis, password="of-the-servers", sentinel_password="of-the-sentinels")
    url = f"sentinel://:of-the-servers@{watched.hosts}/0?master_name={MASTER}&sentinel_password=of-the-sentinels"
    first = tried(url)
    assert getattr(first, "port", None) == watched.master.port
    first.disconnect()
    watched.fail_over()

    def is_promoted() -> bool:
        second = tried(url)
        second.disconnect()
        return getattr(second, "port", None) == watched.replica.port

    wait_until(is_promoted, "the new master is found", 30)
    assert "of-the" not in shown(url)


@pytest.mark.slow
def test_sentinels_that_are_away_are_a_redis_that_is_away() -> None:
    began = time.monotonic()
    with pytest.raises(redis.ConnectionError):
        connection_maker("sentinel://127.0.0.1:1,127.0.0.1:2/0?master_name=x", "TEST")()
    assert time.monotonic() - began < 30


def test_a_cluster_is_refused_and_a_server_that_is_away_is_not(start_redis: StartRedis) -> None:
    server = start_redis("cluster", cluster_enabled="yes", cluster_port=str(free_port()), databases="1")
    with pytest.raises(ConfigurationError, match=r"PAIDONCE_REDIS_URL: .* belongs to a Redis Cluster"):
        refuse_cluster(server.url(), "PAIDONCE_REDIS_URL")
    server.kill()
    refuse_cluster(server.url(), "PAIDONCE_REDIS_URL")
