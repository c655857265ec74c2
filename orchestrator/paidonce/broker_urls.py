"""Which broker and which Redis a process talks to, and how each library spells the address.

Owns the step from ``Settings`` to URLs that can be connected to; asking for the broker starts the embedded Valkey
where none is configured. Celery's kombu says ``redis+socket://`` for a unix socket, redis-py says ``unix://``:
everything in Paidonce keeps kombu's spelling and ``redis_client_url`` translates at the client.
"""

from __future__ import annotations

from paidonce.broker_addresses import REDIS_SCHEMES
from paidonce.embedded import ensure_embedded_valkey
from paidonce.settings import Settings


def broker_url(settings: Settings) -> str:
    """The configured broker, or the embedded Valkey of this home, which is started if it is not running."""
    if settings.broker_url is not None:
        return settings.broker_url
    return ensure_embedded_valkey(settings.home)


def redis_url(settings: Settings) -> str | None:
    """Where breakers and retry budgets are shared; ``None`` when the broker is no Redis and none is configured."""
    if settings.redis_url is not None:
        return settings.redis_url
    if settings.broker_url is None:
        return ensure_embedded_valkey(settings.home)
    return settings.broker_url if speaks_redis(settings.broker_url) else None


def speaks_redis(url: str) -> bool:
    """Whether redis-py can talk to this broker directly."""
    return url.partition("://")[0] in REDIS_SCHEMES


def redis_client_url(url: str) -> str:
    """The same server as ``redis.Redis.from_url`` wants it."""
    scheme, _, rest = url.partition("://")
    return f"unix://{rest.replace('virtual_host=', 'db=')}" if scheme == "redis+socket" else url
