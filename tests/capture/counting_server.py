"""A provider of models that keeps its own count: ``python -I -S counting_server.py`` prints its port and serves.

Answers in the recorded shapes of OpenAI (chat completions, Responses,
embeddings), Anthropic and Gemini, streamed and whole, and writes down for each
request what a bill would say. Stands alone: nothing of Paidonce and no package
is imported, so that its count owes nothing to what it is compared with.

The last text of a request says what happens: ``busy`` gets 503 twice before an
answer, ``refused`` 400, ``dropped`` a closed connection, ``cut`` a stream that
ends in the middle, ``slow`` a pause before the answer. ``GET /count`` is the
count so far, as a list of entries.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

GOOGLE = re.compile(r"/models/([^/:]+):(\w+)$")
WORDS = ["It", " is", " a", " ship", ".", ' "usage": {"input_tokens": 9}', " bye"]


class Count:
    """What was asked, by whom the order matters, and what it costs."""

    def __init__(self):
        self.lock = threading.Lock()
        self.entries = []
        self.tries = Counter()

    def open(self, api, model, text):
        with self.lock:
            number = len(self.entries) + 1
            self.tries[text] += 1
            entry = {
                "provider": {"chat": "openai", "responses": "openai", "embeddings": "openai"}.get(api, api),
                "api": api,
                "model_requested": model,
                "model_billed": None,
                "status": "failed",
                "request_id": None,
                "input_tokens": None,
                "cache_read_tokens": None,
                "cache_write_tokens": None,
                "output_tokens": None,
                "reasoning_tokens": None,
                "number": number,
                "try": self.tries[text],
            }
            self.entries.append(entry)
            return entry


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        with self.server.count.lock:
            self.send_json(200, self.server.count.entries, {})

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        request = json.loads(body)
        path = self.path.partition("?")[0]
        google = GOOGLE.search(path)
        if google:
            api, model = ("google", google[1])
        elif path.endswith("/messages"):
            api, model = "anthropic", request["model"]
        else:
            api = {"/chat/completions": "chat", "/responses": "responses", "/embeddings": "embeddings"}[
                "/" + path.partition("/v1/")[2]
            ]
            model = request["model"]
        text = last_text(request)
        entry = self.server.count.open(api, model, text)
        if "slow" in text:
            time.sleep(0.3)
        if "dropped" in text:
            self.close_connection = True
            self.connection.close()
            return
        headers = {"anthropic": "request-id", "google": "x-goog-request-id"}.get(api, "x-request-id")
        entry["request_id"] = f"req_{entry['number']}"
        identity = {headers: entry["request_id"]}
        if "busy" in text and entry["try"] <= 2:
            self.send_json(503, error_of(api), {**identity, "retry-after": "0"})
            return
        if "refused" in text:
            self.send_json(400, error_of(api), identity)
            return
        self.answer(api, google[2] if google else "", request, text, entry, identity)

    def answer(self, api, method, request, text, entry, identity):
        entry["status"] = "ok"
        entry["model_billed"] = entry["model_requested"] + ("" if api == "google" else "-2026-01-01")
        n = entry["number"]
        if api == "embeddings":
            entry.update(input_tokens=10 + n, output_tokens=0)
            self.send_json(200, embeddings(request, entry), identity)
            return
        if api == "google" and method.lower().endswith("contents") and "mbed" in method:
            entry["model_billed"] = None  # nothing is told
            self.send_json(200, {"embeddings": [{"values": [0.5, 0.25]} for _ in request["requests"]]}, identity)
            return
        entry.update(input_tokens=1000 + n, cache_read_tokens=300 + n, output_tokens=50 + n)
        if api in ("chat", "responses", "google"):
            entry["reasoning_tokens"] = 20 + n
        if api == "anthropic":
            entry["cache_write_tokens"] = 100 + n
        is_stream = bool(request.get("stream")) or method == "streamGenerateContent"
        if not is_stream:
            shape = {"chat": chat, "responses": response, "anthropic": message, "google": content}[api]
            self.send_json(200, shape(entry), identity)
            return
        cut = "cut" in text
        if cut:
            entry["status"] = "cut"
        as_array = api == "google" and "alt=sse" not in self.path
        pieces = list(
            {"chat": chat_events, "responses": response_events, "anthropic": message_events, "google": contents}[api](
                entry, request, cut
            )
        )
        self.send_stream(pieces, identity, as_array, cut)

    def send_json(self, status, document, headers):
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        if status == 200 and "gzip" in (self.headers.get("accept-encoding") or ""):
            data = gzip.compress(data)
            self.send_header("content-encoding", "gzip")
        self.send_header("content-length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def send_stream(self, pieces, headers, as_array, cut):
        self.send_response(200)
        self.send_header("content-type", "application/json" if as_array else "text/event-stream; charset=utf-8")
        self.send_header("transfer-encoding", "chunked")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if as_array:
            texts = [("[" if i == 0 else ",\r\n") + json.dumps(piece) for i, (_, piece) in enumerate(pieces)]
            texts += [] if cut else ["\n]\n"]
        else:
            texts = [event_text(name, piece) for name, piece in pieces]
        raw = "".join(texts).encode()
        # In odd pieces, as networks do: a line may arrive in parts, and several lines at once.
        for start in range(0, len(raw), 97):
            part = raw[start : start + 97]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
            self.wfile.flush()
        if cut:  # the connection dies without the last chunk
            self.close_connection = True
            self.connection.shutdown(2)
            return
        self.wfile.write(b"0\r\n\r\n")


def event_text(name, piece):
    data = piece if isinstance(piece, str) else json.dumps(piece)
    return (f"event: {name}\n" if name else "") + f"data: {data}\n\n"


def last_text(request):
    """The text that says what is to happen, wherever the API puts it."""
    for name in ("messages", "contents", "input", "requests"):
        value = request.get(name)
        while isinstance(value, (list, dict)) and value:
            if isinstance(value, list):
                value = value[-1]
            else:
                value = next((value[key] for key in ("content", "parts", "text") if key in value), "")
        if isinstance(value, str) and value:
            return value
    return ""


def error_of(api):
    message = "the server says no"
    if api == "anthropic":
        return {"type": "error", "error": {"type": "overloaded_error", "message": message}}
    if api == "google":
        return {"error": {"code": 503, "message": message, "status": "UNAVAILABLE"}}
    return {"error": {"message": message, "type": "server_error", "param": None, "code": None}}


def chat_usage(entry):
    return {
        "prompt_tokens": entry["input_tokens"],
        "completion_tokens": entry["output_tokens"],
        "total_tokens": entry["input_tokens"] + entry["output_tokens"],
        "prompt_tokens_details": {"cached_tokens": entry["cache_read_tokens"], "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": entry["reasoning_tokens"],
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def chat_head(entry, kind):
    number, model = entry["number"], entry["model_billed"]
    return {"id": f"chatcmpl-{number}", "object": kind, "created": 1790000000, "model": model}


def chat(entry):
    said = {"role": "assistant", "content": "".join(WORDS), "refusal": None, "annotations": []}
    choice = {"index": 0, "message": said, "logprobs": None, "finish_reason": "stop"}
    return {
        **chat_head(entry, "chat.completion"),
        "choices": [choice],
        "usage": chat_usage(entry),
        "service_tier": "default",
        "system_fingerprint": "fp_1",
    }


def chat_events(entry, request, cut):
    told = (request.get("stream_options") or {}).get("include_usage")
    head = {**chat_head(entry, "chat.completion.chunk"), "service_tier": "default", "system_fingerprint": "fp_1"}
    if told:
        head["usage"] = None
    if cut or not told:  # nobody is told what it cost
        usage = None if cut or not told else chat_usage(entry)
        for name in ("input_tokens", "cache_read_tokens", "output_tokens", "reasoning_tokens"):
            entry[name] = None
    else:
        usage = chat_usage(entry)
    yield (
        None,
        {**head, "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]},
    )
    for word in WORDS:
        yield None, {**head, "choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]}
        if cut:
            return
    yield None, {**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    if told:
        yield None, {**head, "choices": [], "usage": usage}
    yield None, "[DONE]"


def response(entry, status="completed", with_usage=True):
    part = {"type": "output_text", "text": "".join(WORDS), "annotations": [], "logprobs": []}
    said = {"id": "msg_1", "type": "message", "status": "completed", "role": "assistant", "content": [part]}
    usage = {
        "input_tokens": entry["input_tokens"],
        "input_tokens_details": {"cached_tokens": entry["cache_read_tokens"]},
        "output_tokens": entry["output_tokens"],
        "output_tokens_details": {"reasoning_tokens": entry["reasoning_tokens"]},
        "total_tokens": (entry["input_tokens"] or 0) + (entry["output_tokens"] or 0),
    }
    return {
        "id": f"resp_{entry['number']}",
        "object": "response",
        "created_at": 1790000000,
        "status": status,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "max_output_tokens": None,
        "model": entry["model_billed"],
        "output": [said] if with_usage else [],
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "reasoning": {"effort": "medium", "summary": None},
        "service_tier": "default",
        "store": True,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": usage if with_usage else None,
        "user": None,
        "metadata": {},
    }


def response_events(entry, request, cut):
    opened = response(entry, "in_progress", False)
    whole = response(entry)
    if cut:
        for name in ("input_tokens", "cache_read_tokens", "output_tokens", "reasoning_tokens"):
            entry[name] = None
    yield "response.created", {"type": "response.created", "sequence_number": 0, "response": opened}
    item = {"id": "msg_1", "type": "message", "status": "in_progress", "role": "assistant", "content": []}
    added = {"type": "response.output_item.added", "sequence_number": 1, "output_index": 0, "item": item}
    yield "response.output_item.added", added
    part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    where = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    yield (
        "response.content_part.added",
        {"type": "response.content_part.added", "sequence_number": 2, **where, "part": part},
    )
    for index, word in enumerate(WORDS):
        delta = {"type": "response.output_text.delta", "sequence_number": 3 + index, **where, "delta": word}
        yield "response.output_text.delta", {**delta, "logprobs": []}
        if cut:
            return
    yield "response.completed", {"type": "response.completed", "sequence_number": 20, "response": whole}


def embeddings(request, entry):
    given = request["input"] if isinstance(request["input"], list) else [request["input"]]
    vector = base64.b64encode(b"\0\0\0?" * 1536).decode() if request.get("encoding_format") == "base64" else [0.5] * 8
    return {
        "object": "list",
        "data": [{"object": "embedding", "index": i, "embedding": vector} for i in range(len(given))],
        "model": entry["model_billed"],
        "usage": {"prompt_tokens": entry["input_tokens"], "total_tokens": entry["input_tokens"]},
    }


def anthropic_input(entry):
    read, written = entry["cache_read_tokens"], entry["cache_write_tokens"]
    return {
        "input_tokens": entry["input_tokens"] - read - written,
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": read,
        "cache_creation": {"ephemeral_5m_input_tokens": written, "ephemeral_1h_input_tokens": 0},
    }


def message(entry, opened=False):
    return {
        "id": f"msg_{entry['number']}",
        "type": "message",
        "role": "assistant",
        "model": entry["model_billed"],
        "content": [] if opened else [{"type": "text", "text": "".join(WORDS)}],
        "stop_reason": None if opened else "end_turn",
        "stop_sequence": None,
        "usage": {
            **anthropic_input(entry),
            "output_tokens": 1 if opened else entry["output_tokens"],
            "service_tier": "standard",
        },
    }


def message_events(entry, request, cut):
    yield "message_start", {"type": "message_start", "message": message(entry, opened=True)}
    block = {"type": "text", "text": ""}
    yield "content_block_start", {"type": "content_block_start", "index": 0, "content_block": block}
    yield "ping", {"type": "ping"}
    for word in WORDS:
        delta = {"type": "text_delta", "text": word}
        yield "content_block_delta", {"type": "content_block_delta", "index": 0, "delta": delta}
        if cut:
            entry["output_tokens"] = None  # what was written is told at the end only
            return
    yield "content_block_stop", {"type": "content_block_stop", "index": 0}
    ended = {"stop_reason": "end_turn", "stop_sequence": None}
    usage = {"output_tokens": entry["output_tokens"]}
    yield "message_delta", {"type": "message_delta", "delta": ended, "usage": usage}
    yield "message_stop", {"type": "message_stop"}


def content(entry, words=WORDS, finish="STOP"):
    candidate = {"content": {"parts": [{"text": "".join(words)}], "role": "model"}, "index": 0}
    if finish:
        candidate["finishReason"] = finish
    thoughts = entry["reasoning_tokens"]
    return {
        "candidates": [candidate],
        "usageMetadata": {
            "promptTokenCount": entry["input_tokens"],
            "cachedContentTokenCount": entry["cache_read_tokens"],
            "candidatesTokenCount": entry["output_tokens"] - thoughts,
            "thoughtsTokenCount": thoughts,
            "totalTokenCount": entry["input_tokens"] + entry["output_tokens"],
            "promptTokensDetails": [{"modality": "TEXT", "tokenCount": entry["input_tokens"]}],
        },
        "modelVersion": entry["model_billed"],
        "responseId": f"google-{entry['number']}",
    }


def contents(entry, request, cut):
    for index, word in enumerate(WORDS):
        last = index == len(WORDS) - 1
        yield None, content(entry, [word], "STOP" if last else None)
        if cut:
            return


def main():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.count = Count()
    print(server.server_address[1], flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()  # ends with whoever started it


if __name__ == "__main__":
    main()
