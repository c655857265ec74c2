"""Decides what a missing server means: a skip for a developer, a failure for CI."""

import os
import socket
from typing import NoReturn

import pytest


def service_missing(what: str) -> NoReturn:
    """End the test here. ``what`` names the server and how to get it."""
    if os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(f"CI must have every service: {what}", pytrace=False)
    pytest.skip(what)


def answers(host: str, port: int) -> bool:
    """True if something accepts connections there within a second."""
    try:
        with socket.create_connection((host, port), timeout=1):
            return True
    except OSError:
        return False


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on. Another process may take it first: start the server at once."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
