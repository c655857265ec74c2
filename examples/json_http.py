"""The common part of both example servers: a threading HTTP server that speaks JSON.

Owns sockets, ports and the address line that tells a parent process where the server
listens. It knows nothing of models or documents.
"""

import argparse
import json
import signal
import sys
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import FrameType

MAXIMUM_BODY_BYTES = 20_000_000


class JsonServer(ThreadingHTTPServer):
    """One thread per connection; connections never keep the process alive."""

    daemon_threads = True
    request_queue_size = 128

    @property
    def url(self) -> str:
        """Where this server listens; the actual port, also if port 0 was requested."""
        return f"http://{self.server_address[0]!s}:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore clients that went away: the demo kills one on purpose."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class JsonHandler(BaseHTTPRequestHandler):
    """Responds with JSON over kept-alive HTTP/1.1 connections."""

    protocol_version = "HTTP/1.1"
    # Headers and body are two small writes; without this the second waits for an ACK.
    disable_nagle_algorithm = True

    def answer(self, status: int, body: object, *, headers: Mapping[str, str] | None = None) -> None:
        """Send one JSON document."""
        content = json.dumps(body, ensure_ascii=False).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def body(self) -> bytes | None:
        """The request's body, or None if its length is missing, malformed or too large."""
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > MAXIMUM_BODY_BYTES:
            self.close_connection = True
            return None
        return self.rfile.read(int(length))

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class names it
        """Write nothing: standard output carries the address only."""


def argument_parser(description: str) -> argparse.ArgumentParser:
    """A parser with the options that every example server has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free port")
    return parser


def serve_until_stopped(server: JsonServer) -> None:
    """Print the address as the first line of standard output, then serve until a signal."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, stop)
    print(server.url, flush=True)
    try:
        server.serve_forever(poll_interval=0.1)
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
