"""RabbitMQ for tests: a shared server, and on it a vhost of each test's own.

The server is ``TEST_AMQP_URL``, else ``guest`` on 127.0.0.1:5672. Vhosts are made by ``rabbitmqctl``, so no management
plugin is needed. Where it cannot be run (a server in a container), ``TEST_AMQP_URL`` must be set, and is then used as
it is: give it a vhost that nobody else uses, and do not run tests in parallel.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from urllib.parse import unquote, urlsplit

import pytest

from tests.services.availability import answers, service_missing

LOCAL_SERVER = "amqp://guest:guest@127.0.0.1:5672/"
EXTRA_PROGRAM_FOLDERS = ("/usr/sbin", "/opt/homebrew/sbin", "/usr/local/sbin")
CONTROL_SECONDS = 60.0
MADE_AT_ONCE = 4
MAKE = (
    'ok = rabbit_vhost:add(V, <<"tests">>), ok = rabbit_auth_backend_internal:set_permissions('
    '<<"{user}">>, V, <<".*">>, <<".*">>, <<".*">>, <<"tests">>)'
)
DELETE = 'rabbit_vhost:delete(V, <<"tests">>)'


@pytest.fixture(scope="session")
def rabbitmq_server() -> str:
    """The URL of the shared server, with the vhost that was configured."""
    url = os.environ.get("TEST_AMQP_URL", LOCAL_SERVER)
    parts = urlsplit(url)
    if not answers(parts.hostname or "127.0.0.1", parts.port or 5672):
        service_missing(f"no RabbitMQ at {parts.hostname}:{parts.port or 5672} (Debian: apt install rabbitmq-server)")
    return url


@pytest.fixture(scope="session")
def rabbitmq_control() -> str | None:
    """The path of a ``rabbitmqctl`` that this user may run, else ``None``."""
    search = os.pathsep.join((os.environ.get("PATH", ""), *EXTRA_PROGRAM_FOLDERS))
    program = shutil.which("rabbitmqctl", path=search)
    return program if program and _control(program, "list_vhosts") else None


@pytest.fixture(scope="session")
def rabbitmq_vhosts(rabbitmq_server: str, rabbitmq_control: str | None) -> Iterator[_Vhosts | None]:
    """Empty vhosts without end, deleted when the session ends; ``None`` where there is no ``rabbitmqctl``."""
    if rabbitmq_control is None:
        yield None
        return
    vhosts = _Vhosts(rabbitmq_control, unquote(urlsplit(rabbitmq_server).username or "guest"))
    try:
        yield vhosts
    finally:
        vhosts.delete()


@pytest.fixture
def rabbitmq_url(rabbitmq_server: str, rabbitmq_vhosts: _Vhosts | None) -> str:
    """The URL of an empty vhost of this test's own."""
    if rabbitmq_vhosts is None:
        if "TEST_AMQP_URL" not in os.environ:
            service_missing("rabbitmqctl cannot be run by this user: set TEST_AMQP_URL to a vhost for tests")
        return rabbitmq_server
    return urlsplit(rabbitmq_server)._replace(path=f"/{rabbitmq_vhosts.take()}").geturl()


class _Vhosts:
    """Made several at once, and the used ones deleted with them: an Erlang machine takes longer than most tests.

    Not more are kept, as each takes some of the server's file handles, of which there may be a thousand.
    """

    def __init__(self, program: str, user: str) -> None:
        self._program = program
        self._make = MAKE.format(user=user)
        self._made: list[str] = []
        self._unused: list[str] = []

    def take(self) -> str:
        """The name of one that nobody has used."""
        if not self._unused:
            several = [f"paidonce-test-{uuid.uuid4().hex[:12]}" for _ in range(MADE_AT_ONCE)]
            old = self._made.copy()
            self._made += several
            if not _eval(self._program, [_for_each(old, DELETE), _for_each(several, self._make)]):
                service_missing("rabbitmqctl eval could not make vhosts")
            self._made = several
            self._unused = several.copy()
        return self._unused.pop()

    def delete(self) -> None:
        """All that are left, with what is in them."""
        if self._made:
            _eval(self._program, [_for_each(self._made, DELETE)])


def _for_each(vhosts: list[str], action: str) -> str:
    """Erlang that does it with each of them as ``V``."""
    names = ", ".join(f'<<"{vhost}">>' for vhost in vhosts)
    return f"lists:foreach(fun(V) -> {action} end, [{names}])"


def _eval(program: str, expressions: list[str]) -> bool:
    """True if the server did it."""
    return _control(program, "eval", f"{', '.join(expressions)}.")


def _control(program: str, *arguments: str) -> bool:
    """True if it succeeded."""
    try:
        done = subprocess.run(
            [program, *arguments], capture_output=True, timeout=CONTROL_SECONDS, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
