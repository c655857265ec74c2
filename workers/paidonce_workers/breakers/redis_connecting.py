"""Makes connections to Redis from an address, with bounded waits.

Owns the options of redis-py: no retries, RESP 2 (no unsolicited pushes, and every
server speaks it), no health check before a command, short timeouts. These override
options in the address, because an address is often shared with the broker, which
may wait much longer.
"""

# mypy: allow-untyped-calls
# because redis-py's sentinels are typed in part only.

from __future__ import annotations

# Python imports it at the first host look-up. A child forked at that moment would wait for ever for the import
# lock of a thread that it does not have.
import encodings.idna  # noqa: F401
from collections.abc import Callable
from typing import Any, Final

from redis.backoff import NoBackoff
from redis.connection import AbstractConnection, Connection, SSLConnection, parse_url
from redis.exceptions import RedisError
from redis.retry import Retry
from redis.sentinel import Sentinel

from paidonce.broker.broker_urls import redis_client_url
from paidonce.configuration.broker_addresses import Address, Sentinels, read_address
from paidonce_models.errors import ConfigurationError
from paidonce_models.privacy.log_texts import loggable
from paidonce_models.privacy.masking import mask

CONNECT_SECONDS: Final = 1.0
"""Connections are made in a separate thread, and no caller waits for it longer than a call may be delayed."""
READ_SECONDS: Final = 0.35

OVERRULED: Final = frozenset(
    (
        *("connection_class", "max_connections", "timeout", "retry", "retry_on_timeout", "retry_on_error", "protocol"),
        *("health_check_interval", "socket_timeout", "socket_connect_timeout", "client_name"),
        "virtual_host",
    )
)


def connection_maker(url: str, setting: str) -> Callable[[], AbstractConnection]:
    """A function that creates connections to ``url``, not connected yet.

    Behind sentinels it looks up the master first, each time, because it may have changed; it raises ``RedisError`` if
    no sentinel responds. Raises ``ConfigurationError``, naming ``setting``, if the address cannot be read.
    """
    try:
        address = read_address(url)
        options: dict[str, Any] = parse_url(_of_one_server(address))
    except ValueError as error:
        raise ConfigurationError(
            f"{setting}: {shown(url)} is not the address of a Redis ({loggable(str(error))}); correct it"
        ) from None
    kind: type[AbstractConnection] = options.get("connection_class", Connection)
    kept = {name: value for name, value in options.items() if name not in OVERRULED}
    if address.tls is not None:
        kind = SSLConnection
        kept.update(address.tls.for_redis())

    def make() -> AbstractConnection:
        found = {} if address.sentinels is None else _ask_for_master(address.sentinels)
        return kind(
            **{**kept, **found},
            protocol=2,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=READ_SECONDS,
            socket_connect_timeout=CONNECT_SECONDS,
        )

    return make


def refuse_cluster(url: str, setting: str) -> None:
    """Raise ``ConfigurationError`` if a Redis Cluster responds; waiting for a silent server is done elsewhere."""
    try:
        connection = connection_maker(url, setting)()
        try:
            connection.send_command("INFO", "cluster")
            answer = connection.read_response()
        finally:
            connection.disconnect()
    except (RedisError, OSError):
        return
    if b"cluster_enabled:1" in (answer if isinstance(answer, bytes) else str(answer).encode()):
        raise ConfigurationError(
            f"{setting}: the server at {shown(url)} belongs to a Redis Cluster, whose servers each hold a part of the "
            "circuits; use a Redis or Valkey without cluster mode, or sentinels (sentinel://)"
        )


def _of_one_server(address: Address) -> str:
    """An address that redis-py can parse. Of several sentinels, the first stands in for the server that they name."""
    first = address.url.partition(";")[0].replace("sentinel://", "redis://", 1)
    return redis_client_url(first)


def _ask_for_master(sentinels: Sentinels) -> dict[str, Any]:
    options = {"socket_timeout": READ_SECONDS, "socket_connect_timeout": CONNECT_SECONDS}
    asked = Sentinel(list(sentinels.hosts), sentinel_kwargs={**sentinels.client_options(), **options})
    try:
        host, port = asked.discover_master(sentinels.master_name)
    finally:
        for client in asked.sentinels:
            client.close()
    return {"host": host, "port": port}


def shown(url: str) -> str:
    """The address without credentials and options."""
    return mask(url).partition("?")[0]
