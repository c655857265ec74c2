"""`paidonce db` and `paidonce broker`."""

from __future__ import annotations

import pytest

from paidonce_models.database.schema import head_revision
from tests.cli.conftest import Project


@pytest.fixture
def project(new_project: Project) -> Project:
    """Without a store: what creates it is tested here."""
    return new_project


def test_upgrade_makes_the_schema_once_and_check_agrees(project: Project, database_url: str) -> None:
    before = project.paidonce("db", "check", "--json", DATABASE_URL=database_url)
    assert (before.code, before.error["code"]) == (3, "schema_mismatch")
    first = project.paidonce("db", "upgrade", "--json", DATABASE_URL=database_url).document
    second = project.paidonce("db", "upgrade", "--json", DATABASE_URL=database_url).document
    assert "error" not in first, first
    assert (first["was"], first["schema"], first["changed"]) == (None, head_revision(), True)
    assert (second["was"], second["changed"]) == (head_revision(), False)
    assert project.paidonce("db", "check", DATABASE_URL=database_url).code == 0


@pytest.mark.service
def test_an_empty_postgresql_store_is_not_changed_without_being_asked(project: Project, postgres_database: str) -> None:
    done = project.paidonce("submit", "adder", "--json", DATABASE_URL=postgres_database)
    assert (done.code, done.error["code"]) == (3, "schema_mismatch")
    assert "paidonce db upgrade" in done.error["message"]
    assert project.paidonce("db", "check", DATABASE_URL=postgres_database).code == 3


def test_a_schema_from_the_future_is_left_alone(project: Project) -> None:
    project.paidonce("db", "upgrade")
    with project.client().database.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE paidonce_version SET version_num = '0999'")
    done = project.paidonce("db", "upgrade", "--json")
    assert (done.code, done.error["code"]) == (3, "schema_mismatch")
    assert "install the version that made it" in done.error["message"]


@pytest.mark.parametrize("arguments", [["runs"], ["db", "upgrade"], ["submit", "adder"]], ids=" ".join)
def test_a_file_that_is_no_store_is_refused(project: Project, arguments: list[str]) -> None:
    (project.folder / "store.db").write_text("something else entirely, and long enough to be read as a header" * 40)
    done = project.paidonce(*arguments, "--json", DATABASE_URL="sqlite:///store.db")
    assert (done.code, done.error["code"]) == (3, "store_unreachable")
    assert "file is not a database" in done.error["message"]


def test_a_setting_that_cannot_be_used_is_named(project: Project) -> None:
    done = project.paidonce("runs", "--json", LEASE_SECONDS="ten")
    assert (done.code, done.error["code"]) == (2, "configuration")
    assert "PAIDONCE_LEASE_SECONDS (set in the environment)" in done.error["message"]


def test_the_embedded_broker_can_be_seen_and_stopped(project: Project) -> None:
    assert project.paidonce("broker", "status", "--json").document["running"] is False
    project.paidonce("submit", "adder")
    status = project.paidonce("broker", "status", "--json").document
    assert status["running"] is True and status["pid"] > 0
    assert project.paidonce("broker", "status").out.startswith("The embedded Valkey")
    assert project.paidonce("broker", "stop", "--json").document == {"stopped": True}
    assert project.paidonce("broker", "stop", "--json").document == {"stopped": False}


def test_a_configured_broker_is_asked_and_never_stopped(project: Project, redis_url: str) -> None:
    status = project.paidonce("broker", "status", "--json", BROKER_URL=redis_url).document
    assert status == {"embedded": False, "running": True, "url": redis_url}
    assert project.paidonce("broker", "stop", BROKER_URL=redis_url).code == 2


def test_the_broker_of_a_namespace_says_where_its_submissions_go(project: Project, redis_url: str) -> None:
    settings = {"BROKER_URL": redis_url, "NAMESPACE": "shop"}
    status = project.paidonce("broker", "status", "--json", **settings).document
    assert (status["namespace"], status["submit_queue"]) == ("shop", "paidonce@shop:submit")
    assert "namespace shop go to the queue paidonce@shop:submit" in project.paidonce("broker", "status", **settings).out
    refused = project.paidonce("broker", "status", "--json", BROKER_URL=redis_url, NAMESPACE="a b")
    assert refused.code == 2 and "PAIDONCE_NAMESPACE" in refused.error["message"]
