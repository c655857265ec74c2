"""From an address of Redis to connections whose waiting is bounded.

Owns what redis-py is told: no retries, RESP 2 (no pushes that arrive unasked,
and every server speaks it), no health checks in front of a command, short
time-outs. What the address itself says about any of these is overruled, because
an address is often shared with the broker, which may wait much longer.
"""

from __future__ import annotations

# Python imports it when a host is first looked up. A child forked at that moment would wait for ever for the import
# of a thread that it does not have.
import encodings.idna  # noqa: F401
from collections.abc import Callable
from typing import Any, Final

from redis.backoff import NoBackoff
from redis.connection import AbstractConnection, Connection, parse_url
from redis.retry import Retry

from paidonce.broker_urls import redis_client_url
from paidonce_models.errors import ConfigurationError
from paidonce_models.log_texts import loggable
from paidonce_models.masking import mask

CONNECT_SECONDS: Final = 1.0
"""Connections are made in a thread that nobody waits for longer than a call may be delayed."""
READ_SECONDS: Final = 0.35

OVERRULED: Final = frozenset(
    (
        *("connection_class", "max_connections", "timeout", "retry", "retry_on_timeout", "retry_on_error", "protocol"),
        *("health_check_interval", "socket_timeout", "socket_connect_timeout", "client_name"),
        "virtual_host",
    )
)


def connection_maker(url: str, setting: str) -> Callable[[], AbstractConnection]:
    """A function that makes connections to ``url``, not connected yet.

    Raises ``ConfigurationError`` that names ``setting`` if the address cannot be read.
    """
    try:
        options: dict[str, Any] = parse_url(redis_client_url(url))  # type: ignore[no-untyped-call]  # redis-py's own
    except ValueError as error:
        raise ConfigurationError(
            f"{setting}: {shown(url)} is no address of a Redis ({loggable(str(error))}); correct it"
        ) from None
    kind: type[AbstractConnection] = options.get("connection_class", Connection)
    kept = {name: value for name, value in options.items() if name not in OVERRULED}
    requirement = kept.get("ssl_cert_reqs")
    if isinstance(requirement, str):  # kombu says CERT_NONE where redis-py says none
        kept["ssl_cert_reqs"] = requirement.lower().removeprefix("cert_")

    def make() -> AbstractConnection:
        return kind(
            **kept,
            protocol=2,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=READ_SECONDS,
            socket_connect_timeout=CONNECT_SECONDS,
        )

    return make


def shown(url: str) -> str:
    """The address without credentials and options."""
    return mask(url).partition("?")[0]
