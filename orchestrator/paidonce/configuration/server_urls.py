"""Checks whether the URL of a store or a broker can be used.

Owns what ``settings`` checks in a URL beyond its scheme, so that a typing error is reported where it was made and not
as a traceback of the library that finally gets the URL. Must never open a connection, and never quote the URL.
"""

from __future__ import annotations

from urllib.parse import quote

from paidonce.configuration.broker_addresses import QUOTING, read_address


def check_store_url(url: str) -> str:
    """The URL in SQLAlchemy's notation: several hosts, which libpq separates by commas, become parts of the query.

    Raises ``ValueError`` saying what is expected if SQLAlchemy cannot parse the URL.
    """
    # As below: settings are read by commands that need neither a store nor a broker.
    from sqlalchemy.engine import make_url  # noqa: PLC0415
    from sqlalchemy.exc import ArgumentError  # noqa: PLC0415

    url = _hosts_in_query(url)
    try:
        parsed = make_url(url)
    except (ValueError, ArgumentError):  # some of SQLAlchemy's messages quote the URL
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
    """Raise ``ValueError`` saying what is expected if kombu cannot parse the URL."""
    # Not from `kombu`, which replaces itself while it is imported: another thread would see half a module.
    from kombu.connection import Connection  # noqa: PLC0415 - only where such a URL is set

    address = read_address(url)
    try:
        database = str(Connection(address.url, ssl=address.kombu_ssl or False).virtual_host or "").removeprefix("/")
    except ValueError:  # its message may quote a part of a password
        raise ValueError(f"a port that is a number, and {QUOTING}") from None
    except (TypeError, KeyError) as error:  # an unknown option in the query
        raise ValueError(f"a URL that kombu can read ({type(error).__name__}: {error})") from None
    if redis and database and not database.isdecimal():
        raise ValueError("the number of a Redis database at the end, as in redis://HOST:6379/0")
