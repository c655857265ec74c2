"""Decides what the stand-in model responds: it plans searches, chooses documents, extracts.

A pure function from a checked request to a response; equal requests get equal responses
in every process. It is no language model. It reads the question and the tool results in
the conversation, calls `web_search` and `fetch_document` while those are offered and
useful, and otherwise responds with the sentences of the given material that match the
question best.
"""

import json
import re
from collections import Counter
from dataclasses import dataclass

from examples.model_requests import ChatRequest, Message
from examples.text_ranking import keywords, scores, sentences

SEARCH_ROUNDS = 2
QUERIES_PER_ROUND = (3, 2)
DOCUMENTS_PER_ROUND = (4, 3)
DEFAULT_SENTENCES = 5
SHORTEST_WORDS = 8
LEANING = ("But ", "He ", "It ", "She ", "So ", "That ", "These ", "They ", "This ", "Those ", "Then ")

# English text in OpenAI's tokenizers averages about four characters a token, and each
# message costs three or four tokens of framing; good to some ten per cent, and stable.
CHARACTERS_PER_TOKEN = 4
TOKENS_PER_MESSAGE = 4

_SENTENCES_ASKED = re.compile(r"(\d+) sentences?")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the model says: text, or calls of (function name, JSON arguments)."""

    text: str
    calls: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Progress:
    """The progress of the research so far, as the conversation shows it."""

    queries: tuple[str, ...]
    search_rounds: int
    fetch_rounds: int
    fetched: frozenset[str]
    found: tuple[str, ...]
    unread: bool


def answer(request: ChatRequest) -> Answer:
    """The model's next message for this conversation."""
    calls = _next_calls(request)
    if calls:
        return Answer(text="", calls=calls)
    return Answer(text=_extract(request.messages))


