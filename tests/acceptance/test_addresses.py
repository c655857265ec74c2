"""Whole runs over servers that ask for passwords and prove who they are; and what is said where they refuse."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
import redis
from sqlalchemy.engine import make_url

from tests.acceptance.agents.flow import gathers, nested
from tests.acceptance.conftest import SHARED_MODULES
from tests.acceptance.site import RUN_SECONDS, Site
from tests.services.availability import free_port
from tests.services.certificates import Certificates
from tests.services.postgres import PostgresCluster
from tests.services.private_rabbitmq import TlsRabbitMq
from tests.services.secured import MASTER, StartRedis, Watched
from tests.services.valkey import RedisServer

pytestmark = pytest.mark.neighbour

PASSWORD = "p@ss:w/o%r#d?ü&+=;,x"
QUOTED = quote(PASSWORD, safe="")
WRONG = "wr@ng:s/e%c#r?et&+=9"
WRONG_QUOTED = quote(WRONG, safe="")
LEAST_RIGHTS = (
    "~paidonce* ~_kombu.binding* ~*.celery.pidbox* ~celeryev* &* "
    "+@read +@write +@connection +@transaction +@pubsub +@scripting +time -@dangerous +info"
)

STATUS = (("broker", "status"), "paidonce.cli")
STARTS = [(("worker", *SHARED_MODULES), "paidonce.cli"), (("-A", "paidonce_workers", "worker"), "celery")]
COMMANDS = [(("submit", "leaf", "--input", '{"number": 1}'), "paidonce.cli"), *STARTS]

MakeSite = Callable[..., Site]


def play(site: Site, *, own_command: bool = False) -> None:
    """A worker, by Celery's command or by ours, steps and children over this site's servers."""
    worker = site.own_worker(*SHARED_MODULES) if own_command else site.worker(*SHARED_MODULES)
    assert site.client.submit(gathers, {"count": 5}).result(RUN_SECONDS) == [0, 2, 4, 6, 8]
    assert site.client.submit(nested, {"levels": 2}).result(RUN_SECONDS) == 2
    assert not said_secrets(worker.log)


def said_secrets(text: str) -> list[str]:
    """Which of our secrets a text holds, however they are spelled."""
    return [
        each for each in (PASSWORD, QUOTED, WRONG, WRONG_QUOTED, "wr@ng", "wr%40ng", "p@ss", "p%40ss") if each in text
    ]


def said(site: Site, *arguments: str, module: str = "paidonce.cli") -> tuple[int, str]:
    """How a command ends, and all that it says."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=site.folder,
        env=site.environment(SHARED_MODULES),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_sentinels_name_the_master_before_and_after_it_is_lost(make_site: MakeSite, start_redis: StartRedis) -> None:
    watched = Watched(start_redis, password="of-the-servers", sentinel_password="of-the-sentinels")
    query = f"master_name={MASTER}&sentinel_password=of-the-sentinels"
    site = make_site(broker_url=f"sentinel://:of-the-servers@{watched.hosts}/0?{query}")
    play(site)
    with redis.Redis(port=watched.master.port, password="of-the-servers") as client:
        assert client.info("clients")["connected_clients"] > 3
    watched.fail_over()
    assert site.client.submit(gathers, {"count": 3}).result(2 * RUN_SECONDS) == [0, 2, 4]
    with redis.Redis(port=watched.replica.port, password="of-the-servers") as client:
        assert client.keys("_kombu.binding.*")
    log = site.workers[0].log
    assert "of-the-servers" not in log and "of-the-sentinels" not in log


def test_a_redis_user_with_the_least_rights_will_do(make_site: MakeSite, start_redis: StartRedis) -> None:
    server = start_redis("acl")
    with redis.Redis(port=server.port) as client:
        client.execute_command("ACL", "SETUSER", "wörk@er", "on", f">{PASSWORD}", *LEAST_RIGHTS.split())
        client.execute_command("ACL", "LOG", "RESET")
        site = make_site(broker_url=f"redis://{quote('wörk@er', safe='')}:{QUOTED}@127.0.0.1:{server.port}/3")
        play(site)
        assert client.execute_command("ACL", "LOG") == []
    assert {each[0] for each in said_over_control(site)} == {"pong"}


