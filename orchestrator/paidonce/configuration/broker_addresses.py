"""Parses addresses of brokers and of Redis, and derives each library's options.

One notation for all: TLS is requested by the scheme (``rediss``, ``amqps``, ``sentinels``) and its files by the query
(``ssl_ca_certs``, ``ssl_certfile``, ``ssl_keyfile``, ``ssl_cert_reqs``, ``ssl_check_hostname``). Certificates are
verified unless the address says otherwise; kombu alone verifies none for Redis, and no host name for RabbitMQ.
Sentinels are listed in one address, separated by commas, or each in its own, separated by semicolons.

Never opens a connection; never quotes an address, which may hold a password.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

AMQP_SCHEMES: Final = ("amqp", "amqps", "pyamqp")
SOCKET: Final = "redis+socket"
REDIS_SCHEMES: Final = ("redis", "rediss", SOCKET, "sentinel", "sentinels")
OTHER_NAMES: Final = {
    "unix": SOCKET,
    "valkey": "redis",
    "valkeys": "rediss",
    "redis+sentinel": "sentinel",
    "rediss+sentinel": "sentinels",
}
"""Equivalent schemes of other clients."""
SENTINELS: Final = ("sentinel", "sentinels")
_ENCRYPTED: Final = ("rediss", "sentinels", "amqps")
_SENTINEL_PORT: Final = 26379
_OTHER_OPTIONS: Final = {
    "cacertfile": "ssl_ca_certs",
    "certfile": "ssl_certfile",
    "keyfile": "ssl_keyfile",
    "verify": "ssl_cert_reqs",
}
"""RabbitMQ's own names for the same options."""
_FILES: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_REQUIREMENTS: Final = {
    "required": ssl.CERT_REQUIRED,
    "verify_peer": ssl.CERT_REQUIRED,
    "optional": ssl.CERT_OPTIONAL,
    "none": ssl.CERT_NONE,
    "verify_none": ssl.CERT_NONE,
}
QUOTING: Final = (
    "user and password with their reserved characters percent-encoded (%40 for @, %3A for :, %2F for /, %3F for ?, "
    "%23 for #, %25 for %)"
)
_NO: Final = ("false", "no", "off", "0")


@dataclass(frozen=True, kw_only=True)
class Tls:
    """How the server is authenticated, and how we are."""

    requirement: ssl.VerifyMode = ssl.CERT_REQUIRED
    check_host_name: bool = True
    files: Mapping[str, str] = field(default_factory=dict)
    """By redis-py's names: ``ssl_ca_certs``, ``ssl_certfile``, ``ssl_keyfile``."""

    def for_redis(self) -> dict[str, Any]:
        """Arguments of redis-py's connections."""
        verified = self.requirement is not ssl.CERT_NONE
        return {
            "ssl_cert_reqs": self.requirement,
            "ssl_check_hostname": self.check_host_name and verified,
            **self.files,
        }

    def for_amqp(self, host: str) -> dict[str, Any]:
        """Arguments of py-amqp's sockets, which check the host name if they are given one."""
        named = {name.removeprefix("ssl_"): path for name, path in self.files.items()}
        is_named = self.check_host_name and self.requirement is not ssl.CERT_NONE
        return {"cert_reqs": self.requirement, **named, **({"server_hostname": host} if is_named else {})}


@dataclass(frozen=True, kw_only=True)
class Sentinels:
    """The sentinels of a Redis, and how to ask them for its master."""

    hosts: tuple[tuple[str, int], ...]
    master_name: str
    user: str | None
    password: str | None = field(repr=False)
    tls: Tls | None

    def client_options(self) -> dict[str, Any]:
        """Arguments of redis-py's clients of the sentinels themselves."""
        known = {"username": self.user, "password": self.password}
        secured = {} if self.tls is None else {"ssl": True, **self.tls.for_redis()}
        return {**{name: value for name, value in known.items() if value is not None}, **secured}


@dataclass(frozen=True, kw_only=True)
class Address:
    """The parsed address of a broker or a Redis. ``url`` is what remains for the library."""

    url: str = field(repr=False)
    scheme: str
    tls: Tls | None = None
    sentinels: Sentinels | None = None

    @property
    def kombu_ssl(self) -> dict[str, Any] | None:
        """Celery's ``broker_use_ssl``."""
        if self.tls is None:
            return None
        if self.scheme in AMQP_SCHEMES:
            return self.tls.for_amqp(urlsplit(self.url).hostname or "127.0.0.1")
        return self.tls.for_redis()

    @property
    def transport_options(self) -> dict[str, Any]:
        """Further options of kombu's transport."""
        if self.sentinels is None:
            return {}
        return {
            "master_name": self.sentinels.master_name,
            "sentinel_kwargs": {**self.sentinels.client_options(), "socket_connect_timeout": 3, "socket_timeout": 5},
        }


def with_usual_scheme(url: str) -> str:
    """The same address with the canonical scheme."""
    scheme, separator, rest = url.partition("://")
    renamed = OTHER_NAMES.get(scheme)
    if not separator or renamed is None:
        return url
    return f"{renamed}://{rest.replace(f';{scheme}://', f';{renamed}://')}"


