"""Addresses as people write them, and what each library is told."""

from __future__ import annotations

import re
import ssl
from pathlib import Path
from urllib.parse import quote

import pytest
from celery.app.utils import bugreport
from kombu import Connection
from sqlalchemy.engine import make_url

from paidonce.broker.celery_app import build_celery_app
from paidonce.configuration.broker_addresses import read_address, with_usual_scheme
from paidonce.configuration.server_urls import check_store_url
from paidonce.settings import load_settings
from paidonce_models.errors import ConfigurationError

HARD = "p@ss:w/o%r#d?ü&+=;,x [y]"
QUOTED = quote(HARD, safe="")
SENTINEL = "sentinel://u:{}@h/0?master_name=m"


@pytest.fixture(autouse=True)
def empty_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("scheme", ["redis", "rediss", "amqp", "amqps", "valkey", "valkeys"])
def test_a_password_of_any_characters_arrives(scheme: str) -> None:
    settings = load_settings(broker_url=f"{scheme}://us%40er:{QUOTED}@h:1/2")
    with build_celery_app(settings).connection() as connection:
        assert (connection.userid, connection.password) == ("us@er", HARD)
        assert HARD not in connection.as_uri() and QUOTED not in connection.as_uri()


def test_each_sentinel_has_the_masters_password_and_the_transport_theirs() -> None:
    address = read_address(f"sentinel://u:{QUOTED}@h1,[::1]:2/3?master_name=m&sentinel_password={QUOTED}")
    assert address.url == f"sentinel://u:{QUOTED}@h1:26379/3;sentinel://u:{QUOTED}@[::1]:2/3"
    kwargs = address.transport_options["sentinel_kwargs"]
    assert (address.transport_options["master_name"], kwargs["password"]) == ("m", HARD)
    with Connection(address.url) as connection:
        assert (connection.password, connection.virtual_host) == (HARD, "3")
        assert HARD not in repr(address)


def test_sentinels_may_stand_in_addresses_of_their_own() -> None:
    one = read_address("sentinel://:p@h1:1,h2:2/0?master_name=m")
    several = read_address("sentinel://:p@h1:1;sentinel://:p@h2:2/0?master_name=m")
    assert one == several


def test_certificates_are_verified_unless_the_address_says_otherwise(tmp_path: Path) -> None:
    authority = tmp_path / "ca.pem"
    authority.write_text("")
    redis = read_address(f"rediss://h/0?ssl_ca_certs={authority}&socket_timeout=3")
    assert redis.url == "rediss://h/0?socket_timeout=3"
    assert redis.kombu_ssl == {
        "ssl_cert_reqs": ssl.CERT_REQUIRED,
        "ssl_check_hostname": True,
        "ssl_ca_certs": str(authority),
    }
    amqp = read_address(f"amqps://broker.internal/v?cacertfile={authority}&verify=verify_peer")
    assert amqp.kombu_ssl == {
        "cert_reqs": ssl.CERT_REQUIRED,
        "server_hostname": "broker.internal",
        "ca_certs": str(authority),
    }
    assert read_address("amqps://h").kombu_ssl == {"cert_reqs": ssl.CERT_REQUIRED, "server_hostname": "h"}
    assert read_address("amqps://h?ssl_check_hostname=false").kombu_ssl == {"cert_reqs": ssl.CERT_REQUIRED}
    for spelled in ("none", "CERT_NONE", "verify_none"):
        found = read_address(f"rediss://h?ssl_cert_reqs={spelled}").kombu_ssl
        assert found == {"ssl_cert_reqs": ssl.CERT_NONE, "ssl_check_hostname": False}


@pytest.mark.parametrize("url", ["redis://h/0", "amqp://h", "redis+socket:///run/x.sock", "memory://"])
def test_addresses_without_tls_stay_as_they_are(url: str) -> None:
    address = read_address(url)
    assert (address.url, address.kombu_ssl, address.transport_options) == (url, None, {})


