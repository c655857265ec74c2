"""The mistakes people make: each gives one clear error that says what to do, and nothing is lost."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from paidonce import RunBlocked, RunFailed
from tests.acceptance.agents import mistakes
from tests.acceptance.site import RUN_SECONDS, Site
from tests.services.waiting import wait_until

SOURCE = Path(mistakes.__file__).read_text().splitlines()


def line_of(marker: str) -> str:
    """``file:line`` of the line that carries the marker."""
    number = next(n for n, line in enumerate(SOURCE, 1) if line.endswith(f"# the line to be named: {marker}"))
    return f"mistakes.py:{number}"


@pytest.mark.parametrize(
    ("agent", "given", "marker"),
    [
        (mistakes.fetches_with_httpx, {"port": 9}, "httpx"),
        (mistakes.opens_a_connection, {"port": 9}, "open_connection"),
        (mistakes.goes_to_a_thread, {}, "to_thread"),
        (mistakes.swallows_the_refusal, {}, "swallowed"),
    ],
    ids=["httpx", "open_connection", "to_thread", "swallowed"],
)
def test_an_agent_that_does_io_is_blocked_with_its_line(
    shared: Site, agent: Any, given: dict[str, int], marker: str
) -> None:
    run = shared.client.submit(agent, given)
    with pytest.raises(RunBlocked) as blocked:
        run.result(RUN_SECONDS)
    assert line_of(marker) in str(blocked.value), str(blocked.value)
    assert "move it into a @step" in str(blocked.value)
    assert run.view().state_reason == "not_replayable"
    run.cancel()
    assert run.state == "cancelled"


def test_an_agent_that_computes_too_long_is_blocked_with_its_line(make_site: Callable[..., Site]) -> None:
    site = make_site(slice_seconds="1")
    site.worker("tests.acceptance.agents.mistakes", "tests.acceptance.agents.flow")
    run = site.client.submit(mistakes.spins, {"limit": 10**12})
    with pytest.raises(RunBlocked, match=r"mistakes\.py:\d+") as blocked:
        run.result(RUN_SECONDS)
    assert "@step" in str(blocked.value)
    assert run.view().state_reason == "slice_too_long"
    assert site.stranger.submit("leaf", {"number": 1}).result(RUN_SECONDS) == 2


@pytest.mark.parametrize(
    ("agent", "said"),
    [
        (mistakes.opaque_result, "gives_opaque"),
        (mistakes.opaque_return, "opaque_return"),
        (mistakes.opaque_argument, "value"),
    ],
    ids=["result", "return", "argument"],
)
def test_what_cannot_be_encoded_blocks_the_run_naming_the_value(shared: Site, agent: Any, said: str) -> None:
    run = shared.client.submit(agent)
    with pytest.raises(RunBlocked, match="Opaque") as failed:
        run.result(RUN_SECONDS)
    run.cancel()
    assert said in str(failed.value)
    assert "dataclass" in str(failed.value) or "pydantic" in str(failed.value)


def test_arguments_that_do_not_fit_fail_the_run(shared: Site) -> None:
    with pytest.raises(RunFailed, match="number"):
        shared.stranger.submit("strict", {"number": "many"}).result(RUN_SECONDS)
    with pytest.raises(RunFailed, match="colour"):
        shared.stranger.submit("strict", {"number": 1, "colour": "red"}).result(RUN_SECONDS)


def run_worker(site: Site, module: str, **settings: str) -> tuple[int, str]:
    """Start Celery's own command and wait for its end."""
    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "paidonce_workers", "worker", "--concurrency", "1"],
        cwd=site.folder,
        env=site.environment([module], **settings),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_an_async_task_of_stock_celery_is_refused_at_import(site: Site) -> None:
    (site.folder / "stock.py").write_text(
        "from paidonce_workers import app\n\n@app.task\nasync def fetch(url: str) -> str:\n    return url\n"
    )
    code = "import stock"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=site.folder,
        env=site.environment(),
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
        check=False,
    )
    assert done.returncode != 0
    assert "stock.fetch" in done.stderr and "stock.py:3" in done.stderr, done.stderr
    assert "declare it with @step or @tool of Paidonce" in done.stderr


@pytest.mark.slow
def test_an_async_shared_task_of_a_teams_own_module_is_refused(site: Site) -> None:
    (site.folder / "stock.py").write_text(
        "from celery import shared_task\n\n@shared_task\nasync def fetch(url: str) -> str:\n    return url\n"
    )
    code, said = run_worker(site, "stock")
    assert (code, said.count("\n")) == (2, 1), said
    assert "stock.fetch" in said and "would report success and never run it" in said, said


@pytest.mark.parametrize(
    ("text", "settings", "said"),
    [
        ("import no_such_thing\n", {}, "no_such_thing"),
        pytest.param("def broken(:\n", {}, "faulty.py:1", marks=pytest.mark.slow),
        pytest.param("", {"database_url": "mysql://x"}, "PAIDONCE_DATABASE_URL", marks=pytest.mark.slow),
        pytest.param("", {"broker_url": "gopher://x"}, "PAIDONCE_BROKER_URL", marks=pytest.mark.slow),
        pytest.param(
            "", {"lease_seconds": "1", "heartbeat_seconds": "3"}, "PAIDONCE_LEASE_SECONDS", marks=pytest.mark.slow
        ),
    ],
    ids=["import", "syntax", "store kind", "broker kind", "settings"],
)
def test_celerys_own_command_ends_with_one_clear_line(
    site: Site, text: str, settings: dict[str, str], said: str
) -> None:
    (site.folder / "faulty.py").write_text(text)
    code, told = run_worker(site, "faulty", **settings)
    assert code != 0
    lines = [line for line in told.splitlines() if line.strip()]
    assert len(lines) == 1 and said in lines[0], told


def test_celerys_own_command_waits_for_a_store_that_is_away_and_says_so_once(site: Site) -> None:
    """It may be restarting: whoever supervises the worker would only start it again."""
    (site.folder / "faulty.py").write_text("")
    worker = site.worker("faulty", wait=False, database_url="postgresql://postgres@127.0.0.1:1/x")
    wait_until(lambda: "PAIDONCE_DATABASE_URL" in worker.log, "it says that it waits", 120)
    assert worker.process.poll() is None
    assert worker.log.count("\n") == 1 and "the start of this worker waits" in worker.log, worker.log
    worker.stop()
