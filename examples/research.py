"""A research agent: it plans, searches, reads what it found, and writes a report.

Every model call is a `@step` and paid for; every search and fetch is a `@tool`.
The functions below the agent are ordinary code that talks to the real world: the
`openai` client to the server that OPENAI_BASE_URL names, `httpx` to the document
server that RESEARCH_DOCUMENTS_URL names. Run it with `paidonce worker examples.research`.
"""

import asyncio
import json
import os

import httpx
import openai
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam
from pydantic import BaseModel

from paidonce import agent, current_step, provider_client, record_usage, step, tool

MODEL = os.environ.get("RESEARCH_MODEL", "gpt-5-mini")
DOCUMENTS_URL = os.environ.get("RESEARCH_DOCUMENTS_URL", "http://127.0.0.1:8801")
MODEL_TIMEOUT_SECONDS = 60.0
DOCUMENTS_TIMEOUT_SECONDS = 10.0
MAXIMUM_TURNS = 8

INSTRUCTIONS = (
    "You are a careful researcher. Use web_search to find documents and fetch_document to have them read; call several "
    "tools at once where you can. Search a second time for what the first round left open. When you have enough, "
    "answer without calling a tool: a plan of the report in at most 6 sentences."
)


class ToolCall(BaseModel):
    """One call that the model requests; `arguments` is the JSON text it wrote."""

    id: str
    name: str
    arguments: str


class Turn(BaseModel):
    """One message of the conversation, in a form that can be stored."""

    role: str
    content: str = ""
    tool_calls: list[ToolCall] = []
    tool_call_id: str | None = None


class Note(BaseModel):
    """What one document says about the question."""

    source: str
    text: str


class Report(BaseModel):
    """What the agent returns."""

    question: str
    summary: str
    text: str
    sources: list[str]


@agent(budget_usd="0.50")
async def research(question: str) -> Report:
    """Plan, search and read until the model has enough, then write."""
    conversation = [Turn(role="system", content=INSTRUCTIONS), Turn(role="user", content=question)]
    notes: list[Note] = []
    for _ in range(MAXIMUM_TURNS):
        turn = await plan(conversation)
        conversation.append(turn)
        if not turn.tool_calls:
            break
        for result, note in await asyncio.gather(*(answer_call(question, call) for call in turn.tool_calls)):
            conversation.append(result)
            notes += [note] if note else []
    text = await write(question, notes)
    summary = await summarise(question, text)
    return Report(question=question, summary=summary, text=text, sources=[note.source for note in notes])


async def answer_call(question: str, call: ToolCall) -> tuple[Turn, Note | None]:
    """Execute the model's call. A fetched document is read at once; what it says becomes a note."""
    argument = next(iter(json.loads(call.arguments).values()), "")
    note = None
    if call.name == "web_search":
        content = json.dumps(await web_search(argument))
    elif call.name != "fetch_document":
        content = f"There is no tool named {call.name}."
    elif (document := await fetch_document(argument)) is None:
        content = f"There is no document named {argument}."
    else:
        content = await read(question, argument, document)
        note = Note(source=argument, text=content)
    return Turn(role="tool", content=content, tool_call_id=call.id), note


@step(timeout=120)
async def plan(conversation: list[Turn]) -> Turn:
    """Ask the model what to do next: call tools, or stop."""
    async with model_client() as client:
        response = await client.chat.completions.create(
            model=MODEL, messages=[as_message(turn) for turn in conversation], tools=TOOLS
        )
    record_usage(response, provider="openai")
    message = response.choices[0].message
    calls = [
        ToolCall(id=call.id, name=call.function.name, arguments=call.function.arguments)
        for call in message.tool_calls or []
        if call.type == "function"
    ]
    return Turn(role="assistant", content=message.content or "", tool_calls=calls)


@step(timeout=120)
async def read(question: str, source: str, document: str) -> str:
    """Extract from a document what it says about the question."""
    prompt = f"{question}\n\n{document}\n\nUse the document above to answer the question in at most 4 sentences."
    return await complete(prompt)


@step(timeout=120)
async def write(question: str, notes: list[Note]) -> str:
    """Write the report from the notes; the response is streamed, as one shown to a person would be."""
    material = "\n\n".join(f"From {note.source}:\n\n{note.text}" for note in notes)
    prompt = f"{question}\n\n{material}\n\nUse the notes above to write a report of at most 12 sentences."
    text = ""
    async with model_client() as client:
        stream = await client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": prompt}],
            stream=True,
            stream_options={"include_usage": True},
        )
        async for chunk in stream:
            text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
            if chunk.usage is not None:
                record_usage(chunk, provider="openai")
    return text


@step(timeout=120)
async def summarise(question: str, text: str) -> str:
    """Summarise the report."""
    prompt = f"{question}\n\n{text}\n\nSummarise the report above in at most 2 sentences."
    return await complete(prompt)


@tool(timeout=30)
async def web_search(query: str) -> list[dict[str, str | float]]:
    """Search the documents; the hits are the best first."""
    async with documents_client() as client:
        response = await client.get("/search", params={"q": query})
    response.raise_for_status()
    hits: list[dict[str, str | float]] = response.json()["hits"]
    return hits


@tool(timeout=30)
async def fetch_document(name: str) -> str | None:
    """Fetch the text of a document, or None if there is none of that name."""
    async with documents_client() as client:
        response = await client.get(f"/documents/{name}")
    if response.status_code == httpx.codes.NOT_FOUND:
        return None
    response.raise_for_status()
    return str(response.json()["text"])


async def complete(prompt: str) -> str:
    """One paid call of the model with a single message."""
    async with model_client() as client:
        response = await client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": prompt}])
    record_usage(response, provider="openai")
    return response.choices[0].message.content or ""


def model_client() -> openai.AsyncOpenAI:
    """A client that never retries by itself: retries belong to the step; its header lets a server count them."""
    headers = {"X-Step": current_step().idempotency_key}
    return provider_client(openai.AsyncOpenAI, timeout=MODEL_TIMEOUT_SECONDS, default_headers=headers)


def documents_client() -> httpx.AsyncClient:
    """A client of the document server."""
    return httpx.AsyncClient(base_url=DOCUMENTS_URL, timeout=DOCUMENTS_TIMEOUT_SECONDS)


def as_message(turn: Turn) -> ChatCompletionMessageParam:
    """A turn in the openai client's format."""
    if turn.role == "system":
        return {"role": "system", "content": turn.content}
    if turn.role == "user":
        return {"role": "user", "content": turn.content}
    if turn.role == "tool":
        return {"role": "tool", "content": turn.content, "tool_call_id": turn.tool_call_id or ""}
    if not turn.tool_calls:
        return {"role": "assistant", "content": turn.content}
    return {
        "role": "assistant",
        "content": turn.content or None,
        "tool_calls": [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in turn.tool_calls
        ],
    }


def describe_tool(name: str, purpose: str, argument: str) -> ChatCompletionToolParam:
    """A tool with one string argument, as described to the model."""
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": purpose,
            "parameters": {"type": "object", "properties": {argument: {"type": "string"}}, "required": [argument]},
        },
    }


TOOLS = [
    describe_tool("web_search", "Search the documents; gives names, scores and snippets.", "query"),
    describe_tool("fetch_document", "Have the document of that name read; gives what it says.", "name"),
]
