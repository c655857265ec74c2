"""Real workers beside Sentry, OpenTelemetry and Datadog: results are right, and each request is attributed once."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from paidonce.run_handle import RunHandle
from paidonce_models.errors import NotFound
from tests.acceptance.site import Site
from tests.capture.conftest import CountingServer, counting_server, ledger_rows
from tests.capture.test_in_a_worker import read_calls
from tests.services.waiting import wait_until

__all__ = ["counting_server"]

MODULE = "tests.neighbours.traced_agents"
RUN_SECONDS = 50
NO_DATADOG_AGENT = {
    "DD_TRACE_AGENT_URL": "http://127.0.0.1:1",
    "DD_INSTRUMENTATION_TELEMETRY_ENABLED": "false",
    "DD_REMOTE_CONFIGURATION_ENABLED": "false",
}


@pytest.fixture
def site(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    counting_server: CountingServer,
) -> Iterator[Site]:
    for name, value in NO_DATADOG_AGENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OPENAI_BASE_URL", f"{counting_server.url}/v1")
    monkeypatch.setenv("SENTRY_FILE", str(tmp_path / "sentry"))
    monkeypatch.setenv("SPANS_FILE", str(tmp_path / "spans"))
    made = Site(tmp_path, provider_hosts=counting_server.hosts)
    yield made
    made.close()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("pool", ["threads", "prefork"])
@pytest.mark.parametrize(
    "neighbour",
    ["sentry", "opentelemetry", "ddtrace", "late-sentry", "late-opentelemetry", "late-ddtrace"],
)
def test_a_worker_beside_it_pays_once_and_gives_the_right_result(
    neighbour: str,
    pool: str,
    site: Site,
    counting_server: CountingServer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("NEIGHBOUR", neighbour)
    worker = site.worker(MODULE, arguments=("-P", "prefork", "-c", "1") if pool == "prefork" else ("-c", "2"))
    handle = site.stranger.submit("traced")
    site.wait_state(handle, "succeeded", "failed", "blocked", timeout=RUN_SECONDS)
    assert handle.result(1) == [0, 4, 2, 2, -1]
    calls = read_calls(Path(site.settings["home"]) / "paidonce.db")
    assert ledger_rows(calls) == counting_server.rows()
    assert Counter(call["step"].rpartition(".")[2] for call in calls) == {
        "in_threads": 4,
        "in_a_loop_of_its_own": 2,
        "on_the_workers_loop": 2,
    }
    assert "usage capture failed" not in worker.log
    events = (tmp_path / "sentry").read_text().splitlines() if (tmp_path / "sentry").exists() else []
    assert not [event for event in events if "quotes a prompt" in event]
    worker.stop()
    if neighbour.endswith("opentelemetry"):
        assert (tmp_path / "spans").read_text().count("chat/completions") == len(calls)


PRODUCER = """
import sys

import sentry_sdk
from celery import Celery
from sentry_sdk.integrations.celery import CeleryIntegration

sentry_sdk.init(dsn="http://key@127.0.0.1:1/1", integrations=[CeleryIntegration()], traces_sample_rate=1.0)
app = Celery("team", broker=sys.argv[1])
with sentry_sdk.start_transaction(name="a request"):
    print(app.send_task("paidonce.submit", kwargs={"agent": "traced", "input": {}}, queue="paidonce.submit").id)
"""


@pytest.mark.timeout(120)
def test_ddtrace_run_executes_what_a_producer_beside_sentry_submits(
    site: Site,
    counting_server: CountingServer,
) -> None:
    worker = site.worker(MODULE, arguments=("-c", "2"), program=(str(Path(sys.executable).with_name("ddtrace-run")),))
    sent = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PRODUCER, site.broker_url],
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )
    alias = sent.stdout.split()[-1]
    handle = wait_until(lambda: find(site, alias), "the submission became a run", 20)
    site.wait_state(handle, "succeeded", "failed", "blocked", timeout=RUN_SECONDS)
    assert handle.result(1) == [0, 4, 2, 2, -1]
    calls = read_calls(Path(site.settings["home"]) / "paidonce.db")
    assert ledger_rows(calls) == counting_server.rows()
    assert worker.stop() == 0


def find(site: Site, alias: str) -> RunHandle | None:
    try:
        return site.stranger.run(alias)
    except NotFound:
        return None


ORDERS = [
    *[(name, "ours") for name in ("sentry", "opentelemetry", "ddtrace", "by_hand", "subclass")],
    *[("ours", name, "ours_away", "ours") for name in ("sentry", "opentelemetry", "ddtrace", "by_hand", "subclass")],
    ("opentelemetry", "ours", "opentelemetry_away"),
    ("ours", "ddtrace", "opentelemetry", "sentry", "ours_away"),
    ("sentry", "opentelemetry", "ddtrace", "ours"),
]


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_threads_run_in_whatever_order_they_are_wrapped(order: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(Path(__file__).with_name("patched_threads.py")), *order],
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.stdout.splitlines()[-1:] == ["every thread ran and was attributed"], done.stdout + done.stderr[-3000:]