def said_over_control(site: Site) -> list[tuple[str]]:
    code, text = said(site, "-A", "paidonce_workers", "inspect", "ping", "--timeout", "10", module="celery")
    assert code == 0, text
    return [("pong",)] if "pong" in text else [(text,)]


SHOP = """
from paidonce import agent, tool


@tool
def stock(item: str) -> int:
    return len(item)


@agent
async def shop(item: str) -> int:
    return await stock(item)
"""


@pytest.mark.parametrize(
    ("broker", "breakers"),
    [
        (f"unix://:{QUOTED}@/SOCKET?db=3", f"redis+socket://:{QUOTED}@/SOCKET?virtual_host=5"),
        (f"redis+socket:///SOCKET?virtual_host=3&password={QUOTED}", f"unix:///SOCKET?db=5&password={QUOTED}"),
    ],
    ids=["in front", "as an option"],
)
def test_redis_on_a_unix_socket_with_a_password(
    make_site: MakeSite, start_redis: StartRedis, broker: str, breakers: str
) -> None:
    with tempfile.TemporaryDirectory(prefix="paidonce-") as folder:  # a socket's path has 100 characters at the most
        socket = f"{folder}/redis.sock"
        server = start_redis("socket", client={"password": PASSWORD}, requirepass=PASSWORD, unixsocket=socket)
        addresses = {"broker_url": broker, "redis_url": breakers}
        site = make_site(**{name: url.replace("/SOCKET", socket) for name, url in addresses.items()})
        (site.folder / "shop.py").write_text(SHOP)
        worker = site.own_worker("shop")
        assert site.stranger.submit("shop", {"item": "chair"}).result(RUN_SECONDS) == 5

        def keys(database: int) -> set[str]:
            with redis.Redis(port=server.port, password=PASSWORD, db=database, decode_responses=True) as client:
                return set(client.keys("*"))

        assert "_kombu.binding.celery.pidbox" in keys(3)
        assert "paidonce:default:breaker:shop.stock" in keys(5)
        assert not keys(0)
        assert worker.stop() == 0 and not said_secrets(worker.log), worker.log


def test_redis_over_tls_with_an_authority_of_ones_own(
    make_site: MakeSite, tls_redis: RedisServer, certificates: Certificates, other_authority: Path
) -> None:
    url = f"rediss://127.0.0.1:{tls_redis.port}/0?ssl_ca_certs={certificates.authority}"
    play(make_site(broker_url=url))
    for refused in (
        f"rediss://127.0.0.1:{tls_redis.port}/0",
        url.replace(str(certificates.authority), str(other_authority)),
    ):
        code, text = said(make_site(broker_url=refused), "broker", "status")
        assert code == 3 and "certificate verify failed" in text, text
    code, text = said(
        make_site(broker_url=f"rediss://127.0.0.1:{tls_redis.port}/0?ssl_cert_reqs=none"), "broker", "status"
    )
    assert code == 0, text


@pytest.mark.timeout(300)  # a server and ten commands
def test_rabbitmq_with_a_tls_listener_and_certificates_on_both_sides(
    make_site: MakeSite, tls_rabbitmq: TlsRabbitMq, certificates: Certificates, other_authority: Path
) -> None:
    """A wrong one is refused before the password leaves this process."""
    ours = f"ssl_certfile={certificates.certificate}&ssl_keyfile={certificates.key}"
    play(make_site(broker_url=tls_rabbitmq.url(f"ssl_ca_certs={certificates.authority}&{ours}")), own_command=True)
    met = tls_rabbitmq.log.count("accepting AMQP connection")
    assert met > 0
    for query in (ours, f"ssl_ca_certs={other_authority}&{ours}"):
        site = make_site(broker_url=tls_rabbitmq.url(query))
        for arguments, module in (STATUS, *STARTS):
            code, text = said(site, *arguments, module=module)
            assert code == 3 and text.count("certificate verify failed") == 1, text
            assert "Traceback" not in text and not said_secrets(text), text
    code, text = said(make_site(broker_url=tls_rabbitmq.url(f"ssl_ca_certs={certificates.authority}")), *STATUS[0])
    # The server's word ("certificate required") is lost where it closes before we have read it.
    assert code == 3 and text.count("cannot be reached") == 1 and not said_secrets(text), text
    assert tls_rabbitmq.log.count("accepting AMQP connection") == met
    code, text = said(make_site(broker_url=tls_rabbitmq.url(f"verify=verify_none&{ours}")), *STATUS[0])
    assert code == 0, text
    wrong = tls_rabbitmq.url(f"cacertfile={certificates.authority}&{ours}", password=WRONG)
    code, text = said(make_site(broker_url=wrong), *STATUS[0])
    assert code == 3 and not said_secrets(text), text


