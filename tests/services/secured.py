"""Servers that ask who one is, or prove who they are: Redis with users, TLS or sentinels."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.services.availability import service_missing
from tests.services.certificates import Certificates
from tests.services.valkey import RedisServer
from tests.services.waiting import wait_until

INSTALLED_REDIS = ("/usr/bin/redis-server", "/usr/bin/valkey-server", "/usr/local/bin/redis-server")
MASTER = "orders"
FAIL_OVER_SECONDS = 60.0

StartRedis = Callable[..., RedisServer]


class TlsRedis(RedisServer):
    """A Redis that speaks nothing but TLS."""

    def _arguments(self) -> list[str]:
        return [*super()._arguments(), "--port", "0", "--tls-port", str(self.port)]


class Sentinel(RedisServer):
    """A sentinel that watches ``master``, a port."""

    def __init__(self, program: Path, folder: Path, *, master: int, password: str, own_password: str) -> None:
        super().__init__(program, folder, client={"password": own_password})
        lines = [
            f"port {self.port}",
            "bind 127.0.0.1",
            f"requirepass {own_password}",
            f"sentinel sentinel-pass {own_password}",
            f"sentinel monitor {MASTER} 127.0.0.1 {master} 2",
            f"sentinel auth-pass {MASTER} {password}",
            f"sentinel down-after-milliseconds {MASTER} 1000",
            f"sentinel failover-timeout {MASTER} 5000",
        ]
        (folder / "sentinel.conf").write_text("\n".join(lines) + "\n")

    def _arguments(self) -> list[str]:
        return [str(self.folder / "sentinel.conf"), "--sentinel"]


class Watched:
    """A master, its replica, and three sentinels that watch them; all of them ask for a password."""

    def __init__(self, start: StartRedis, *, password: str, sentinel_password: str) -> None:
        self._sentinel_password = sentinel_password
        options = {"requirepass": password, "masterauth": password, "repl_diskless_sync_delay": "0"}
        client = {"password": password}
        self.master = start("master", client=client, **options)
        self.replica = start("replica", client=client, replicaof=f"127.0.0.1\n{self.master.port}", **options)
        watching = {"master": self.master.port, "password": password, "own_password": sentinel_password}
        self.sentinels = [start(f"sentinel-{number}", kind=Sentinel, **watching) for number in (1, 2, 3)]
        self._wait("they know each other and the replica", self._is_complete)

    @property
    def hosts(self) -> str:
        """The sentinels as they stand in an address."""
        return ",".join(f"127.0.0.1:{each.port}" for each in self.sentinels)

    def fail_over(self) -> None:
        """Kill the master; returns when all sentinels name the replica."""
        self.master.kill()
        self._wait("they name the replica", lambda client: self._named(client) == self.replica.port)

    def _is_complete(self, client: Any) -> bool:
        found = client.sentinel_master(MASTER)
        return bool(found["num-other-sentinels"] == 2 and found["num-slaves"] == 1)

    def _named(self, client: Any) -> int:
        return int(client.sentinel_get_master_addr_by_name(MASTER)[1])

    def _wait(self, description: str, holds: Callable[[Any], bool]) -> None:
        for each in self.sentinels:
            with redis.Redis(port=each.port, password=self._sentinel_password, decode_responses=True) as client:
                wait_until(lambda asked=client: holds(asked), f"the sentinels: {description}", FAIL_OVER_SECONDS)  # type: ignore[misc]


@pytest.fixture
def start_redis(redis_program: Path, tmp_path: Path) -> Iterator[StartRedis]:
    """``start_redis(name, **options)`` starts another server of this test's own."""
    with ExitStack() as stack:

        def start(name: str, *, kind: type[RedisServer] = RedisServer, **options: Any) -> RedisServer:
            folder = tmp_path / name
            folder.mkdir()
            server = kind(options.pop("program", redis_program), folder, **options)
            stack.callback(server.kill)
            server.start()
            return server

        yield start


@pytest.fixture
def tls_redis(start_redis: StartRedis, certificates: Certificates) -> RedisServer:
    """A Redis that speaks nothing but TLS. The Valkey that ships with Paidonce was built without it."""
    program = next((Path(each) for each in INSTALLED_REDIS if Path(each).exists()), None)
    if program is None:
        service_missing("no installed Redis, which knows TLS (Debian: apt install redis-server)")
    return start_redis(
        "tls",
        kind=TlsRedis,
        program=program,
        client={"ssl": True, "ssl_ca_certs": str(certificates.authority)},
        tls_cert_file=str(certificates.certificate),
        tls_key_file=str(certificates.key),
        tls_ca_cert_file=str(certificates.authority),
        tls_auth_clients="no",
    )
