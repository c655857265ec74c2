"""Only the owner can read what Paidonce writes, whatever the umask; what is open is closed, what is foreign is left."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from paidonce_models.database.schema import upgrade
from paidonce_models.database.transactions import Database
from paidonce_models.privacy import private_files
from paidonce_models.privacy.private_files import make_private_folder, private_opener, tighten


@pytest.fixture(params=[0o000, 0o022, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def mode(path: Path | str) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


@pytest.mark.usefixtures("umask")
def test_a_new_store_and_what_lies_beside_it_are_private(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    make_private_folder(folder)
    database = Database(f"sqlite:///{folder / 'store.db'}")
    upgrade(database)
    with database.read() as connection:
        connection.exec_driver_sql("SELECT 1")
        found = {path.name: mode(path) for path in folder.iterdir()}
    database.close()
    assert set(found) == {"store.db", "store.db-wal", "store.db-shm", "store.db.upgrade-lock"}
    assert set(found.values()) == {0o600}
    assert mode(folder) == mode(folder.parent) == 0o700


def test_an_existing_store_is_tightened_with_one_line_and_its_folder_is_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = tmp_path / "store.db"
    database = Database(f"sqlite:///{store}")
    upgrade(database)
    with database.read() as connection:
        connection.exec_driver_sql("SELECT count(*) FROM runs")
        for path in tmp_path.iterdir():
            path.chmod(0o644)
        tmp_path.chmod(0o755)
        again = Database(f"sqlite:///{store}")
        with caplog.at_level(logging.WARNING), again.read() as other:
            other.exec_driver_sql("SELECT 1")
        again.close()
    database.close()
    assert {mode(path) for path in tmp_path.iterdir()} == {0o600}
    assert mode(tmp_path) == 0o755, "a folder that is not ours may be /tmp"
    assert [record.event for record in caplog.records] == ["files_tightened"]  # type: ignore[attr-defined]


def test_what_belongs_to_somebody_else_is_named_once_and_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "foreign.db"
    path.touch(0o644)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(private_files.os, "chmod", refuse)
    for _ in range(3):
        tighten(path)
    assert [record.event for record in caplog.records] == ["files_open_to_others"]  # type: ignore[attr-defined]


def test_the_home_is_tightened_but_no_folder_that_others_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, shared, current = tmp_path / "home", tmp_path / "shared", tmp_path / "current"
    for folder in (home, shared, current):
        folder.mkdir(mode=0o755)
    shared.chmod(0o1777)
    monkeypatch.chdir(current)
    for folder in (home, shared, current):
        make_private_folder(folder, is_ours=True)
    assert (mode(home), mode(shared), mode(current)) == (0o700, 0o1777, 0o755)


@pytest.mark.usefixtures("umask")
def test_a_log_is_private_from_the_first_moment_on(tmp_path: Path) -> None:
    path = tmp_path / "run.log"
    with open(path, "ab", opener=private_opener):
        assert mode(path) == 0o600
