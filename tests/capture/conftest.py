"""A counting server for a test, and environments with released clients."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.services.availability import service_missing

HERE = Path(__file__).parent
COMPARED = (
    *("provider", "model_requested", "model_billed", "status", "input_tokens", "cache_read_tokens"),
    *("cache_write_tokens", "output_tokens", "reasoning_tokens"),
)


@dataclass(frozen=True)
class CountingServer:
    """The server's address, and its own count of what was asked of it."""

    url: str

    @property
    def hosts(self) -> str:
        """The setting that says what it speaks."""
        host = self.url.removeprefix("http://")
        return f"{host}=openai,{host}=anthropic,{host}=google"

    def count(self) -> list[dict[str, Any]]:
        with urllib.request.urlopen(f"{self.url}/count", timeout=10) as answer:
            entries: list[dict[str, Any]] = json.load(answer)
        return entries

    def rows(self) -> list[tuple[Any, ...]]:
        """Its count as the ledger should have it."""
        return sorted_rows([(*(entry[name] for name in COMPARED), entry["request_id"]) for entry in self.count()])


def ledger_rows(calls: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Recorded calls in the same form."""
    return sorted_rows([(*(call[name] for name in COMPARED), call["provider_request_id"]) for call in calls])


def sorted_rows(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return sorted(rows, key=lambda row: [str(value) for value in reversed(row)])


@pytest.fixture
def counting_server() -> Iterator[CountingServer]:
    """A process of its own, isolated from every installed package."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", str(HERE / "counting_server.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        yield CountingServer(f"http://127.0.0.1:{int(process.stdout.readline())}")
    finally:
        process.stdin.close()
        process.wait(timeout=10)
        process.stdout.close()


def drive(python: str | Path, server: CountingServer, *names: str) -> dict[str, Any]:
    """Run drives of ``client_driver`` with that interpreter; what it printed."""
    done = subprocess.run(
        [str(python), "-W", "ignore", str(HERE / "client_driver.py"), server.url, *names],
        capture_output=True,
        text=True,
        timeout=120,
        env={"PATH": "/usr/bin:/bin", "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
    )
    assert done.returncode == 0, done.stderr
    assert "usage capture failed" not in done.stderr, done.stderr
    printed: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return printed


def client_environment(cache: pytest.Cache, name: str, requirements: list[str]) -> Path:
    """The interpreter of an environment that has these clients and this one's Paidonce; made once and kept."""
    folder = Path(cache.mkdir(f"clients-{name}"))
    python = folder / "bin" / "python"
    stamp = folder / "requirements.txt"
    wanted = "\n".join([sys.version, *requirements])
    if not stamp.exists() or stamp.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        installed = subprocess.run(
            [str(python), "-m", "pip", "install", "--quiet", "--no-compile", *requirements],
            capture_output=True,
            text=True,
        )
        if installed.returncode != 0:
            service_missing(f"the clients {' '.join(requirements)} could not be installed: {installed.stderr[-500:]}")
        # What this environment has stands behind what the clients brought.
        link = f"import site; site.addsitedir({sysconfig.get_paths()['purelib']!r})\n"
        (next((folder / "lib").glob("python*")) / "site-packages" / "zz_paidonce.pth").write_text(link)
        stamp.write_text(wanted)
    return python
