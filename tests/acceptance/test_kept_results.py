"""Deployments over runs that have paid: nothing is failed or paid again because the code did not fit."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from paidonce import RunBlocked
from tests.acceptance.site import RUN_SECONDS, Site

pytestmark = pytest.mark.slow

CODE = """
from __future__ import annotations
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from paidonce import agent, record_usage, step
from tests.acceptance.agents.journal import note
{imports}

@step(name="kept.ask", retry=5)
{async_}def ask(question: str) -> {annotation}:
    note("paid")
    record_usage(cost_usd="0.01", provider="openai", model="gpt-4o")
    return {{"answer": question, "at": datetime(2026, 1, 2)}}

@agent(name="keeper")
async def keeper(question: str) -> list[str]:
    answer = await ask(question)
    return [answer["answer"], str(answer["at"])]
"""


def write(site: Site, annotation: str, *, imports: str = "", is_async: bool = True) -> None:
    text = CODE.format(annotation=annotation, imports=imports, async_="async " if is_async else "")
    (site.folder / "keeping.py").write_text(text)


def deploys(site: Site, *arguments: str, is_async: bool = True) -> None:
    """Blocked by one deployment, refused at start by the next, gone on with by the third."""
    write(site, "dict[str, str]", is_async=is_async)
    first = site.worker("keeping", arguments=arguments)
    run = site.stranger.submit("keeper", {"question": "why"})
    with pytest.raises(RunBlocked, match=r"kept\.ask.*\['at'\] is of type datetime"):
        run.result(RUN_SECONDS)
    view = run.view()
    assert (view.state, view.state_reason) == ("blocked", "result_not_storable")
    first.stop()
    write(site, "dict[str, Answer]", imports="if TYPE_CHECKING:\n    from nowhere import Answer", is_async=is_async)
    refused = site.worker("keeping", arguments=arguments, wait=False)
    assert refused.process.wait(RUN_SECONDS) == 2
    assert "keeping.py" in refused.log and "-> dict[str, Answer]" in refused.log
    assert "TYPE_CHECKING" in refused.log and "Traceback" not in refused.log
    assert run.state == "blocked"
    write(site, "dict[str, Any]", is_async=is_async)
    site.worker("keeping", arguments=arguments)
    site.wait_state(run, "succeeded", timeout=RUN_SECONDS)
    assert run.result(RUN_SECONDS) == ["why", "2026-01-02 00:00:00"]
    assert site.journal().count("paid") == 1


def test_other_code_goes_on_with_a_paid_result(site: Site) -> None:
    deploys(site)


def test_in_prefork_children_too(site: Site) -> None:
    deploys(site, "--pool", "prefork", "--concurrency", "2", is_async=False)


@pytest.mark.service
def test_on_postgresql_too(make_site: Callable[..., Site], postgres_database: str) -> None:
    site = make_site(database_url=postgres_database)
    site.upgrade()
    deploys(site)
