"""A worker is killed while it polls for work that a provider goes on with, and bills."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from sqlalchemy import text

from tests.chaos.engines import Engines
from tests.chaos.polling_agents import background_researcher
from tests.chaos.stage import QUICK_LEASES, Stage
from tests.services.waiting import wait_until

USAGE = {"input_tokens": 100, "output_tokens": 50, "total_tokens": 150}


class Provider:
    """Background responses; the first one is never done."""

    def __init__(self, port: int) -> None:
        self.host = f"127.0.0.1:{port}"
        self.created = 0

    def answer(self, method: str, path: str) -> object:
        if method == "POST":
            self.created += 1
            return self._response(self.created, "queued")
        number = int(path.rpartition("_")[2])
        return self._response(number, "in_progress" if number == 1 else "completed")

    def _response(self, number: int, status: str) -> object:
        usage = USAGE if status == "completed" else None
        return {
            "id": f"resp_{number}",
            "object": "response",
            "model": "gpt-4o-mini",
            "status": status,
            "background": True,
            "usage": usage,
        }


@contextmanager
def serving() -> Iterator[Provider]:
    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("content-length") or 0))
            body = json.dumps(provider.answer(self.command, self.path)).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = answer  # the names http.server calls

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    provider = Provider(server.server_port)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield provider
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_a_response_that_a_killed_worker_waited_for_is_one_unknown_call(
    some_engines: Engines, make_stage: Callable[..., Stage], pool: str
) -> None:
    with serving() as provider:
        stage = make_stage(some_engines, **QUICK_LEASES, provider_hosts=f"{provider.host}=openai")
        fleet = stage.start(workers=2, concurrency=2, pool=pool, modules="tests.chaos.polling_agents")
        stage.handles.append(
            handle := stage.client.submit(background_researcher, {"provider": f"http://{provider.host}"})
        )
        wait_until(lambda: _count(stage, "awaited_calls") == 1, "a heartbeat has kept the call", 60)
        assert _count(stage, "calls") == 0
        [held] = stage.under_way()
        fleet.kill(stage.number_of(held.pid))
        stage.wait_until_finished()

        assert handle.result(timeout=1) == "resp_2"
        with stage.client.database.read() as connection:
            rows = connection.execute(
                text(
                    "SELECT attempts.outcome, calls.input_tokens, calls.cost_nanousd FROM calls JOIN attempts "
                    "ON attempts.run_id = calls.run_id AND attempts.position = calls.position "
                    "AND attempts.number = calls.attempt ORDER BY attempts.number"
                )
            ).all()
        assert provider.created == 2
        assert [(row.outcome, row.input_tokens, row.cost_nanousd is None) for row in rows] == [
            ("lost", None, True),
            ("accepted", 100, False),
        ]
        wait_until(lambda: _count(stage, "awaited_calls") == 0, "nothing is left to wait for", 60)


def _count(stage: Stage, table: str) -> int:
    with stage.client.database.read() as connection:
        return int(connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one())
