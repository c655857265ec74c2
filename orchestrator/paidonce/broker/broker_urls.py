"""The broker and the Redis of a process, and the address in each library's notation.

Owns the conversion of ``Settings`` to URLs; requesting the broker starts the embedded Valkey if none is configured.
Celery's kombu writes ``redis+socket://`` for a unix socket, redis-py writes ``unix://``: everything in Paidonce keeps
kombu's notation, and ``redis_client_url`` translates at the client.
"""

from __future__ import annotations

from paidonce.configuration.broker_addresses import REDIS_SCHEMES
from paidonce.embedded import ensure_embedded_valkey
from paidonce.settings import Settings


def broker_url(settings: Settings) -> str:
    """The configured broker, or the embedded Valkey of this home, which is started if it is not running."""
    if settings.broker_url is not None:
        return settings.broker_url
    return ensure_embedded_valkey(settings.home)


def redis_url(settings: Settings) -> str | None:
    """Where breakers and retry budgets are shared; ``None`` if the broker is no Redis and none is configured."""
    if settings.redis_url is not None:
        return settings.redis_url
    if settings.broker_url is None:
        return ensure_embedded_valkey(settings.home)
    return settings.broker_url if speaks_redis(settings.broker_url) else None


def speaks_redis(url: str) -> bool:
    """Whether redis-py can talk to this broker directly."""
    return url.partition("://")[0] in REDIS_SCHEMES


def redis_client_url(url: str) -> str:
    """The same server in the notation of ``redis.Redis.from_url``."""
    scheme, _, rest = url.partition("://")
    return f"unix://{rest.replace('virtual_host=', 'db=')}" if scheme == "redis+socket" else url
