"""A secret is planted wherever data goes, every kind of error is made, and no log of a worker knows of it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from kombu import Connection

from tests.acceptance.agents import indiscreet
from tests.acceptance.site import Site
from tests.services.waiting import wait_until

SECRET = "Sesame-4711-open"
MODULE = "tests.acceptance.agents.indiscreet"


def publish(site: Site, body: Any, headers: Any = None, **properties: Any) -> None:
    """A message as a stranger may send it, to a queue that the worker takes."""
    with Connection(site.broker_url) as connection, connection.Producer() as producer:
        producer.publish(body, routing_key="paidonce.default", exchange="", headers=headers, **properties)


def send_everything_wrong(site: Site) -> None:
    """Messages that are not what they should be, each with the secret in it."""
    step = f"{MODULE}.fails"

    def task(name: str, args: Any = (), kwargs: Any = None, **headers: Any) -> None:
        told = {"task": name, "id": str(uuid.uuid4()), "lang": "py", "argsrepr": repr(args), "kwargsrepr": repr(kwargs)}
        publish(site, [list(args), kwargs or {}, {}], {**told, **headers})

    task(step, (SECRET,), {"secret": SECRET})
    task(step, (), {"run": SECRET, "step": SECRET})
    task(step, (), {"run": SECRET, "step": 1})
    task("paidonce.advance", (), {"run": SECRET})
    task("paidonce.advance", (SECRET,), {"nonsense": SECRET})
    task("paidonce.submit", (SECRET,), {"input": SECRET})
    task("paidonce.submit", (), {"agent": "indiscreet", "input": {"secret": SECRET}, "tags": SECRET, SECRET: 1})
    task("nobody.knows", (SECRET,), {"secret": SECRET})
    task("nobody.knows", (), {}, eta=SECRET, expires=SECRET)
    publish(site, SECRET, {"task": step, "id": "m1", "lang": "py"})
    publish(site, [[SECRET], SECRET, {}], {"task": step, "id": "m2", "lang": "py"})
    publish(site, {"task": step, "id": "m3", "args": [SECRET], "kwargs": {"secret": SECRET}})  # protocol 1
    publish(site, {"id": "m4", "args": [SECRET]})
    publish(site, SECRET.encode(), {"task": step, "id": "m5"}, content_type=SECRET, content_encoding="binary")
    publish(site, b"\xff" + SECRET.encode(), {"task": step}, content_type="application/json", content_encoding="utf-8")
    publish(site, f"[{SECRET}".encode(), {"task": "paidonce.submit", "id": "m6"}, content_type="application/json",
            content_encoding="utf-8")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_no_log_knows_what_a_run_was_given_or_what_its_errors_say(make_site: Callable[..., Site], pool: str) -> None:
    site = make_site()
    with_debug = ("--loglevel", "DEBUG", "--pool", pool, "--concurrency", "4")
    worker = site.worker(MODULE, arguments=with_debug)
    handles = {
        which: site.stranger.submit("indiscreet", {"secret": SECRET, "which": which}) for which in indiscreet.STEPS
    }
    send_everything_wrong(site)
    ended = ("succeeded", "failed", "blocked")
    states = {which: site.wait_state(handle, *ended, timeout=90) for which, handle in handles.items()}
    ends = {"leaves": "succeeded", "returns": "blocked"}
    assert states == {which: ends.get(which.partition("_")[0], "failed") for which in indiscreet.STEPS}
    after = site.stranger.submit("indiscreet", {"secret": SECRET, "which": "fails"})
    site.wait_state(after, "failed", timeout=90)
    wait_until(lambda: "message_malformed" in worker.log or "dropped" in worker.log, "messages are dropped", 60)
    worker.stop()
    # What is asked for is shown; what a log says of it is its type.
    assert SECRET in json.dumps(after.view().error)
    hits = [line for line in worker.log.splitlines() if SECRET in line]
    assert hits == []
    assert "TaskPool: Apply a task" in worker.log, "it was at DEBUG"


def test_an_agent_sees_the_same_masked_error_live_and_on_replay(make_site: Callable[..., Site]) -> None:
    site = make_site(masked_names="tenant-pin", cache_size="1")
    site.worker(MODULE)
    handle = site.client.submit("tells_what_it_saw", {"address": "https://bob:hunter2@api.x.com/v1?key=abc123&q=1"})
    assert handle.result(timeout=60) == (
        "401 for https://bob:***@api.x.com/v1?key=***&q=1, header Authorization: Bearer ***, tenant-pin=***"
    )
    (failed, *_) = handle.steps()
    assert "hunter2" not in json.dumps(failed.error) and "abc123" not in json.dumps(failed.error)


@pytest.mark.slow
def test_a_step_that_runs_alone_keeps_its_secrets_too(make_site: Callable[..., Site]) -> None:
    site = make_site(lease_seconds="3", heartbeat_seconds="1")
    handle = site.stranger.submit("deadly", {"secret": SECRET})
    workers = []
    for _ in range(3):
        workers.append(site.worker(MODULE, arguments=("--loglevel", "DEBUG")))
        wait_until(
            lambda: handle.state in ("failed", "succeeded") or workers[-1].process.poll() is not None,
            "the run or its worker has ended",
            90,
        )
    site.wait_state(handle, "failed", timeout=90)
    assert SECRET in json.dumps(handle.view().error)
    assert [line for worker in workers for line in worker.log.splitlines() if SECRET in line] == []