def test_other_names_of_the_same_schemes() -> None:
    assert with_usual_scheme("valkeys://h") == "rediss://h"
    assert with_usual_scheme("unix:///run/x.sock") == "redis+socket:///run/x.sock"
    assert with_usual_scheme("redis+sentinel://a;redis+sentinel://b/0") == "sentinel://a;sentinel://b/0"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (f"unix://us%40er:{QUOTED}@/run/x.sock?db=3", f"us%40er:{QUOTED}@/run/x.sock?virtual_host=3"),
        (f"unix://:{QUOTED}@/run/x.sock?virtual_host=3", f":{QUOTED}@/run/x.sock?virtual_host=3"),
        (f"unix:///run/x.sock?username=us%40er&password={QUOTED}", f"us%40er:{QUOTED}@/run/x.sock"),
        (f"unix://us%40er@/run/x.sock?db=2&password={QUOTED}", f"us%40er:{QUOTED}@/run/x.sock?virtual_host=2"),
    ],
)
def test_a_socket_has_its_database_and_password_for_the_broker_as_for_the_breakers(url: str, expected: str) -> None:
    assert read_address(with_usual_scheme(url)).url == f"redis+socket://{expected}"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("unix://:hush@/run/x.sock?db=first", "the number of a Redis database as db"),
        ("sentinel://:hush@h/0", "master_name=NAME"),
        ("sentinel://:hush@h:x/0?master_name=m", "a port that is a number"),
        ("sentinel://:hush@h,/0?master_name=m", "a host for each sentinel"),
        ("sentinel://:hush@h/0?master_name=m&mastername=x", "no option mastername"),
        ("sentinel://:hush@h/x?master_name=m", "the number of a Redis database"),
        ("sentinel://:hush@h;redis://h2/0?master_name=m", "the same scheme"),
        ("redis://:hush@h/0?ssl_ca_certs=/ca.pem", "rediss://, sentinels:// or amqps://"),
        ("rediss://:hush@h/0?ssl_ca_certs=/no/such/ca.pem", "a file that can be read as ssl_ca_certs"),
        ("rediss://:hush@h/0?ssl_cert_reqs=maybe", "required, optional or none"),
        ("rediss://:hush@h/0?ssl_versions=3", "no option ssl_versions of TLS"),
    ],
)
def test_what_cannot_be_used_is_told_where_it_was_set(url: str, expected: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(broker_url=url)
    assert caught.value.message.startswith("PAIDONCE_BROKER_URL (set in the call)")
    assert expected in caught.value.message and "hush" not in caught.value.message


@pytest.mark.parametrize("password", ["se#cret", "se/cret", "se?cret", "se?cret=1", "se[cret", "se?ssl_cret=1"])
@pytest.mark.parametrize("address", ["redis://u:{}@h/0", "rediss://u:{}@h/0", "amqp://u:{}@h/v", SENTINEL])
def test_a_password_that_is_not_quoted_is_told_without_any_part_of_it(address: str, password: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(broker_url=address.format(password))
    assert "percent-encoded" in caught.value.message
    assert not re.search(r"\bse\b|cret", caught.value.message)


@pytest.mark.parametrize("password", ["se@cret", "se@cr/et", "se@cr,et"])
def test_no_part_of_a_stores_password_becomes_a_host(password: str) -> None:
    with pytest.raises(ConfigurationError, match="percent-encoded") as caught:
        load_settings(database_url=f"postgresql://u:{password}@h/db")
    assert not re.search(r"\bse\b|cr,?et", caught.value.message)


@pytest.mark.parametrize("scheme", ["redis", "rediss", "amqps", "sentinel"])
def test_what_celery_shows_of_its_configuration_holds_no_password(scheme: str) -> None:
    query = f"?master_name=m&sentinel_password={QUOTED}" if scheme == "sentinel" else ""
    app = build_celery_app(load_settings(broker_url=f"{scheme}://u:{QUOTED}@h/0{query}"))
    shown = repr(app.conf.table(with_defaults=True, censored=True)) + app.conf.humanize() + bugreport(app)
    assert HARD not in shown and QUOTED not in shown and "p%40ss" not in shown and "p@ss" not in shown


def test_several_hosts_of_postgresql_and_hard_passwords() -> None:
    url = check_store_url(f"postgresql+psycopg://us%40er:{QUOTED}@h1:1,h2:2,h3/db?sslmode=require")
    parsed = make_url(url)
    assert (parsed.username, parsed.password, parsed.database) == ("us@er", HARD, "db")
    assert (parsed.query["host"], parsed.query["sslmode"]) == (("h1:1", "h2:2", "h3"), "require")


def test_a_store_that_cannot_be_read_is_told_without_its_password() -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(database_url="postgresql://u:hush@h:port/db")
    assert "a port that is a number" in caught.value.message and "hush" not in caught.value.message
