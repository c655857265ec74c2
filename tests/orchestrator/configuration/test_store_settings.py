"""Where the tables lie and what stands before the server, as an operator says it."""

from __future__ import annotations

from pathlib import Path

import pytest

from paidonce.settings import load_settings
from paidonce.store_access import open_store
from paidonce_models.errors import ConfigurationError

STORE = "postgresql://localhost/x"


@pytest.fixture(autouse=True)
def empty_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_schema_comes_from_the_environment_or_the_projects_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.paidonce]\nschema = "of_the_file"\n')
    assert load_settings(database_url=STORE).schema == "of_the_file"
    monkeypatch.setenv("PAIDONCE_SCHEMA", "ours")
    monkeypatch.setenv("PAIDONCE_POOLER", "transaction")
    settings = load_settings(database_url=STORE)
    assert (settings.schema, settings.pooler) == ("ours", "transaction")
    store = open_store(settings)
    assert store.schema == "ours"
    store.close()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"schema": "ours"}, "PAIDONCE_DATABASE_URL names SQLite, which has no schemas"),
        (
            {"schema": "Ours", "database_url": STORE},
            "PAIDONCE_SCHEMA (set in the call): expected a name of small letters",
        ),
        ({"pooler": "perhaps", "database_url": STORE}, "expected 'auto', 'session' or 'transaction', found 'perhaps'"),
    ],
)
def test_what_cannot_be_used_is_one_clear_error(given: dict[str, str], expected: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(**given)
    assert expected in caught.value.message
