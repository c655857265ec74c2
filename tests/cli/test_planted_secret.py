"""A secret is planted in what a command is given, every kind of error is made, and no output of it knows of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from paidonce.cli.commands import runs_command
from paidonce.cli.program import run_program
from paidonce.client import Client
from paidonce.declarations.registry import Registry
from paidonce.embedded import stop_embedded

SECRET = "Sesame-4711-open"
NOBODY = "127.0.0.1:1"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PAIDONCE_HOME", str(tmp_path / "home"))
    yield tmp_path / "home"
    stop_embedded(tmp_path / "home")


def said(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """The exit code of a command and everything it printed, as text and with ``--json``."""
    code = run_program(arguments)
    printed = capfd.readouterr()
    assert run_program([*arguments, "--json"]) == code
    with_json = capfd.readouterr()
    if code:
        assert "error" in json.loads(with_json.out)
    return code, printed.out + printed.err + with_json.out + with_json.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("submit", "research", "--input", f'{{"question": "{SECRET}'),
        ("submit", "research", "--input", f"{{question: {SECRET}}}"),
        ("submit", "research", "--input", f'["{SECRET}"]'),
        ("submit", "research", "--input", f'"{SECRET}"'),
        ("submit", "research", "--input", "{question:", SECRET, "why}"),
        ("submit", "research", "--input", f'{{"question": "{SECRET}", "nan": NaN}}'),
        ("submit", "research", "--tag", SECRET),
        ("submit", "research", "--tag", f"a={SECRET}", "--tag", "a=other"),
    ],
)
def test_an_input_that_does_not_fit_is_described_and_not_repeated(
    arguments: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    code, printed = said(capfd, *arguments)
    assert code == 2
    assert SECRET not in printed


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE_URL", f"postgresql://bob:{SECRET}@{NOBODY}/shop"),
        ("DATABASE_URL", f"postgresql://bob@{NOBODY}/shop?password={SECRET}"),
        ("DATABASE_URL", f"postgresql://bob@{NOBODY}/shop?sslpassword={SECRET}"),
        ("DATABASE_URL", f"postgresql://bob:{SECRET}@host:port/shop"),
        ("DATABASE_URL", f"postgresql//bob:{SECRET}@host/shop"),
        ("DATABASE_URL", f"mysql://bob:{SECRET}@host/shop"),
        ("DATABASE_URL", f"{SECRET}@host"),
        ("BROKER_URL", f"redis://:{SECRET}@{NOBODY}/zero"),
        ("BROKER_URL", f"redis:/:{SECRET}@{NOBODY}/0"),
        ("BROKER_URL", f"https://bob:{SECRET}@{NOBODY}/0"),
        ("BROKER_URL", f"redis://{NOBODY}/0?password={SECRET}&nonsense=1"),
        ("REDIS_URL", f"amqp://bob:{SECRET}@{NOBODY}//"),
        ("LEASE_SECONDS", f"redis://bob:{SECRET}@{NOBODY}"),
        ("PROVIDER_HOSTS", f"https://bob:{SECRET}@host=openai"),
    ],
)
def test_a_setting_that_cannot_be_used_is_shown_without_its_credentials(
    name: str, value: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"PAIDONCE_{name}", value)
    code, printed = said(capfd, "runs")
    assert code in (2, 3)
    assert SECRET not in printed


@pytest.mark.parametrize("command", [("broker", "status"), ("worker", "json")])
@pytest.mark.parametrize("url", [f"redis://:{SECRET}@{NOBODY}/0", f"amqp://bob:{SECRET}@{NOBODY}//"])
def test_a_broker_that_is_away_is_named_without_its_password(
    command: tuple[str, ...], url: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAIDONCE_BROKER_URL", url)
    _, printed = said(capfd, *command)
    assert SECRET not in printed


def test_a_bug_shows_where_it_is_and_no_words(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        try:
            raise KeyError(SECRET)
        except KeyError as error:
            raise ValueError(f"cannot read {SECRET}") from error

    monkeypatch.setattr(runs_command, "open_checked", fail)
    code, printed = said(capfd, "runs")
    assert code == 1
    assert SECRET not in printed
    assert "test_planted_secret.py" in printed and "ValueError" in printed and "KeyError" in printed


def test_a_store_that_is_none_does_not_tell_what_is_in_it(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    home.mkdir(mode=0o700)
    (home / "paidonce.db").write_text(f"not a database but {SECRET} " * 200)
    code, printed = said(capfd, "runs")
    assert code == 3
    assert SECRET not in printed


def test_a_row_that_a_store_refuses_is_not_quoted(home: Path) -> None:
    client = Client(registry=Registry())
    handle = client.submit("research", {"question": SECRET}, key=SECRET)
    with pytest.raises(Exception) as refused, client.database.write() as connection:
        connection.execute(
            text("INSERT INTO runs SELECT * FROM runs WHERE id = :id AND key = :key"), {"id": handle.id, "key": SECRET}
        )
    assert SECRET not in str(refused.value) + repr(refused.value) + repr(refused.value.__cause__)
    client.database.close()


TERMINAL = "\x1b]0;owned\x07\u202e\n2026 ERROR forged"


def test_what_a_store_holds_cannot_steer_a_terminal_or_forge_a_line(
    home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    client = Client(registry=Registry())
    handle = client.submit(f"re{TERMINAL}", {"question": TERMINAL}, key=TERMINAL, tags={TERMINAL: TERMINAL})
    client.database.transact(
        lambda connection: connection.execute(
            text("UPDATE runs SET state = 'failed', error = :error WHERE id = :id"),
            {"id": handle.id, "error": json.dumps({"type": TERMINAL, "message": TERMINAL})},
        )
    )
    client.database.close()
    for arguments in (
        ("runs",),
        ("show", handle.id),
        ("costs",),
        ("bill", handle.id),
        ("costs", "--by", f"tag:{TERMINAL}"),
        ("show", TERMINAL),
        ("costs", "--by", TERMINAL),
        ("cancel", TERMINAL),
    ):
        run_program(arguments)
        printed = "".join(capfd.readouterr())
        assert not {"\x1b", "\x07", "\u202e"} & set(printed), arguments
        assert not any(line.startswith("2026 ERROR") for line in printed.splitlines()), arguments
    run_program(["show", handle.id, "--json"])
    printed = capfd.readouterr().out
    assert not {"\x1b", "\x07", "\u202e"} & set(printed)
    assert json.loads(printed)["input"] == {"question": TERMINAL}, "JSON is exact"


def test_the_store_of_these_tests_is_private(home: Path) -> None:
    Client(registry=Registry()).runs()
    assert home.stat().st_mode & 0o077 == 0
    assert (home / "paidonce.db").stat().st_mode & 0o077 == 0