def count_tokens(text: str) -> int:
    """An approximation of the number of tokens: a quarter of the characters, rounded up."""
    return -(-len(text) // CHARACTERS_PER_TOKEN)


def input_tokens(request: ChatRequest) -> int:
    """Tokens of the whole prompt: messages, their calls, and the description of the tools."""
    total = count_tokens(request.tools_text)
    for message in request.messages:
        called = "".join(name + arguments for _, name, arguments in message.tool_calls)
        total += TOKENS_PER_MESSAGE + count_tokens(message.text + called)
    return total


def output_tokens(given: Answer) -> int:
    """Tokens of a response: its text, or the names and arguments of its calls."""
    return sum(count_tokens(name + arguments) for name, arguments in given.calls) + count_tokens(given.text)


def _question(messages: tuple[Message, ...]) -> str:
    """The first paragraph of the first user message."""
    text = next((message.text for message in messages if message.role == "user"), "")
    return text.strip().partition("\n\n")[0]


def _next_calls(request: ChatRequest) -> tuple[tuple[str, str], ...]:
    progress = _progress(request.messages)
    question = _question(request.messages)
    if "fetch_document" in request.tools and progress.unread:
        limit = DOCUMENTS_PER_ROUND[min(progress.fetch_rounds, len(DOCUMENTS_PER_ROUND) - 1)]
        names = [name for name in progress.found if name not in progress.fetched][:limit]
        if names:
            return tuple(("fetch_document", json.dumps({"name": name})) for name in names)
    if "web_search" in request.tools and (progress.search_rounds < SEARCH_ROUNDS or request.must_call == "web_search"):
        queries = (
            _first_queries(question)
            if progress.search_rounds == 0
            else _further_queries(request.messages, question, progress.queries)
        )
        return tuple(("web_search", json.dumps({"query": query})) for query in queries)
    if request.must_call is not None:
        return ((request.must_call, "{}"),)
    return ()


def _progress(messages: tuple[Message, ...]) -> _Progress:
    """Read the searches and documents of a conversation out of its tool calls and results."""
    queries: list[str] = []
    fetched: list[str] = []
    found: dict[str, float] = {}
    search_rounds = fetch_rounds = 0
    unread = False
    names_of_calls = {call_id: name for message in messages for call_id, name, _ in message.tool_calls}
    for message in messages:
        called = {name for _, name, _ in message.tool_calls}
        search_rounds += "web_search" in called
        fetch_rounds += "fetch_document" in called
        if called:
            unread = False
        for _, name, arguments in message.tool_calls:
            value = _argument(arguments)
            if value:
                (queries if name == "web_search" else fetched).append(value)
        if names_of_calls.get(message.tool_call_id or "") == "web_search":
            unread = True
            for name, score in _hits(message.text):
                found[name] = found.get(name, 0.0) + score
    return _Progress(
        queries=tuple(queries),
        search_rounds=search_rounds,
        fetch_rounds=fetch_rounds,
        fetched=frozenset(fetched),
        found=tuple(sorted(found, key=lambda name: (-found[name], name))),
        unread=unread,
    )


def _argument(arguments: str) -> str:
    """The one string argument of a call of ours, or an empty string."""
    try:
        values = list(json.loads(arguments).values())
    except (ValueError, AttributeError):
        return ""
    return values[0] if values and isinstance(values[0], str) else ""


def _hits(text: str) -> list[tuple[str, float]]:
    """The (name, score) pairs of a search result in JSON; anything else has none."""
    try:
        return [(str(hit["name"]), float(hit["score"])) for hit in json.loads(text)]
    except (ValueError, TypeError, KeyError):
        return []


def _first_queries(question: str) -> list[str]:
    """The question as a whole, then its clauses."""
    clauses = [question, *re.split(r"[,;:?]| and | or ", question)]
    queries = [" ".join(dict.fromkeys(keywords(clause))) for clause in clauses]
    return [query for query in dict.fromkeys(queries) if query][: QUERIES_PER_ROUND[0]] or [question or "overview"]


def _further_queries(messages: tuple[Message, ...], question: str, asked: tuple[str, ...]) -> list[str]:
    """Words that the results stress and no query has used yet, two per query."""
    known = set(keywords(" ".join((question, *asked))))
    counted = Counter(
        word
        for message in messages
        if message.role == "tool"
        for word in keywords(_prose(message.text))
        if word not in known and not word.isdigit()
    )
    words = sorted(counted, key=lambda word: (-counted[word], word))[: 2 * QUERIES_PER_ROUND[1]]
    return [" ".join(words[at : at + 2]) for at in range(0, len(words), 2)] or [question]


def _prose(text: str) -> str:
    """A tool result without the JSON around a search's snippets."""
    try:
        return " ".join(str(hit["snippet"]) for hit in json.loads(text))
    except (ValueError, TypeError, KeyError):
        return text


def _extract(messages: tuple[Message, ...]) -> str:
    """The sentences of the given material that answer the question best, in their original order."""
    question = _question(messages)
    parts = [message.text for message in messages if message.role == "user"]
    parts[:1] = [parts[0].strip().partition("\n\n")[2]] if parts else []
    parts += [_prose(message.text) for message in messages if message.role == "tool"]
    material = list(dict.fromkeys(s for part in parts for s in sentences(part)))
    asked = [int(number) for message in messages for number in _SENTENCES_ASKED.findall(message.text)]
    limit = asked[0] if asked else DEFAULT_SENTENCES
    chosen = sorted(_telling(question, material)[:limit])
    if not chosen:
        return "Nothing in the material answers the question."
    return " ".join(material[index] for index in chosen)


def _telling(question: str, material: list[str]) -> list[int]:
    """Sentences that match, best first; those that lean on the one before them count half."""
    rated = scores(question, material, length_weight=0.2)
    for index, sentence in enumerate(material):
        if sentence.startswith(LEANING) or len(sentence.split()) < SHORTEST_WORDS:
            rated[index] /= 2
    order = sorted(range(len(material)), key=lambda index: (-rated[index], index))
    return [index for index in order if rated[index] > 0]
