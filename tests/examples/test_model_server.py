"""The stand-in model speaks to the real openai client, plans, and counts."""

import asyncio
import json
import select
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam

from examples.model_server import create_server
from tests.examples.serving import serving
from tests.services.waiting import wait_until

QUESTION = "How did the shipping container change ports, and what did dock workers lose?"
MATERIAL = "The container changed ports. Bananas are yellow. Dock workers lost their jobs. The moon is far away."


def tool(name: str, argument: str) -> ChatCompletionToolParam:
    """The description of a tool with one string argument."""
    return {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {argument: {"type": "string"}},
                "required": [argument],
            },
        },
    }


TOOLS = [tool("web_search", "query"), tool("fetch_document", "name")]


@pytest.fixture
def url() -> Iterator[str]:
    """A running model server that answers at once."""
    with serving(create_server()) as address:
        yield address


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    """The real client, without retries of its own."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as made:
        yield made


def ask(client: openai.OpenAI, text: str, **options: Any) -> Any:  # Any: overloads of create
    """One user message to the model."""
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": text}]
    return client.chat.completions.create(model="gpt-5-mini", messages=messages, **options)


def request_log(url: str) -> Any:  # Any: JSON
    """The server's own count."""
    return httpx.get(f"{url}/requests").json()


def test_answer_is_taken_from_the_material_and_carries_usage(client: openai.OpenAI) -> None:
    response = ask(client, f"{QUESTION}\n\n{MATERIAL}\n\nAnswer in 2 sentences.")
    assert response.choices[0].message.content == ("The container changed ports. Dock workers lost their jobs.")
    assert response.choices[0].finish_reason == "stop"
    assert response.model == "gpt-5-mini"
    assert response.usage.prompt_tokens > 40
    assert response.usage.completion_tokens == 15
    assert response.usage.total_tokens == response.usage.prompt_tokens + 15


def test_equal_requests_get_equal_answers(client: openai.OpenAI) -> None:
    first, second = (ask(client, QUESTION, tools=TOOLS) for _ in range(2))
    assert first.choices == second.choices
    assert first.usage == second.usage


def test_async_client_is_answered(url: str) -> None:
    async def complete() -> str | None:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            response = await client.chat.completions.create(
                model="gpt-4o-mini",
                messages=[{"role": "user", "content": f"{QUESTION}\n\n{MATERIAL}"}],
            )
            return response.choices[0].message.content

    assert "Dock workers lost" in (asyncio.run(complete()) or "")


def test_stream_adds_up_to_the_whole_answer_and_ends_with_usage(client: openai.OpenAI) -> None:
    prompt = f"{QUESTION}\n\n{MATERIAL}"
    whole = ask(client, prompt)
    chunks = list(ask(client, prompt, stream=True, stream_options={"include_usage": True}))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_stream_without_include_usage_has_no_usage(client: openai.OpenAI) -> None:
    chunks = list(ask(client, QUESTION, stream=True))
    assert all(chunk.usage is None for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_streamed_tool_calls_are_the_same_calls(client: openai.OpenAI) -> None:
    whole = ask(client, QUESTION, tools=TOOLS).choices[0].message.tool_calls
    chunks = list(ask(client, QUESTION, tools=TOOLS, stream=True))
    streamed = [c for chunk in chunks for c in chunk.choices[0].delta.tool_calls or []]
    assert len({call.id for call in streamed}) == len(whole)
    assert [call.function.arguments for call in streamed] == [call.function.arguments for call in whole]


def test_it_searches_then_fetches_what_was_found_then_answers_from_it(
    client: openai.OpenAI,
) -> None:
    conversation: list[Any] = [{"role": "user", "content": QUESTION}]  # Any: SDK message types
    results = {
        "web_search": json.dumps(
            [
                {"name": "boxes", "score": 2.0, "snippet": "Boxes changed ports."},
                {"name": "docks", "score": 3.0, "snippet": "Cranes replaced gangs."},
            ]
        ),
        "fetch_document": "Dock workers lost their work to cranes. Whales sing.",
    }
    rounds: list[list[str]] = []
    message: Any = None
    while len(rounds) < 8:
        message = (
            client.chat.completions.create(model="gpt-5-mini", messages=conversation, tools=TOOLS).choices[0].message
        )
        if not message.tool_calls:
            break
        rounds.append([call.function.name for call in message.tool_calls])
        conversation.append(message)
        for call in message.tool_calls:
            content = results[call.function.name]
            conversation.append({"role": "tool", "tool_call_id": call.id, "content": content})
    assert rounds[0] == ["web_search"] * 3
    assert rounds[1] == ["fetch_document"] * 2
    assert rounds[2] == ["web_search"] * 2
    assert len(rounds) == 3, "nothing new was found, so nothing more is fetched"
    assert "Dock workers lost their work to cranes." in (message.content or "")
    assert "Whales" not in (message.content or "")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"messages": []}, "empty_array"),
        ({}, "missing_required_parameter"),
        ({"messages": "hello"}, "invalid_type"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "invalid_value"),
        ({"messages": [{"role": "user", "content": None}]}, None),
        ({"messages": [{"role": "user", "content": 5}]}, "invalid_type"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "c1"}]}, None),
        ({"messages": [{"role": "user", "content": "x"}], "stream_options": {}}, None),
        ({"messages": [{"role": "user", "content": "x"}], "tool_choice": "auto"}, None),
        ({"messages": [{"role": "user", "content": "x"}], "tools": [{}]}, "invalid_type"),
        ({"messages": [{"role": "user", "content": "x"}], "n": 2}, None),
    ],
)
def test_malformed_request_is_refused_in_the_format_of_the_real_api(
    url: str, body: dict[str, object], code: str | None
) -> None:
    response = httpx.post(
        f"{url}/v1/chat/completions",
        json={"model": "gpt-5-mini", **body},
        headers={"Authorization": "Bearer none"},
    )
    error = response.json()["error"]
    assert response.status_code == 400
    assert error["type"] == "invalid_request_error"
    assert error["code"] == code
    assert error["message"]


