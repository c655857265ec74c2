"""Reads the usage in a response as it streams by: a JSON document, an event stream, or Gemini's array.

Owns the recognition of the few fields that matter in each API's responses (model,
usage, id, tariff, whether the response is complete). Content is neither kept nor
inspected. Pure: fed with bytes, knows no HTTP, clock or recorder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, Protocol

from paidonce.usage.provider_hosts_setting import Api
from paidonce_workers.capture.bounded_bytes import BoundedBytes, parsed_json

_TELLING: Final = re.compile(
    rb'"usage(?:Metadata)?"\s*:\s*\{|"finish_?[rR]eason"\s*:\s*"|"type"\s*:\s*"(?:message_st(?:art|op)|'
    rb'response\.(?:completed|incomplete|failed))"|"promptFeedback"|"x_groq"'
)
"""Stream events that can carry usage; the others, one per word, are not parsed."""
_CLOSED: Final = frozenset({"response.completed", "response.incomplete", "response.failed", "message_stop"})


LONG_LINE_BYTES: Final = 16 * 1024
"""Of a larger event only the two ends are kept, so that its chunks are not copied again and again."""


class Answer:
    """The fields of one response, gathered from one document or from many events."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self.fields: dict[str, object] = {"type": "message"} if api is Api.ANTHROPIC else {}
        self.id: str | None = None
        self.status: str | None = None
        """The state of the work that the response describes, as its document last reported it."""
        self.is_complete = False
        self.has_closed = False
        """Whether a stream has announced its end; some clients read no further and do not close it."""
        self.has_final_usage = False
        """Whether the reported output is complete, and not an intermediate count of a stream."""

    def take(self, document: object) -> None:
        """Read one JSON document or one event."""
        if isinstance(document, list):  # Gemini's stream without `alt=sse`
            for part in document:
                if not isinstance(part, list):  # no API sends nested lists, and they could nest without end
                    self.take(part)
            return
        if not isinstance(document, Mapping):
            return
        kind = document.get("type")
        if kind in _CLOSED:
            self.close()
        inner = document.get("response") if self._api is Api.OPENAI else document.get("message")
        self._read(inner if isinstance(inner, Mapping) else document, opens=kind == "message_start")
        if self._api is Api.GOOGLE:
            if "promptFeedback" in document or _any_of(document.get("candidates"), "finishReason"):
                self.is_complete = True
        elif self._api is Api.OPENAI and _any_of(document.get("choices"), "finish_reason"):
            self.is_complete = True

    def close(self) -> None:
        """The stream has announced its end."""
        self.is_complete = self.has_closed = True

    def _read(self, document: Mapping[str, object], *, opens: bool) -> None:
        self.id = self.id or _text(document.get("id")) or _text(document.get("responseId"))
        self.status = _text(document.get("status")) or self.status
        model = _text(document.get("model")) or _text(document.get("modelVersion"))
        if model is not None:
            self.fields["model"] = model
        tariff = _text(document.get("service_tier"))
        if tariff is not None:
            self.fields["service_tier"] = tariff
        usage = document.get("usage") or document.get("usageMetadata")
        if usage is None and isinstance(groq := document.get("x_groq"), Mapping):
            usage = groq.get("usage")
        if isinstance(usage, Mapping):
            name = "usageMetadata" if self._api is Api.GOOGLE else "usage"
            known = self.fields.get(name)
            told = {key: value for key, value in usage.items() if value is not None}
            # Anthropic reports the input when a stream opens and the output when it closes.
            self.fields[name] = {**known, **told} if isinstance(known, Mapping) else told
            self.has_final_usage = not opens


def _any_of(parts: object, name: str) -> bool:
    return isinstance(parts, list) and any(isinstance(part, Mapping) and part.get(name) for part in parts)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


class AnswerReader(Protocol):
    """Reads a response's decoded bytes as they arrive."""

    answer: Answer

    def feed(self, data: bytes) -> None:
        """The next bytes."""

    def end(self) -> None:
        """No more bytes will come, for whatever reason."""


class DocumentReader:
    """A response in one piece: a JSON object, or Gemini's array."""

    def __init__(self, api: Api) -> None:
        self.answer = Answer(api)
        self._body = BoundedBytes()

    def feed(self, data: bytes) -> None:
        self._body.add(data)

    def end(self) -> None:
        document, is_whole = self._body.document()
        self._body = BoundedBytes()
        self.answer.take(document)
        self.answer.is_complete = is_whole


class EventStreamReader:
    """Server-sent events. Most carry no usage and are skipped chunk by chunk."""

    def __init__(self, api: Api) -> None:
        self.answer = Answer(api)
        self._rest = b""
        self._long_line: BoundedBytes | None = None
        self._is_first = True

    def feed(self, data: bytes) -> None:
        if self._long_line is not None:
            part, newline, data = data.partition(b"\n")
            self._long_line.add(part)
            if not newline:
                return
            self._end_long_line(self._long_line)
        ended, newline, rest = (self._rest + data).rpartition(b"\n")
        if newline:
            self._read_lines(ended)
        if len(rest) > LONG_LINE_BYTES:
            self._long_line = BoundedBytes()
            self._long_line.add(rest)
            rest = b""
        self._rest = rest

    def end(self) -> None:
        if self._long_line is not None:
            self._end_long_line(self._long_line)
        self._read_lines(self._rest)
        self._rest = b""

    def _end_long_line(self, line: BoundedBytes) -> None:
        self._long_line = None
        head, tail = line.ends()
        if not head:
            self._read_lines(tail)
        elif head.startswith(b"data:"):
            kind = re.search(rb'"type"\s*:\s*"([a-z_.]+)"', head)
            self.answer.take(line.document()[0])
            if kind is not None and kind[1].decode() in _CLOSED:
                self.answer.close()

    def _read_lines(self, lines: bytes) -> None:
        if self._is_first or b"[DONE]" in lines or _TELLING.search(lines) is not None:
            for line in lines.split(b"\n"):
                self._read_line(line)

    def _read_line(self, line: bytes) -> None:
        if not line.startswith(b"data:"):
            return
        if not self._is_first and _TELLING.search(line) is None:
            if b"[DONE]" in line and line[5:].strip() == b"[DONE]":
                self.answer.close()
            return
        self._is_first = False
        try:
            document = parsed_json(line[5:])
        except ValueError:
            return
        self.answer.take(document)


def reader_for(api: Api, content_type: str) -> AnswerReader:
    """The reader for a response of this content type."""
    return EventStreamReader(api) if "event-stream" in content_type.lower() else DocumentReader(api)
