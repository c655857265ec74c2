"""A stand-in for a paid API that counts its requests. Run as a separate process; imports nothing of Paidonce.

POST /call takes JSON with ``run``, ``step``, ``attempt`` and responds after
``latency_ms`` with text and token usage. POST /tool stands for a dependency: it
responds 503 during an outage, which POST /outage with ``seconds`` starts. GET /requests
returns every request of the two with its path, its status and its arrival time in
seconds since the epoch, in order.

    python counting_server.py PORT_FILE
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class CountingServer(ThreadingHTTPServer):
    """Keeps every request that it receives."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.requests: list[dict[str, object]] = []
        self.down_until = 0.0


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: CountingServer

    def do_POST(self) -> None:
        """Count first, respond later: a request that arrived is paid for."""
        if self.path == "/outage":
            self._begin_outage()
            return
        arrived = time.time()
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length)
        if len(body) < length:  # the caller died before it had sent its request
            self.close_connection = True
            return
        asked = json.loads(body)
        is_down = self.path == "/tool" and arrived < self.server.down_until
        status = 503 if is_down else 200
        with self.server.lock:
            self.server.requests.append({**asked, "path": self.path, "status": status, "arrived": arrived})
        time.sleep(float(asked.get("latency_ms", 0)) / 1000)
        if is_down:
            self._answer({"error": "down for maintenance"}, status)
            return
        size = int(asked.get("answer_bytes", 200))
        self._answer(
            {
                "text": f"answer to step {asked.get('step')} ".ljust(size, "."),
                "model": "gpt-4o-mini",
                "usage": {"input_tokens": 1000, "output_tokens": 200},
            }
        )

    def _begin_outage(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))
        began = time.time()
        self.server.down_until = began + float(asked["seconds"])
        self._answer({"began": began, "ends": self.server.down_until})

    def do_GET(self) -> None:
        """What was counted."""
        with self.server.lock:
            counted = list(self.server.requests)
        self._answer(counted)

    def _answer(self, value: object, status: int = 200) -> None:
        data = json.dumps(value).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def main(port_file: str) -> None:
    """Serve until killed or orphaned; writes the port to ``port_file`` once it is known."""
    server = CountingServer()
    parent = os.getppid()

    def end_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(0)

    threading.Thread(target=end_with_parent, daemon=True).start()
    written = Path(port_file)
    written.with_suffix(".new").write_text(str(server.server_port), encoding="ascii")
    written.with_suffix(".new").rename(written)
    server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1])
