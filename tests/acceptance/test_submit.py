"""What a producer with our code can do: submit, wait, read, in threads and in event loops."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

import paidonce
from paidonce import InvalidInput, KeyConflict, ResultTimeout, UnknownAgent
from paidonce.client import default_client
from tests.acceptance.agents.flow import Plan, leaf, naps, research, takes_anything
from tests.acceptance.site import RUN_SECONDS, Site

PRODUCERS = 8
PRODUCER = """
import sys
from paidonce import Client
sys.stdin.readline()
print(Client().submit("leaf", {"number": 6}, key="raced").id)
"""


@pytest.fixture
def as_default(shared: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process has the site's settings in its environment, as a web application would."""
    for name, value in shared.settings.items():
        monkeypatch.setenv(f"PAIDONCE_{name.upper()}", value)
    default_client.cache_clear()
    yield
    default_client().database.close()
    default_client.cache_clear()


def test_the_same_key_is_the_same_run_in_whatever_state(shared: Site) -> None:
    first = shared.client.submit(naps, {"seconds": 2.0}, key="req-42")
    again = shared.client.submit("naps", {"seconds": 2.0}, key="req-42")
    assert again.id == first.id
    first.result(RUN_SECONDS)
    finished = shared.client.submit(naps, {"seconds": 2.0}, key="req-42")
    assert (finished.id, finished.state) == (first.id, "succeeded")


def test_equal_inputs_may_be_written_differently(shared: Site) -> None:
    first = shared.client.submit("inquiry", {"question": "a b", "depth": 2}, key="req-order")
    assert shared.client.submit("inquiry", {"depth": 2, "question": "a b"}, key="req-order").id == first.id


def test_the_same_key_with_another_input_is_refused_naming_both(shared: Site) -> None:
    shared.client.submit(leaf, {"number": 1}, key="req-43")
    with pytest.raises(KeyConflict, match=r'recorded \{"number":1\}, given \{"number":2\}'):
        shared.client.submit(leaf, {"number": 2}, key="req-43")
    assert shared.client.submit(naps, {"seconds": 0.0}, key="req-43").result(RUN_SECONDS)[0] == 4


@pytest.mark.slow
def test_a_race_of_producers_makes_one_run(shared: Site) -> None:
    producers = [
        subprocess.Popen(
            [sys.executable, "-c", PRODUCER],
            env=shared.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(PRODUCERS)
    ]
    try:
        said = [process.communicate("go\n", timeout=60)[0].strip() for process in producers]
    finally:
        for process in producers:
            process.kill()
            process.wait()
    assert len(set(said)) == 1 and said[0], said
    assert shared.client.run(said[0]).result(RUN_SECONDS) == 12
    assert len([run for run in shared.client.runs(agent="leaf") if run.key == "raced"]) == 1


def test_tags_and_times_are_kept(shared: Site) -> None:
    run = shared.client.submit(leaf, {"number": 3}, tags={"user": "u1", "plan": "free"})
    run.result(RUN_SECONDS)
    view = run.view()
    assert view.tags == {"user": "u1", "plan": "free"}
    assert view.started_at is not None and view.finished_at is not None
    assert view.created_at <= view.started_at <= view.finished_at
    assert (view.agent, view.state, json.loads(view.input or b"")) == ("leaf", "succeeded", {"number": 3})


def test_result_waits_no_longer_than_it_is_told(shared: Site) -> None:
    run = shared.client.submit(naps, {"seconds": 600.0})
    began = time.monotonic()
    with pytest.raises(ResultTimeout, match="it continues") as late:
        run.result(timeout=0.5)
    assert isinstance(late.value, TimeoutError)
    assert time.monotonic() - began < 60
    assert run.state in ("pending", "running", "waiting")
    run.cancel()
    shared.wait_state(run, "cancelled")


def test_bad_input_is_refused_where_the_agent_is_known(shared: Site) -> None:
    with pytest.raises(InvalidInput, match="'number'"):
        shared.client.submit(leaf, {"nunber": 3})
    with pytest.raises(InvalidInput, match="number"):
        shared.client.submit("leaf", {"number": "three"})
    with pytest.raises(InvalidInput, match="JSON object"):
        shared.client.submit("leaf", [3])  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="priority"):
        shared.client.submit(leaf, {"number": 3}, priority=10)
    with pytest.raises(InvalidInput, match="tag"):
        shared.client.submit(leaf, {"number": 3}, tags={"user": 1})  # type: ignore[dict-item]


def test_bad_input_from_a_producer_without_the_code_fails_the_run(shared: Site) -> None:
    run = shared.stranger.submit("leaf", {"nunber": 3})
    with pytest.raises(paidonce.RunFailed, match="'number'"):
        run.result(RUN_SECONDS)


def test_agents_submit_themselves(shared: Site, as_default: None) -> None:
    run = research.submit(question="one two", depth=5)
    assert run.result(RUN_SECONDS) == Plan(queries=["one", "two"], notes={"words": 2, "depth": 5})
    assert research.submit("three").result(RUN_SECONDS).queries == ["three"]
    assert takes_anything.submit(1, 2, 3, a="b").result(RUN_SECONDS) == [6, ["a", "b"]]
    with pytest.raises(InvalidInput, match="question"):
        research.submit(qestion="one two")  # type: ignore[call-arg]


def test_web_handlers_have_async_variants(shared: Site, as_default: None) -> None:
    async def handler() -> list[object]:
        first, second = await asyncio.gather(
            leaf.submit_async(number=4), shared.client.submit_async("leaf", {"number": 5}, key="req-async")
        )
        with pytest.raises(ResultTimeout):
            slow = await shared.client.submit_async(naps, {"seconds": 600.0})
            await slow.result_async(timeout=0.2)
        await slow.cancel_async()
        return list(await asyncio.gather(first.result_async(RUN_SECONDS), second.result_async(RUN_SECONDS)))

    assert asyncio.run(handler()) == [8, 10]


def test_a_submission_is_durable_with_the_broker_down(shared: Site) -> None:
    from paidonce import Client
    from paidonce.settings import Settings

    without_broker = Client(Settings(**{**shared.settings, "broker_url": "redis://127.0.0.1:1/0"}))  # type: ignore[arg-type]
    began = time.monotonic()
    run = without_broker.submit(leaf, {"number": 8})
    assert time.monotonic() - began < 15
    assert run.result(RUN_SECONDS) == 16  # the sweeper has sent it
    without_broker.database.close()


def test_higher_priorities_go_first(site: Site) -> None:
    for number, priority in enumerate((0, 5, 9, 2, 7)):
        site.stranger.submit("ordered", {"name": f"{priority}", "seconds": 0.01 * number}, priority=priority)
    site.worker("tests.acceptance.agents.stepping", arguments=["--concurrency", "1"])
    for priority in (0, 2, 5, 7, 9):
        site.wait_noted(f"order {priority}")
    began = [line.split()[1] for line in site.journal() if line.startswith("order")]
    assert began == ["9", "7", "5", "2", "0"]


def test_an_unknown_name_of_an_agent_is_kept_for_a_worker_to_come(shared: Site) -> None:
    run = shared.client.submit("not here yet", {"anything": [1, 2]})
    assert run.state == "pending"
    run.cancel()
    with pytest.raises(UnknownAgent, match="the loaded modules hold: "):
        from paidonce.declarations.registry import default_registry

        default_registry.known_agent("not here yet")
