"""Numbers and names that no store holds are refused at import, and numbers that overflow are cut where they are met."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from paidonce import Retry, agent, step
from paidonce.policies import describe_failure
from paidonce.replay.run_replay import LATEST_TIMER
from paidonce.settings import Settings, load_settings
from paidonce_models.errors import ConfigurationError, DeclarationError
from paidonce_models.store.queries import moment
from paidonce_models.store.runs.events import EventKind
from tests.orchestrator.replay.test_run_replay import Log


def body() -> None: ...


async def coroutine() -> None: ...


@pytest.mark.parametrize(
    ("declare", "said"),
    [
        (lambda: step(max_lost=10**30)(body), "at most 1,000"),
        (lambda: step(max_lost=2**31)(body), "at most 1,000"),
        (lambda: step(name="x" * 201)(body), "1 to 200 bytes .* of 201 bytes"),
        (lambda: step(queue="q" * 151)(body), "queue= must be 1 to 150 bytes .* of 151 bytes"),
        (lambda: step(queue="paidonce.unacked")(body), "queue='paidonce.unacked' is a name that Paidonce uses"),
        (lambda: step(provider="p" * 151)(body), "150 bytes at most"),
        (lambda: step(timeout=1e300)(body), "at most ten years"),
        (lambda: step(timeout=timedelta.max)(body), "at most ten years"),
        (lambda: step(retry=10**30)(body), "at most 1,000,000"),
        (lambda: step(retry=Retry(max_attempts=2, cap_seconds=1e300))(body), "at most ten years"),
        (lambda: step(retry=Retry(max_attempts=2, base_seconds=float("nan")))(body), "duration"),
        (lambda: agent(name="a" * 151)(coroutine), "1 to 150 bytes .* of 151 bytes"),
        (lambda: agent(name="bounded-version", version="v" * 101)(coroutine), "1 to 100 bytes .* of 101 bytes"),
        (lambda: agent(name="bounded-queue", queue="q" * 1_000_000)(coroutine), "of 1000000 bytes"),
    ],
    ids=[
        *(
            "lost",
            "lost in 32 bits",
            "name",
            "queue",
            "kept queue",
            "provider",
            "timeout",
            "longest",
            "attempts",
            "cap",
            "nan",
        ),
        *("agent", "version", "agent's queue"),
    ],
)
def test_what_no_store_can_hold_is_refused_at_import(declare: Callable[[], Any], said: str) -> None:
    with pytest.raises(DeclarationError, match=said) as refused:
        declare()
    assert len(refused.value.message) < 1_000


@pytest.mark.parametrize("seconds", [1e12, 1e300, 1.7e308])
def test_a_sleep_without_an_end_waits_for_a_moment_that_every_store_can_hold(seconds: float) -> None:
    @agent(name=f"bounded-sleep-{seconds}")
    async def sleeps() -> str:
        await asyncio.sleep(seconds)
        return "late"

    log = Log(sleeps)
    wake_at_us = log.machine.wake_at_us
    assert wake_at_us is not None and wake_at_us < 2**63
    shown = moment(wake_at_us)
    assert shown is not None and shown.year == 9999
    assert wake_at_us / 1e6 >= LATEST_TIMER
    log.feed(EventKind.CANCEL, data={"grace_seconds": 1e300})
    assert log.error["code"] == "cancelled"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lease_seconds", 1e300),
        ("step_timeout_seconds", 1e12),
        ("no_worker_seconds", 1e18),
        ("max_payload_bytes", 10**15),
        ("concurrency", 10**9),
        ("cache_size", 10**30),
        ("max_steps", 10**30),
        ("warn_steps", 10**5_000),
        ("max_depth", 10**6),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else "",
)
def test_a_setting_beyond_all_measure_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ConfigurationError, match=f"PAIDONCE_{name.upper()}.*less than or equal to"):
        load_settings(**{name: value})


def test_every_setting_that_is_a_number_has_an_upper_limit() -> None:
    def has_limit(name: str) -> bool:
        return any(getattr(each, "le", None) is not None for each in Settings.model_fields[name].metadata)

    numbers = [name for name, field in Settings.model_fields.items() if field.annotation in (int, float)]
    assert [name for name in numbers if not has_limit(name)] == []


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [(10**5_000, 604_800.0), (-(10**5_000), 0.0), (3, 3.0), (1e300, 604_800.0)],
    ids=["digits", "below 0", "ordinary", "float"],
)
def test_a_client_that_asks_to_come_back_in_ages_is_heard_for_a_week(asked: float, seconds: float) -> None:
    error = ConnectionError("later")
    error.retry_after = asked  # type: ignore[attr-defined]  # as some clients' errors have
    assert describe_failure(error).retry_after_seconds == seconds


def test_files_of_settings_are_read_no_further_than_a_person_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    project = tmp_path / "pyproject.toml"
    project.write_text("[tool.paidonce]\nagents = " + "[" * 5_000 + "]" * 5_000)
    with pytest.raises(ConfigurationError, match=r"pyproject\.toml"):
        load_settings()
    for number in ("9" * 5_000, "0x" + "f" * 5_000):
        project.write_text(f"[tool.paidonce]\nmax_steps = {number}\n")
        with pytest.raises(ConfigurationError, match=r"pyproject\.toml") as refused:
            load_settings()
        assert len(refused.value.message) < 1_000
    with project.open("wb") as opened:
        opened.truncate(2**31)
    with pytest.raises(ConfigurationError, match=r"pyproject\.toml has more than 4,194,304 bytes"):
        load_settings()
    project.unlink()
    with (tmp_path / ".env").open("wb") as opened:
        opened.truncate(2**31)
    with pytest.raises(ConfigurationError, match=r"\.env has more than 4,194,304 bytes"):
        load_settings()
