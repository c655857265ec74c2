"""Real clients, with no line of theirs about usage: the calls recorded are the server's own count."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.capture.conftest import CountingServer, client_environment, drive, ledger_rows

OPENAI = (
    *("openai_chat", "openai_streams", "openai_responses", "openai_embeddings"),
    *("openai_async", "openai_threads"),
)


@pytest.mark.slow
def test_openai_is_recorded_call_for_call_and_token_for_token(counting_server: CountingServer) -> None:
    printed = drive(sys.executable, counting_server, *OPENAI)
    assert_equal_counts(printed, counting_server, calls=39)
    by_model = {call["model_requested"]: call for call in printed["calls"] if call["usage_source"] == "provider"}
    assert by_model["a-model-nobody-knows"]["cost_nanousd"] is None
    call = by_model["gpt-4o-mini"]
    plain = call["input_tokens"] - call["cache_read_tokens"]
    assert call["cost_nanousd"] == plain * 150 + call["cache_read_tokens"] * 75 + call["output_tokens"] * 600


@pytest.mark.slow
def test_a_retry_hidden_in_the_sdk_is_a_call_of_its_own(counting_server: CountingServer) -> None:
    calls = drive(sys.executable, counting_server, "openai_responses")["calls"]
    retried = [call for call in calls if call["http_retry"] or call["status"] == "failed"]
    assert [(call["status"], call["http_retry"], call["usage_source"]) for call in retried] == [
        ("failed", 0, "missing"),
        ("failed", 1, "missing"),
        ("ok", 2, "provider"),
    ]
    assert all(call["duration_us"] > 0 for call in calls)


@pytest.mark.slow
def test_a_client_made_by_the_helper_tries_once(counting_server: CountingServer) -> None:
    (call,) = drive(sys.executable, counting_server, "openai_helped")["calls"]
    assert (call["status"], call["http_retry"]) == ("failed", 0)
    assert len(counting_server.rows()) == 1


SETS: dict[str, tuple[list[str], dict[str, int]]] = {
    "older": (
        ["openai>=2,<3", "google-genai>=2,<4", "litellm>=1.106,<2"],
        {**dict.fromkeys(OPENAI, 0), "google_genai": 7, "google_genai_async": 5, "litellm": 11, "google_helped": 2},
    ),
    "newer": (
        ["openai>=3,<4", "anthropic>=2,<3", "google-genai>=3,<4", "pydantic-ai-slim[openai,anthropic,google]>=2,<3"],
        {
            **dict.fromkeys(OPENAI, 0),
            "anthropic_messages": 9,
            "google_genai": 7,
            "google_genai_async": 5,
            "pydantic_ai": 6,
            "openai_helped": 1,
            "anthropic_helped": 1,
            "google_helped": 2,
        },
    ),
}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", SETS)
def test_released_clients_are_recorded_as_well(
    name: str, counting_server: CountingServer, pytestconfig: pytest.Config
) -> None:
    requirements, drives = SETS[name]
    assert pytestconfig.cache is not None
    python: Path = client_environment(pytestconfig.cache, name, requirements)
    printed = drive(python, counting_server, *drives)
    print(printed["versions"])
    assert ledger_rows(printed["calls"]) == counting_server.rows()
    # At least: how often a client tries again after a dropped connection is its own business.
    assert len(printed["calls"]) >= 39 + sum(drives.values())


def assert_equal_counts(printed: dict[str, Any], server: CountingServer, *, calls: int) -> None:
    assert ledger_rows(printed["calls"]) == server.rows()
    assert len(printed["calls"]) == calls
