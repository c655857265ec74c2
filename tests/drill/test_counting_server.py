"""The server that drills count at."""

import json
import socket
import threading
import urllib.request
from collections.abc import Iterator

import pytest

from paidonce.drill.counting_server import CountingServer


@pytest.fixture
def server() -> Iterator[CountingServer]:
    server = CountingServer()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_request_is_counted_when_it_arrives(server: CountingServer) -> None:
    body = json.dumps({"run": "r1", "step": 3, "attempt": 1}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{server.server_port}/call", data=body)
    with urllib.request.urlopen(request, timeout=10) as response:
        assert json.load(response)["usage"] == {"input_tokens": 1000, "output_tokens": 200}
    assert [(asked["run"], asked["step"]) for asked in server.requests] == [("r1", 3)]


def test_a_caller_that_dies_before_its_body_has_asked_for_nothing(server: CountingServer) -> None:
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=10) as caller:
        caller.sendall(b'POST /call HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{"run"')
        caller.shutdown(socket.SHUT_WR)
        assert caller.recv(1) == b""
    assert server.requests == []
