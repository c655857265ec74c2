"""Several versions of an agent loaded together: a run advances only where its version is held."""

from __future__ import annotations

import pytest

from tests.acceptance.site import RUN_SECONDS, Site

pytestmark = pytest.mark.slow

STEPS = """
import asyncio, os
from paidonce import step
from tests.acceptance.agents.journal import note

@step(name="word")
async def word(text: str) -> str:
    note(f"word {text}")
    return text

@step(name="pause")
async def pause(text: str) -> None:
    note(f"pause {text}")
    while os.path.exists(f"pause {text}"):
        await asyncio.sleep(0.05)
"""
VERSION = """
from paidonce import agent
from version_steps import pause, word

@agent(name="teller", version="{version}")
async def teller_{version}() -> str:
    await pause("{version}")
    return await word("told by {version}")
"""


def write_versions(site: Site) -> None:
    (site.folder / "version_steps.py").write_text(STEPS)
    (site.folder / "old_teller.py").write_text(VERSION.format(version=1))
    (site.folder / "new_teller.py").write_text(VERSION.format(version=2))
    (site.folder / "pause 1").touch()


def go_on(site: Site) -> None:
    (site.folder / "pause 1").unlink()


def test_a_run_stays_with_the_version_that_began_it(site: Site) -> None:
    write_versions(site)
    first = site.worker("old_teller")
    run = site.stranger.submit("teller", {})
    site.wait_noted("pause 1")
    first.stop()
    go_on(site)
    site.worker("old_teller", "new_teller")
    newer = site.stranger.submit("teller", {})
    assert newer.result(RUN_SECONDS) == "told by 2"
    assert run.result(RUN_SECONDS) == "told by 1"
    assert (run.view().agent_version, newer.view().agent_version) == ("1", "2")


def test_a_worker_with_another_version_leaves_the_run_alone(site: Site) -> None:
    write_versions(site)
    first = site.worker("old_teller")
    run = site.stranger.submit("teller", {})
    site.wait_noted("pause 1")
    first.stop()
    go_on(site)
    site.settings["no_worker_seconds"] = "4"
    second = site.worker("new_teller")
    site.wait_state(run, "blocked")
    view = run.view()
    assert view.state_reason == "no_worker"
    assert view.error is not None and "agent 'teller' version '1'" in str(view.error["message"])
    second.stop()
    site.worker("old_teller")
    assert run.result(RUN_SECONDS) == "told by 1"


def test_versions_may_live_on_different_workers(site: Site) -> None:
    write_versions(site)
    first = site.worker("old_teller")
    run = site.stranger.submit("teller", {})
    site.wait_noted("pause 1")
    site.worker("new_teller")
    go_on(site)
    assert run.result(RUN_SECONDS) == "told by 1"
    first.stop()
    assert site.stranger.submit("teller", {}).result(RUN_SECONDS) == "told by 2"
