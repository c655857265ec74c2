"""An agent whose steps pay in threads, executors and loops, in a module that first sets up the neighbour it is told."""

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def set_up_sentry() -> None:
    import sentry_sdk
    from sentry_sdk.integrations.asyncio import AsyncioIntegration
    from sentry_sdk.integrations.celery import CeleryIntegration
    from sentry_sdk.transport import Transport

    class ToAFile(Transport):
        def capture_envelope(self, envelope: Any) -> None:
            event = envelope.get_event()
            if event is not None:
                with open(os.environ["SENTRY_FILE"], "a", encoding="utf-8") as file:
                    file.write(f"{event}\n")

    sentry_sdk.init(
        dsn="http://key@127.0.0.1:1/1",
        transport=ToAFile,
        integrations=[CeleryIntegration(), AsyncioIntegration()],
        traces_sample_rate=1.0,
        include_local_variables=False,
    )


def set_up_opentelemetry() -> None:
    from opentelemetry.instrumentation.celery import CeleryInstrumentor
    from opentelemetry.instrumentation.httpx import HTTPX2ClientInstrumentor, HTTPXClientInstrumentor
    from opentelemetry.instrumentation.threading import ThreadingInstrumentor
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
    from opentelemetry.trace import SpanKind, set_tracer_provider

    def line(span: ReadableSpan) -> str:
        return f"{span.attributes}\n" if span.kind is SpanKind.CLIENT else ""

    provider = TracerProvider()
    file = open(os.environ["SPANS_FILE"], "a", encoding="utf-8")  # noqa: SIM115 - as long as the process
    provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(out=file, formatter=line)))
    set_tracer_provider(provider)
    for each in (ThreadingInstrumentor, CeleryInstrumentor, HTTPXClientInstrumentor, HTTPX2ClientInstrumentor):
        each().instrument()


def set_up_ddtrace() -> None:
    import ddtrace.auto  # noqa: F401


SET_UP = {"sentry": set_up_sentry, "opentelemetry": set_up_opentelemetry, "ddtrace": set_up_ddtrace}
NEIGHBOUR = os.environ.get("NEIGHBOUR", "")
IS_LATE = NEIGHBOUR.startswith("late-")
if NEIGHBOUR and not IS_LATE:
    SET_UP[NEIGHBOUR]()

import openai  # noqa: E402

from paidonce import agent, step  # noqa: E402
from paidonce_models.errors import StepFailed  # noqa: E402

SAY: Any = [{"role": "user", "content": "plain"}]


def ask() -> str:
    with openai.OpenAI(base_url=os.environ["OPENAI_BASE_URL"], api_key="key") as client:
        return client.chat.completions.create(model="gpt-4o-mini", messages=SAY).id


async def ask_async() -> str:
    async with openai.AsyncOpenAI(base_url=os.environ["OPENAI_BASE_URL"], api_key="key") as client:
        return (await client.chat.completions.create(model="gpt-4o-mini", messages=SAY)).id


class Asking(threading.Thread):
    answer = ""

    def run(self) -> None:
        self.answer = ask()


@step
def settle() -> int:
    """Late, the neighbour comes when our own taps are in place."""
    if IS_LATE:
        SET_UP[NEIGHBOUR.removeprefix("late-")]()
    return 0


@step
def in_threads() -> int:
    asking = Asking()
    answers: list[str] = []
    plain = threading.Thread(target=lambda: answers.append(ask()))
    for thread in (asking, plain):
        thread.start()
    for thread in (asking, plain):
        thread.join()
    with ThreadPoolExecutor(2) as pool:
        answers += pool.map(lambda _: ask(), range(2))
    return len([asking.answer, *answers])


@step(timeout=20)
def in_a_loop_of_its_own() -> int:
    async def both() -> list[str]:
        return await asyncio.gather(asyncio.to_thread(ask), ask_async())

    return len(asyncio.run(both()))


@step
async def on_the_workers_loop() -> int:
    return len(await asyncio.gather(asyncio.to_thread(ask), ask_async()))


@step
def fails() -> None:
    raise ValueError("a failure that quotes a prompt")


@agent
async def traced() -> list[int]:
    counts = [await settle(), await in_threads(), await in_a_loop_of_its_own(), await on_the_workers_loop()]
    try:
        await fails()
    except StepFailed:
        counts.append(-1)
    return counts
