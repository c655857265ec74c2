"""Runs an example server in a thread for the length of a test."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from examples.json_http import JsonServer


@contextmanager
def serving(server: JsonServer) -> Iterator[str]:
    """Yield the server's address; stop it and wait for its thread at the end."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.url
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