def read_address(url: str) -> Address:
    """Parse an address. Raises ``ValueError`` that says what is expected and quotes nothing."""
    _refuse_unquoted(url)
    scheme = url.partition("://")[0]
    if scheme in SENTINELS:
        return _read_sentinels(url, scheme)
    bare, separator, query = url.partition("?")
    options, tls_options = _split(query)
    tls = _tls(tls_options, asked=scheme in _ENCRYPTED)
    if scheme == SOCKET:
        bare = _as_kombu_reads_it(bare, options)
    left = f"{bare}?{urlencode(options, quote_via=quote)}" if options else bare
    return Address(url=left if separator else url, scheme=scheme, tls=tls)


def _refuse_unquoted(url: str) -> None:
    """A reserved character in a password ends it early, and the rest would be quoted as something else."""
    for part in url.split(";"):
        rest = part.partition("://")[2]
        end = min((at for at in map(rest.find, "/?#") if at >= 0), default=len(rest))
        if "@" in rest[end:]:
            raise ValueError(QUOTING)


def _split(query: str) -> tuple[dict[str, str], dict[str, str]]:
    """The options of a query: those for TLS by redis-py's names, and the others."""
    options: dict[str, str] = {}
    tls: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        named = _OTHER_OPTIONS.get(name, name)
        (tls if named.startswith("ssl_") else options)[named] = value
    return options, tls


def _tls(options: Mapping[str, str], *, asked: bool) -> Tls | None:
    if not asked:
        if options:
            raise ValueError(f"rediss://, sentinels:// or amqps:// where {next(iter(options))} is given")
        return None
    unknown = options.keys() - {*_FILES, "ssl_cert_reqs", "ssl_check_hostname"}
    if unknown:
        raise ValueError(
            f"no option {sorted(unknown)[0]} of TLS: there are {', '.join(_FILES)}, ssl_cert_reqs and "
            "ssl_check_hostname"
        )
    files = {name: options[name] for name in _FILES if name in options}
    for name, path in files.items():
        if not os.access(path, os.R_OK) or not os.path.isfile(path):
            raise ValueError(f"a file that can be read as {name}, not {path!r}")
    required = options.get("ssl_cert_reqs", "required").lower().removeprefix("cert_")
    if required not in _REQUIREMENTS:
        raise ValueError("ssl_cert_reqs to be required, optional or none")
    return Tls(
        requirement=_REQUIREMENTS[required],
        check_host_name=options.get("ssl_check_hostname", "true").lower() not in _NO,
        files=files,
    )


def _as_kombu_reads_it(bare: str, options: dict[str, str]) -> str:
    """A socket's address with its user in front; removes from ``options`` what redis-py reads there and kombu ignores.

    With ``?db=3`` alone kombu would use the database 0, and with ``?password=…`` no password.
    """
    database = options.pop("db", options.get("virtual_host"))
    if database is not None:
        if not database.removeprefix("/").isdecimal():
            raise ValueError("the number of a Redis database as db, as in unix:///run/valkey.sock?db=0")
        options["virtual_host"] = database
    scheme, _, rest = bare.partition("://")
    authority, slash, path = rest.partition("/")
    user, _, password = authority.rpartition("@")[0].partition(":")
    given = options.pop("username", None), options.pop("password", None)
    if given == (None, None):
        return bare
    user, password = (
        quote(new, safe="") if new is not None else old for new, old in zip(given, (user, password), strict=True)
    )
    return f"{scheme}://{user}:{password}@{slash}{path}"


def _read_sentinels(url: str, scheme: str) -> Address:
    """``sentinel://user:password@host:port,host:port/0?master_name=…``, or each sentinel in its own address."""
    hosts: list[tuple[str, int]] = []
    options: dict[str, str] = {}
    user_part = path = ""
    for part in url.split(";"):
        own_scheme, separator, rest = part.partition("://")
        if not separator:
            rest = part
        elif own_scheme != scheme:
            raise ValueError("the same scheme for all sentinels")
        rest, _, query = rest.partition("?")
        authority, _, found_path = rest.partition("/")
        user, _, names = authority.rpartition("@")
        user_part, path = user or user_part, found_path or path
        options.update(parse_qsl(query, keep_blank_values=True))
        hosts.extend(_host_and_port(name) for name in names.split(","))
    master_name = options.pop("master_name", "")
    if not master_name:
        raise ValueError(
            "the name of the master that the sentinels watch, as in sentinel://HOST:26379/0?master_name=NAME"
        )
    user, password = options.pop("sentinel_username", ""), options.pop("sentinel_password", "")
    others, tls_options = _split(urlencode(options))
    if others:
        raise ValueError(
            f"no option {sorted(others)[0]}: sentinels know master_name, sentinel_username, "
            "sentinel_password and those of TLS"
        )
    tls = _tls(tls_options, asked=scheme in _ENCRYPTED)
    before = f"{user_part}@" if user_part else ""
    urls = [f"sentinel://{before}{_spelled(host)}:{port}/{path or '0'}" for host, port in hosts]
    return Address(
        url=";".join(urls),
        scheme="sentinel",
        tls=tls,
        sentinels=Sentinels(
            hosts=tuple(hosts), master_name=master_name, user=user or None, password=password or None, tls=tls
        ),
    )


def _host_and_port(text: str) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError("a port that is a number after each sentinel's host") from None
    if not host:
        raise ValueError("a host for each sentinel")
    return unquote(host), _SENTINEL_PORT if port is None else port


def _spelled(host: str) -> str:
    return f"[{host}]" if ":" in host else host
