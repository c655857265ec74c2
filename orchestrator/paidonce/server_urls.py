"""Whether the URL of a store or a broker can be used at all.

Owns what ``settings`` asks of a URL beyond its scheme, so that a typing error is told where it was made and not as
a traceback of the library that is handed the URL in the end. Must never open a connection, and never quote the URL.
"""

from __future__ import annotations

from urllib.parse import quote

from kombu import Connection
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from paidonce.broker_addresses import QUOTING, read_address


def check_store_url(url: str) -> str:
    """The URL as SQLAlchemy reads it: several hosts, which libpq separates by commas, become parts of the query.

    Raises ``ValueError`` saying what is expected where SQLAlchemy cannot read the URL.
    """
    url = _hosts_in_query(url)
    try:
        parsed = make_url(url)
    except (ValueError, ArgumentError):  # some of SQLAlchemy's own words quote the URL
        raise ValueError("postgresql://USER@HOST:PORT/DATABASE with a port that is a number") from None
    if "@" in f"{parsed.host}{parsed.database}":  # the rest of a password, which an error would quote as a host
        raise ValueError(QUOTING)
    return url


def _hosts_in_query(url: str) -> str:
    scheme, _, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    user, at, hosts = authority.rpartition("@")
    if "," not in hosts:
        return url
    path, _, query = path.partition("?")
    listed = "&".join(f"host={quote(host)}" for host in hosts.split(","))
    return f"{scheme}://{user}{at}{slash or '/'}{path}?{listed}{'&' if query else ''}{query}"


def check_broker_url(url: str, *, redis: bool) -> None:
    """Raise ``ValueError`` saying what is expected where kombu cannot read the URL."""
    address = read_address(url)
    try:
        database = str(Connection(address.url, ssl=address.kombu_ssl or False).virtual_host or "").removeprefix("/")
    except ValueError:  # its words may quote a part of a password
        raise ValueError(f"a port that is a number, and {QUOTING}") from None
    except (TypeError, KeyError) as error:  # an unknown option in the query
        raise ValueError(f"a URL that kombu can read ({type(error).__name__}: {error})") from None
    if redis and database and not database.isdecimal():
        raise ValueError("the number of a Redis database at the end, as in redis://HOST:6379/0")
