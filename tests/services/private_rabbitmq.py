"""A RabbitMQ of a test's own that speaks nothing but TLS, and lets in only who has a certificate and a password.

It shares nothing with a RabbitMQ that runs already: it has a name, ports, data, a cookie and an ``epmd`` of its own.
Neither root nor the user ``rabbitmq`` is needed.
"""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import quote

import pytest

from tests.services.availability import answers, free_port, service_missing
from tests.services.certificates import Certificates
from tests.services.waiting import wait_until

# The folders of Debian and of the upstream packages come first: what they put on PATH insists on one user.
PROGRAM_FOLDERS: Final = ("/usr/lib/rabbitmq/bin", "/opt/rabbitmq/sbin", "/opt/homebrew/sbin", "/usr/local/sbin")
ERLANG_FOLDERS: Final = ("/usr/lib/erlang/bin", "/usr/local/lib/erlang/bin")
VHOST: Final = "orders"
START_SECONDS: Final = 60.0
STOP_SECONDS: Final = 30.0


class TlsRabbitMq:
    """One server with one user, on 127.0.0.1."""

    def __init__(self, server: str, epmd: str, certificates: Certificates, *, user: str, password: str) -> None:
        self._server, self._epmd = server, epmd
        self._user, self._password = user, password
        self._processes: list[subprocess.Popen[bytes]] = []
        self.port = free_port()
        self._epmd_port, self._node_port = free_port(), free_port()
        # Not under pytest's tmp_path, whose paths get long.
        self.folder = Path(tempfile.mkdtemp(prefix="paidonce-rabbitmq-"))
        (self.folder / "home").mkdir()
        (self.folder / "environment").write_text("")
        (self.folder / "plugins").write_text("[].\n")
        (self.folder / "definitions.json").write_text(json.dumps(self._definitions()))
        (self.folder / "rabbitmq.conf").write_text(self._configuration(certificates))

    def url(self, query: str, *, password: str | None = None) -> str:
        """Its address with these options, and with another password."""
        secret = quote(self._password if password is None else password, safe="")
        return f"amqps://{quote(self._user, safe='')}:{secret}@127.0.0.1:{self.port}/{VHOST}?{query}"

    @property
    def log(self) -> str:
        """Everything it has said."""
        return (self.folder / "server.log").read_text(errors="replace")

    def start(self) -> None:
        """Returns when it listens."""
        # One that is started by the server would outlive it.
        self._run(self._epmd, "-port", str(self._epmd_port), "-address", "127.0.0.1")
        wait_until(lambda: answers("127.0.0.1", self._epmd_port), "epmd answers", START_SECONDS)
        self._run(self._server)
        wait_until(self._is_ready, f"RabbitMQ answers on port {self.port}", START_SECONDS)

    def remove(self) -> None:
        """Stop and delete everything."""
        for process in reversed(self._processes):
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self.folder)

    def _run(self, *command: str) -> None:
        with (self.folder / "server.log").open("ab") as log:
            self._processes.append(
                subprocess.Popen(
                    command, cwd=self.folder, env=self._environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
                )
            )

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RABBITMQ_", "ERL_"))}
        return {
            **kept,
            "HOME": str(self.folder / "home"),  # of the cookie
            "LANG": "C.UTF-8",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"paidonce-{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(self._node_port),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": str(self.folder / "environment"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "plugins"),
            "RABBITMQ_PID_FILE": str(self.folder / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        }

    def _configuration(self, certificates: Certificates) -> str:
        lines = (
            "listeners.tcp = none",
            f"listeners.ssl.1 = 127.0.0.1:{self.port}",
            f"ssl_options.cacertfile = {certificates.authority}",
            f"ssl_options.certfile = {certificates.certificate}",
            f"ssl_options.keyfile = {certificates.key}",
            "ssl_options.verify = verify_peer",
            "ssl_options.fail_if_no_peer_cert = true",
            f"load_definitions = {self.folder}/definitions.json",
            "log.console = true",
            "log.file = false",
        )
        return "\n".join(lines) + "\n"

    def _definitions(self) -> dict[str, list[dict[str, str]]]:
        rights = {"configure": ".*", "write": ".*", "read": ".*"}
        return {
            "users": [{"name": self._user, "password": self._password, "tags": ""}],
            "vhosts": [{"name": VHOST}],
            "permissions": [{"user": self._user, "vhost": VHOST, **rights}],
        }

    def _is_ready(self) -> bool:
        for process in self._processes:
            if process.poll() is not None:
                raise RuntimeError(f"{process.args!r} ended with {process.returncode}:\n{self.log[-3000:]}")
        return answers("127.0.0.1", self.port)


@pytest.fixture
def tls_rabbitmq(certificates: Certificates) -> Iterator[TlsRabbitMq]:
    """A running server, whose user and password need quoting."""
    server = _find("rabbitmq-server", *PROGRAM_FOLDERS, os.environ.get("PATH", ""))
    epmd = _find("epmd", os.environ.get("PATH", ""), *ERLANG_FOLDERS)
    if server is None or epmd is None:
        service_missing("no programs rabbitmq-server and epmd (Debian: apt install rabbitmq-server)")
    made = TlsRabbitMq(server, epmd, certificates, user="wörk@er", password="p@ss:w/o%r#d?ü&+=;,x")
    try:
        made.start()
        yield made
    finally:
        made.remove()


def _find(program: str, *folders: str) -> str | None:
    return shutil.which(program, path=os.pathsep.join(folders))
