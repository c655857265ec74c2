"""OpenTelemetry's tracing of HTTP clients beside our capture: each request is one recorded call and one span."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.capture.conftest import CountingServer, counting_server, ledger_rows

__all__ = ["counting_server"]

ROOT = Path(__file__).parents[2]
DRIVES = ("openai_chat", "openai_streams", "openai_async", "openai_threads", "google_genai", "google_genai_async")
ORDERS = [
    "opentelemetry-ours",
    "ours-opentelemetry",
    "ours-opentelemetry-away",
    "opentelemetry-ours-away",
]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("order", ORDERS)
def test_each_request_is_one_call_and_one_span_in_whatever_order_they_come(
    order: str, counting_server: CountingServer
) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.neighbours.traced_requests", counting_server.url, order, *DRIVES],
        cwd=ROOT,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0 and "usage capture failed" not in done.stderr, done.stderr[-3000:]
    printed = json.loads(done.stdout.splitlines()[-1])
    assert ledger_rows(printed["calls"]) == counting_server.rows()
    made = Counter(printed["spans"])
    if order.endswith("away"):
        assert not made
    else:
        assert made.total() == len(counting_server.count()) and set(made) == {"httpx", "aiohttp_client"}, made
