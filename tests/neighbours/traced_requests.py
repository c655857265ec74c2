"""A program that calls a provider with real SDKs while OpenTelemetry traces their HTTP clients, put in place in the
order of its arguments; prints the calls that were recorded and the spans that were made, as JSON."""

from __future__ import annotations

import dataclasses
import json
import sys
from contextlib import ExitStack

from opentelemetry.instrumentation.aiohttp_client import AioHttpClientInstrumentor
from opentelemetry.instrumentation.httpx import HTTPX2ClientInstrumentor, HTTPXClientInstrumentor
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from paidonce.usage.call_recorder import CallRecorder, recording_into
from paidonce_workers.capture.installation import capturing
from tests.capture.client_driver import DRIVES

INSTRUMENTORS: tuple[type[BaseInstrumentor], ...] = (
    HTTPXClientInstrumentor,
    HTTPX2ClientInstrumentor,
    AioHttpClientInstrumentor,
)


def main(base: str, order: str, *drives: str) -> None:
    host = base.removeprefix("http://")
    spans = InMemorySpanExporter()
    tracing = TracerProvider()
    tracing.add_span_processor(SimpleSpanProcessor(spans))
    recorder = CallRecorder()
    with ExitStack() as stack:
        for what in order.split("-"):
            if what == "ours":
                stack.enter_context(capturing([(host, "openai"), (host, "anthropic"), (host, "google")]))
            for each in INSTRUMENTORS:
                if what == "opentelemetry":
                    each().instrument(tracer_provider=tracing)
                elif what == "away":
                    each().uninstrument()
        with recording_into(recorder):
            for drive in drives:
                DRIVES[drive](base)
        calls = [dataclasses.asdict(call) for call in recorder.drain()]
    sent = [span for span in spans.get_finished_spans() if span.kind is SpanKind.CLIENT]
    scopes = [span.instrumentation_scope.name for span in sent if span.instrumentation_scope is not None]
    print(json.dumps({"calls": calls, "spans": [scope.rpartition(".")[2] for scope in scopes]}))


main(*sys.argv[1:])
