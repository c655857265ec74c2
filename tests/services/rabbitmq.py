"""RabbitMQ for tests: a shared server, and on it a vhost of each test's own.

The server is ``TEST_AMQP_URL``, else ``guest`` on 127.0.0.1:5672. Vhosts are made by ``rabbitmqctl``, so no management
plugin is needed. Where it cannot be run (a server in a container), ``TEST_AMQP_URL`` must be set, and is then used as
it is: give it a vhost that nobody else uses, and do not run tests in parallel.
"""

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
CONTROL_SECONDS = 30.0


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


@pytest.fixture
def rabbitmq_url(rabbitmq_server: str, rabbitmq_control: str | None) -> Iterator[str]:
    """The URL of an empty vhost of this test's own."""
    if rabbitmq_control is None:
        if "TEST_AMQP_URL" not in os.environ:
            service_missing("rabbitmqctl cannot be run by this user: set TEST_AMQP_URL to a vhost for tests")
        yield rabbitmq_server
        return
    vhost = f"paidonce-test-{uuid.uuid4().hex[:12]}"
    parts = urlsplit(rabbitmq_server)
    user = unquote(parts.username or "guest")
    try:
        for arguments in (("add_vhost", vhost), ("set_permissions", "-p", vhost, user, ".*", ".*", ".*")):
            if not _control(rabbitmq_control, *arguments):
                service_missing(f"rabbitmqctl {' '.join(arguments)} failed")
        yield parts._replace(path=f"/{vhost}").geturl()
    finally:
        _control(rabbitmq_control, "delete_vhost", vhost)


def _control(program: str, *arguments: str) -> bool:
    """True if it succeeded."""
    try:
        done = subprocess.run(
            [program, *arguments], capture_output=True, timeout=CONTROL_SECONDS, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