@pytest.mark.service
def test_postgresql_over_tls_with_a_password_and_a_service_file(
    make_site: MakeSite,
    private_postgres: PostgresCluster,
    certificates: Certificates,
    redis_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = private_postgres
    with psycopg.connect(cluster.url().replace("+psycopg", ""), autocommit=True) as owner:
        owner.execute("CREATE ROLE worker LOGIN")
        owner.execute(psycopg.sql.SQL("ALTER ROLE worker PASSWORD {}").format(PASSWORD))
        owner.execute("CREATE DATABASE store OWNER worker")
    cluster.require_tls(certificates)
    tls = f"sslmode=verify-full&sslrootcert={certificates.authority}"
    site = make_site(
        database_url=f"postgresql://worker:{QUOTED}@localhost:1,127.0.0.1:{cluster.port}/store?{tls}",
        broker_url=redis_url,
        schema="ours",
    )
    site.upgrade()
    play(site)

    services, passwords = tmp_path / "services.conf", tmp_path / "passwords"
    services.write_text(f"[store]\nhost=127.0.0.1\nport={cluster.port}\ndbname=store\nuser=worker\nsslmode=require\n")
    escaped = PASSWORD.replace("\\", "\\\\").replace(":", "\\:")
    passwords.write_text(f"*:*:*:*:{escaped}\n")
    passwords.chmod(0o600)
    monkeypatch.setenv("PGSERVICEFILE", str(services))
    given = make_site(database_url=f"postgresql:///?service=store&passfile={passwords}", schema="ours")
    code, text = said(given, "runs")
    assert code == 0 and "gathers" in text, text


def test_a_redis_cluster_is_refused_by_its_name(make_site: MakeSite, start_redis: StartRedis) -> None:
    server = start_redis("cluster", cluster_enabled="yes", cluster_port=str(free_port()), databases="1")
    site = make_site(broker_url=server.url())
    for arguments, module in (STATUS, *STARTS):
        code, text = said(site, *arguments, module=module)
        assert code == 2 and "belongs to a Redis Cluster" in text, text


@pytest.mark.service
def test_no_command_says_the_wrong_password_of_the_store(
    make_site: MakeSite, private_postgres: PostgresCluster
) -> None:
    private_postgres.require_passwords()
    port = private_postgres.port
    site = make_site(database_url=f"postgresql://postgres:{WRONG_QUOTED}@127.0.0.1:{port}/postgres")
    for arguments, module in [(("db", "check"), "paidonce.cli"), *COMMANDS]:
        code, text = said(site, *arguments, module=module)
        assert code == 3 and "password authentication failed" in text and not said_secrets(text), text


@pytest.mark.parametrize("kind", ["redis", "sentinel", pytest.param("amqp", marks=pytest.mark.service)])
def test_no_command_says_the_wrong_password_of_the_broker(
    make_site: MakeSite, request: pytest.FixtureRequest, start_redis: StartRedis, kind: str
) -> None:
    if kind == "amqp":
        server = make_url(request.getfixturevalue("rabbitmq_url"))
        broker = f"amqp://guest:{WRONG_QUOTED}@{server.host}:{server.port}/{server.database}"
    else:
        port = start_redis("secured", client={"password": "right"}, requirepass="right").port
        query = f"?master_name=m&sentinel_password={WRONG_QUOTED}" if kind == "sentinel" else ""
        broker = f"{kind}://user:{WRONG_QUOTED}@127.0.0.1:{port}/0{query}"
    site = make_site(broker_url=broker)
    for arguments, module in [STATUS, *COMMANDS]:
        code, text = said(site, *arguments, module=module)
        assert code == (0 if arguments[0] == "submit" else 3) and not said_secrets(text), text
