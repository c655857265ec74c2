"""Drives real clients against the counting server, inside what a step's body is, and prints the calls recorded.

``python client_driver.py BASE_URL NAME...`` runs the drives named and prints
``{"versions": {...}, "calls": [...]}``. Each drive is what a user writes, with
no line about usage.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import metadata
from typing import Any

from paidonce import provider_client
from paidonce.usage.call_recorder import CallRecorder, recording_into
from paidonce_workers.capture import capturing

CLIENTS = ("openai", "anthropic", "google-genai", "litellm", "pydantic-ai-slim", "httpx", "httpx2", "aiohttp")
MESSAGES: list[Any] = [{"role": "user", "content": "a ship?"}]


def say(text: str) -> list[Any]:
    """A conversation that ends with this text."""
    return [*MESSAGES, {"role": "user", "content": text}]


def openai_chat(base: str) -> None:
    import openai

    with openai.OpenAI(base_url=f"{base}/v1", api_key="key", max_retries=3) as client:
        client.chat.completions.create(model="gpt-4o-mini", messages=say("plain"))
        client.chat.completions.create(model="gpt-5-mini", messages=say("plain " + "long " * 10_000))
        client.chat.completions.create(model="gpt-4o-mini", messages=say("busy chat"))
        client.chat.completions.create(model="a-model-nobody-knows", messages=say("plain"))
        for text in ("refused", "dropped"):
            try:
                client.with_options(max_retries=0).chat.completions.create(model="gpt-4o-mini", messages=say(text))
            except openai.APIError:
                pass


def openai_streams(base: str) -> None:
    import openai

    with openai.OpenAI(base_url=f"{base}/v1", api_key="key", max_retries=0) as client:
        for usage in (True, False):
            options: Any = {"include_usage": True} if usage else openai.NOT_GIVEN
            stream = client.chat.completions.create(
                model="gpt-4o-mini", messages=say("plain"), stream=True, stream_options=options
            )
            assert sum(1 for _ in stream) > 5
        with client.chat.completions.stream(
            model="gpt-4o-mini", messages=say("plain"), stream_options={"include_usage": True}
        ) as events:
            events.until_done()
        try:
            for _ in client.chat.completions.create(model="gpt-4o-mini", messages=say("cut"), stream=True):
                pass
        except Exception as error:  # noqa: BLE001 # each client has its own for a cut stream
            print(type(error).__name__, file=sys.stderr)


def openai_responses(base: str) -> None:
    import openai

    with openai.OpenAI(base_url=f"{base}/v1", api_key="key", max_retries=2) as client:
        client.responses.create(model="gpt-5", input="plain")
        client.responses.create(model="gpt-5", input="busy responses")
        for _ in client.responses.create(model="gpt-5", input="plain", stream=True):
            pass
        try:
            for _ in client.responses.create(model="gpt-5", input="cut", stream=True):
                pass
        except Exception as error:  # noqa: BLE001 # each client has its own for a cut stream
            print(type(error).__name__, file=sys.stderr)


def openai_embeddings(base: str) -> None:
    import openai

    with openai.OpenAI(base_url=f"{base}/v1", api_key="key") as client:
        client.embeddings.create(model="text-embedding-3-small", input="plain")
        client.embeddings.create(model="text-embedding-3-small", input=["plain"] * 100)


def openai_async(base: str) -> None:
    import openai

    async def one(client: openai.AsyncOpenAI, text: str) -> None:
        await client.chat.completions.create(model="gpt-4o-mini", messages=say(text))

    async def main() -> None:
        async with openai.AsyncOpenAI(base_url=f"{base}/v1", api_key="key", max_retries=2) as client:
            await asyncio.gather(*(one(client, "plain") for _ in range(5)), one(client, "busy async"))
            stream = await client.chat.completions.create(
                model="gpt-4o-mini", messages=say("plain"), stream=True, stream_options={"include_usage": True}
            )
            async for _ in stream:
                pass
            async for _ in await client.responses.create(model="gpt-5", input="plain", stream=True):
                pass
            await client.embeddings.create(model="text-embedding-3-small", input="plain")

    asyncio.run(main())


def openai_threads(base: str) -> None:
    import openai

    with openai.OpenAI(base_url=f"{base}/v1", api_key="key") as client:

        def ask() -> None:
            client.chat.completions.create(model="gpt-4o-mini", messages=say("plain"))

        thread = threading.Thread(target=ask)
        thread.start()
        with ThreadPoolExecutor(2) as pool:
            for future in [pool.submit(ask) for _ in range(3)]:
                future.result()
            list(pool.map(lambda _: ask(), range(2)))

        async def hand_over() -> None:
            await asyncio.to_thread(ask)
            await asyncio.get_running_loop().run_in_executor(None, ask)

        asyncio.run(hand_over())
        thread.join()


def anthropic_messages(base: str) -> None:
    import anthropic

    given: dict[str, Any] = {"model": "claude-sonnet-4-5", "max_tokens": 100}
    with anthropic.Anthropic(base_url=base, api_key="key", max_retries=3) as client:
        client.messages.create(**given, messages=say("plain"))
        client.messages.create(**given, messages=say("busy anthropic"))
        with client.messages.stream(**given, messages=say("plain")) as stream:
            stream.until_done()
        for _ in client.messages.create(**given, messages=say("plain"), stream=True):
            pass
        try:
            for _ in client.messages.create(**given, messages=say("cut"), stream=True):
                pass
        except Exception as error:  # noqa: BLE001 # each client has its own for a cut stream
            print(type(error).__name__, file=sys.stderr)

    async def main() -> None:
        async with anthropic.AsyncAnthropic(base_url=base, api_key="key") as client:
            await client.messages.create(**given, messages=say("plain"))
            async with client.messages.stream(**given, messages=say("plain")) as stream:
                await stream.until_done()

    asyncio.run(main())


def google_genai(base: str) -> None:
    from google import genai
    from google.genai import types

    retries = types.HttpRetryOptions(attempts=3, initial_delay=0.01, max_delay=0.02, http_status_codes=[503])
    client = genai.Client(api_key="key", http_options=types.HttpOptions(base_url=base, retry_options=retries))
    model = "gemini-2.5-flash"
    client.models.generate_content(model=model, contents="plain")
    client.models.generate_content(model=model, contents="busy google")
    for _ in client.models.generate_content_stream(model=model, contents="plain"):
        pass
    try:
        for _ in client.models.generate_content_stream(model=model, contents="cut"):
            pass
    except Exception as error:  # noqa: BLE001 # each client has its own for a cut stream
        print(type(error).__name__, file=sys.stderr)
    client.models.embed_content(model="gemini-embedding-001", contents=["plain"])


def google_genai_async(base: str) -> None:
    from google import genai
    from google.genai import types

    async def main() -> None:
        client = genai.Client(api_key="key", http_options=types.HttpOptions(base_url=base))
        model = "gemini-2.5-flash"
        await client.aio.models.generate_content(model=model, contents="plain")
        for text in ("plain", "cut"):
            try:
                async for _ in await client.aio.models.generate_content_stream(model=model, contents=text):
                    pass
            except Exception as error:  # noqa: BLE001 # as above
                print(type(error).__name__, file=sys.stderr)
        for text in ("refused", "dropped"):
            try:
                await client.aio.models.generate_content(model=model, contents=text)
            except Exception as error:  # noqa: BLE001 # as above
                print(type(error).__name__, file=sys.stderr)
        await client.aio.aclose()

    asyncio.run(main())


def litellm(base: str) -> None:
    import litellm as lite

    lite.suppress_debug_info = True
    openai: dict[str, Any] = {"model": "openai/gpt-4o-mini", "api_base": f"{base}/v1", "api_key": "key"}
    claude: dict[str, Any] = {
        "model": "anthropic/claude-sonnet-4-5",
        "api_base": f"{base}/v1/messages",
        "api_key": "key",
    }
    lite.completion(**openai, messages=say("plain"), num_retries=0)
    lite.completion(**openai, messages=say("busy litellm"), max_retries=2)
    for _ in lite.completion(
        **openai, messages=say("plain"), stream=True, stream_options={"include_usage": True}, num_retries=0
    ):
        pass
    lite.completion(**claude, messages=say("plain"), max_tokens=10, num_retries=0)
    for _ in lite.completion(**claude, messages=say("plain"), max_tokens=10, stream=True, num_retries=0):
        pass
    lite.embedding(model="openai/text-embedding-3-small", input=["plain"], api_base=f"{base}/v1", api_key="key")

    async def main() -> None:
        await lite.acompletion(**openai, messages=say("plain"), num_retries=0)
        await lite.acompletion(**claude, messages=say("plain"), max_tokens=10, num_retries=0)
        stream: Any = await lite.acompletion(**openai, messages=say("plain"), stream=True, num_retries=0)
        async for _ in stream:
            pass

    asyncio.run(main())


def pydantic_ai(base: str) -> None:
    from pydantic_ai import Agent
    from pydantic_ai.models.anthropic import AnthropicModel
    from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
    from pydantic_ai.providers.anthropic import AnthropicProvider
    from pydantic_ai.providers.openai import OpenAIProvider

    speaking = OpenAIProvider(base_url=f"{base}/v1", api_key="key")
    models: list[Any] = [
        OpenAIChatModel("gpt-4o-mini", provider=speaking),
        OpenAIResponsesModel("gpt-5", provider=speaking),
        AnthropicModel("claude-sonnet-4-5", provider=AnthropicProvider(base_url=base, api_key="key")),
    ]
    for model in models:
        Agent(model).run_sync("plain")

    async def main() -> None:
        for model in models:
            async with Agent(model).run_stream("plain") as result:
                await result.get_output()

    asyncio.run(main())


def openai_helped(base: str) -> None:
    import openai

    with provider_client(openai.OpenAI, base_url=f"{base}/v1", api_key="key") as client:
        refused(lambda: client.chat.completions.create(model="gpt-4o-mini", messages=say("busy openai helped")))


def anthropic_helped(base: str) -> None:
    import anthropic

    given: dict[str, Any] = {"model": "claude-sonnet-4-5", "max_tokens": 100}
    with provider_client(anthropic.Anthropic, base_url=base, api_key="key") as client:
        refused(lambda: client.messages.create(**given, messages=say("busy anthropic helped")))


def google_helped(base: str) -> None:
    from google import genai
    from google.genai import types

    for options in (types.HttpOptions(base_url=base), {"base_url": base}):
        client = provider_client(genai.Client, api_key="key", http_options=options)
        refused(partial(client.models.generate_content, model="gemini-2.5-flash", contents="busy google helped"))


def refused(call: Callable[[], object]) -> None:
    """One try at a server that is busy."""
    try:
        call()
    except Exception as error:  # noqa: BLE001 # each client has its own for a busy server
        print(type(error).__name__, file=sys.stderr)
    else:
        raise AssertionError("the server was not busy")


DRIVES: dict[str, Callable[[str], None]] = {
    drive.__name__: drive
    for drive in (
        *(openai_chat, openai_streams, openai_responses, openai_embeddings, openai_async, openai_threads),
        *(anthropic_messages, google_genai, google_genai_async, litellm, pydantic_ai),
        *(openai_helped, anthropic_helped, google_helped),
    )
}


def versions() -> dict[str, str]:
    """The clients that are installed here."""
    found = {}
    for name in CLIENTS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def main(base: str, *names: str) -> None:
    """Run the drives and print what was recorded."""
    host = base.removeprefix("http://")
    with capturing([(host, "openai"), (host, "anthropic"), (host, "google")]):
        recorder = CallRecorder()
        with recording_into(recorder):
            for name in names:
                DRIVES[name](base)
        calls = [dataclasses.asdict(call) for call in recorder.drain()]
    print(json.dumps({"versions": versions(), "calls": calls}))


if __name__ == "__main__":
    main(*sys.argv[1:])
