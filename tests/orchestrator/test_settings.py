"""Settings: where they are read, which place wins, and what a bad value says."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from paidonce.settings import Settings, describe_settings, load_settings
from paidonce_models.errors import ConfigurationError


@pytest.fixture(autouse=True)
def empty_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder without settings, as the current one, and an environment without ours."""
    for name in list(os.environ):
        if name.startswith("PAIDONCE_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_nothing_set_means_sqlite_and_the_embedded_broker_under_the_current_folder(empty_project: Path) -> None:
    settings = load_settings()
    assert settings.home == empty_project / ".paidonce"
    assert settings.database_url == f"sqlite:///{empty_project}/.paidonce/paidonce.db"
    assert (settings.broker_url, settings.redis_url, settings.agents) == (None, None, ())
    assert (settings.lease_seconds, settings.heartbeat_seconds, settings.sweep_seconds) == (10, 3, 2)
    assert settings.max_payload_bytes == 50 * 1024 * 1024


def test_the_environment_wins_over_dotenv_and_dotenv_over_pyproject(
    empty_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (empty_project / "pyproject.toml").write_text(
        "[tool.paidonce]\nnamespace = 'project'\nmax_depth = 1\ncache-size = 7\n"
    )
    (empty_project / ".env").write_text("PAIDONCE_NAMESPACE=dotenv\nPAIDONCE_MAX_DEPTH=2\n")
    monkeypatch.setenv("PAIDONCE_NAMESPACE", "environment")
    settings = load_settings()
    assert (settings.namespace, settings.max_depth, settings.cache_size) == ("environment", 2, 7)
    assert load_settings(namespace="option", max_depth=None).namespace == "option"


def test_a_parent_folders_pyproject_configures_a_package_inside_it(
    empty_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = empty_project / "services" / "search"
    inner.mkdir(parents=True)
    (inner / "pyproject.toml").write_text("[project]\nname = 'search'\n")
    (empty_project / "pyproject.toml").write_text(
        "[tool.paidonce]\nhome = 'data'\ndatabase_url = 'sqlite:///runs.db'\nagents = ['a', 'b']\n"
        "policies = 'conf/policies.yaml'\n"
    )
    monkeypatch.chdir(inner)
    settings = load_settings()
    assert settings.home == empty_project / "data"
    assert settings.policies == empty_project / "conf" / "policies.yaml"
    assert settings.database_url == f"sqlite:///{empty_project}/runs.db"
    assert settings.agents == ("a", "b")


@pytest.mark.parametrize("text", ["shop.agents,tools", "shop.agents tools", " shop.agents, tools ,shop.agents"])
def test_agents_are_separated_by_commas_or_spaces(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAIDONCE_AGENTS", text)
    assert load_settings().agents == ("shop.agents", "tools")


@pytest.mark.parametrize(
    "url", ["postgres://u:p@h/d", "postgresql://u:p@h/d", "postgresql+psycopg://u:p@h/d"], ids=lambda url: url[:12]
)
def test_postgresql_urls_are_normalised_to_psycopg(url: str) -> None:
    assert load_settings(database_url=url).database_url == "postgresql+psycopg://u:p@h/d"


def test_an_empty_value_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAIDONCE_BROKER_URL", "")
    assert load_settings().broker_url is None


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("LEASE_SECONDS", "ten", "a valid number"),
        ("LEASE_SECONDS", "0", "greater than 0"),
        ("LEASE_SECONDS", "inf", "a finite number"),
        ("MAX_DEPTH", "2.5", "a valid integer"),
        ("NAMESPACE", "a b", "1 to 64 characters"),
        ("DATABASE_URL", "mysql://h/d", "a sqlite:///FILE or postgresql://"),
        ("DATABASE_URL", "sqlite://", "the URL of a file"),
        ("DATABASE_URL", "sqlite:///:memory:", "the URL of a file"),
        ("BROKER_URL", "localhost:6379", "a URL of one of the schemes amqp"),
        ("REDIS_URL", "amqp://h", "a URL of one of the schemes redis"),
    ],
)
def test_a_bad_value_names_where_it_was_set_what_was_expected_and_what_was_found(
    name: str, value: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"PAIDONCE_{name}", value)
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    assert f"PAIDONCE_{name} (set in the environment): expected" in caught.value.message
    assert expected in caught.value.message
    assert repr(value) in caught.value.message


def test_a_bad_value_in_a_file_names_that_file(empty_project: Path) -> None:
    (empty_project / ".env").write_text("PAIDONCE_SHARDS=none\n")
    (empty_project / "pyproject.toml").write_text("[tool.paidonce]\nconcurrency = 'many'\n")
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    assert f"PAIDONCE_SHARDS (set in {empty_project}/.env)" in caught.value.message
    assert f"PAIDONCE_CONCURRENCY (set in [tool.paidonce] of {empty_project}/pyproject.toml)" in caught.value.message


def test_a_lease_must_outlast_two_heartbeats() -> None:
    with pytest.raises(ConfigurationError, match="PAIDONCE_LEASE_SECONDS is 4 and PAIDONCE_HEARTBEAT_SECONDS is 3"):
        load_settings(lease_seconds=4)


def test_passwords_are_in_no_message_and_no_representation() -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(broker_url="http://user:hush@broker")
    assert "hush" not in caught.value.message
    assert "hush" not in repr(load_settings(database_url="postgresql://u:hush@h/d", broker_url="amqp://u:hush@h"))


@pytest.mark.parametrize(
    ("setting", "url", "expected"),
    [
        ("database_url", "postgresql://u:hush@h:port/d", "a port that is a number"),
        ("broker_url", "amqp://u:hush@h:port//", "a port that is a number"),
        ("broker_url", "redis://u:hush@h/first", "the number of a Redis database"),
        ("broker_url", "redis://h/0?password=hush", "a URL that kombu can read"),
        ("broker_url", "redis://u:hush@h/0?surprise=1", "'surprise'"),
        ("broker_url", "sentinel://:hush@h:26379", "master_name=NAME"),
        ("redis_url", "redis://:hu@hush@h/first", "the number of a Redis database"),
    ],
)
def test_a_url_that_no_library_can_use_is_refused_where_it_was_set(setting: str, url: str, expected: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(**{setting: url})
    assert caught.value.message.startswith(f"PAIDONCE_{setting.upper()} (set in ")
    assert expected in caught.value.message
    assert "hush" not in caught.value.message


def test_broken_toml_names_the_file_and_the_place(empty_project: Path) -> None:
    (empty_project / "pyproject.toml").write_text("[tool.paidonce]\nhome = \n")
    with pytest.raises(ConfigurationError, match=r"pyproject\.toml is not valid TOML: .*line 2"):
        load_settings()


def test_unknown_names_give_one_warning_with_the_nearest_known_name(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PAIDONCE_BROKER_URI", "redis://h")
    monkeypatch.setenv("PAIDONCE_ZZZ", "1")
    monkeypatch.setenv("PAIDONCE_TEST_SCENARIOS", "5")
    with caplog.at_level(logging.WARNING, logger="paidonce.settings"):
        load_settings()
    (record,) = caplog.records
    assert "PAIDONCE_BROKER_URI in the environment, did you mean PAIDONCE_BROKER_URL?" in record.getMessage()
    assert "PAIDONCE_ZZZ in the environment" in record.getMessage()
    assert "SCENARIOS" not in record.getMessage()


def test_settings_cannot_be_changed() -> None:
    settings = load_settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.shards = 4  # type: ignore[misc]  # the point of the test


def test_every_setting_is_described_with_its_default() -> None:
    described = describe_settings()
    assert [line.name for line in described] == [f"PAIDONCE_{name.upper()}" for name in Settings.model_fields]
    assert all(line.meaning.endswith(".") and line.default for line in described)


def test_a_name_that_is_no_setting_is_refused_from_code() -> None:
    with pytest.raises(ConfigurationError, match="no setting named leases"):
        load_settings(leases=3)
