"""Whether the URL of a store or a broker can be used at all.

Owns what ``settings`` asks of a URL beyond its scheme, so that a typing error is told where it was made and not as
a traceback of the library that is handed the URL in the end. Must never open a connection, and never quote the URL.
"""

from __future__ import annotations

from kombu import Connection
from sqlalchemy.engine import make_url


def check_store_url(url: str) -> None:
    """Raise ``ValueError`` saying what is expected where SQLAlchemy cannot read the URL."""
    try:
        make_url(url)
    except ValueError as error:  # the port is no number
        raise ValueError(f"postgresql://USER@HOST:PORT/DATABASE with a port that is a number ({error})") from None


def check_broker_url(url: str, *, redis: bool) -> None:
    """Raise ``ValueError`` saying what is expected where kombu cannot read the URL."""
    try:
        database = str(Connection(url).virtual_host or "").removeprefix("/")
    except (TypeError, KeyError, ValueError) as error:
        # An unknown option in the query, an unknown constant of ssl, a port that is no number.
        raise ValueError(f"a URL that kombu can read ({type(error).__name__}: {error})") from None
    if redis and database and not database.isdecimal():
        raise ValueError("the number of a Redis database at the end, as in redis://HOST:6379/0")