def test_tool_call_without_its_answer_is_refused(client: openai.OpenAI) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages: list[Any] = [  # Any: SDK message types
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "user", "content": "y"},
    ]
    with pytest.raises(openai.BadRequestError, match="c1"):
        client.chat.completions.create(model="gpt-5-mini", messages=messages)


def test_body_that_is_not_json_is_refused(url: str) -> None:
    response = httpx.post(f"{url}/v1/chat/completions", content=b"{", headers={"Authorization": "Bearer none"})
    assert response.status_code == 400
    assert "parse the JSON body" in response.json()["error"]["message"]


def test_unknown_model_missing_key_and_unknown_address_are_refused(url: str, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="gpt-99"):
        client.chat.completions.create(model="gpt-99", messages=[{"role": "user", "content": "hello"}])
    assert httpx.post(f"{url}/v1/chat/completions", json={}).status_code == 401
    assert httpx.post(f"{url}/v1/embeddings", json={}).status_code == 404


def test_models_are_listed(client: openai.OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert "gpt-5-mini" in names
    assert client.models.retrieve("gpt-5-mini").id == "gpt-5-mini"


def test_every_request_is_counted_with_the_step_that_its_header_names(url: str, client: openai.OpenAI) -> None:
    ask(client, QUESTION, extra_headers={"X-Step": "plan 1"})
    ask(client, QUESTION, extra_headers={"X-Step": "plan 1"})
    with pytest.raises(openai.BadRequestError):
        ask(client, QUESTION, n=3)
    log = request_log(url)
    first, second, refused = log["requests"]
    assert log["in_flight"] == 0
    assert (first["step"], first["status"], first["delivered"]) == ("plan 1", 200, True)
    assert first["fingerprint"] == second["fingerprint"] != refused["fingerprint"]
    assert first["answered_at"] >= first["arrived_at"]
    assert (refused["step"], refused["status"]) == (None, 400)
    assert (refused["input_tokens"], refused["output_tokens"]) == (0, 0)


def test_answer_to_a_client_that_went_away_is_counted_as_not_delivered() -> None:
    with serving(create_server(latency_seconds=1.5)) as url:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(
                f"{url}/v1/chat/completions",
                json={"model": "gpt-5-mini", "messages": [{"role": "user", "content": "x"}]},
                headers={"Authorization": "Bearer none"},
                timeout=httpx.Timeout(60, read=0.1),
            )

        def finished() -> dict[str, Any] | None:
            log = request_log(url)
            return log if log["requests"] and log["in_flight"] == 0 else None

        log = wait_until(finished, "the model to finish its answer")
        assert log is not None
        (entry,) = log["requests"]
        assert entry["delivered"] is False
        assert entry["output_tokens"] > 0


@pytest.mark.parametrize("module", ["examples.model_server", "examples.document_server"])
def test_server_is_a_process_that_prints_its_address_and_stops_at_sigterm(module: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", module], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], 20)[0], "no address within 20 seconds"
        address = process.stdout.readline().strip()
        assert httpx.get(f"{address}/nothing").status_code == 404
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=10)
    assert process.returncode == 0
    assert errors == ""
