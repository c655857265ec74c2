"""A program that wraps threads in the order of its arguments, starts some of each kind, and says what came of them."""

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from paidonce.usage.call_recorder import CallRecorder, current_recorder, recording_into
from paidonce_workers.capture.installation import Installation, install

installed: list[Installation] = []
recorder = CallRecorder()
seen: dict[str, bool] = {}


def look(name: str) -> None:
    seen[name] = current_recorder.get() is recorder


def sentry() -> None:
    import sentry_sdk
    from sentry_sdk.integrations.asyncio import AsyncioIntegration

    sentry_sdk.init(dsn="http://key@127.0.0.1:1/1", integrations=[AsyncioIntegration()], shutdown_timeout=0)


def opentelemetry() -> None:
    from opentelemetry.instrumentation.threading import ThreadingInstrumentor

    ThreadingInstrumentor().instrument()


def opentelemetry_away() -> None:
    from opentelemetry.instrumentation.threading import ThreadingInstrumentor

    ThreadingInstrumentor().uninstrument()


def ddtrace() -> None:
    from ddtrace import patch

    patch(futures=True, asyncio=True)


def by_hand() -> None:
    before = threading.Thread.start

    def start(self: threading.Thread) -> None:
        before(self)

    threading.Thread.start = start  # type: ignore[method-assign]


def subclass() -> None:
    threading.Thread = type("Thread", (threading.Thread,), {})  # type: ignore[misc]


def ours() -> None:
    installed.append(install())


def ours_away() -> None:
    installed.pop().uninstall()


async def behind_a_loop() -> None:
    await asyncio.to_thread(look, "to_thread")
    await asyncio.get_running_loop().run_in_executor(None, look, "run_in_executor")


def main(order: list[str]) -> None:
    steps: dict[str, Callable[[], None]] = {
        each.__name__: each
        for each in (sentry, opentelemetry, opentelemetry_away, ddtrace, by_hand, subclass, ours, ours_away)
    }
    for name in order:
        steps[name]()

    class Looking(threading.Thread):
        def run(self) -> None:
            look("subclass")

    plain = threading.Thread(target=look, args=("plain",))
    expected = ["plain", "subclass", "timer", "submit", "map", "to_thread", "run_in_executor"]
    threads: list[threading.Thread] = [plain, Looking(), threading.Timer(0, look, ("timer",))]
    if "sentry" not in order:  # Sentry alone breaks what is put on an instance without taking the thread
        odd = threading.Thread()
        odd.run = lambda: look("instance")  # type: ignore[method-assign]
        threads.append(odd)
        expected.append("instance")
    with recording_into(recorder):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with ThreadPoolExecutor(1) as pool:
            pool.submit(look, "submit").result()
            list(pool.map(look, ["map"]))
        asyncio.run(behind_a_loop())
        try:
            plain.start()
        except RuntimeError:
            expected.append("refused")
            seen["refused"] = True
    is_on = bool(installed)
    if sorted(seen) == sorted(expected) and len(expected) > 7 and (not is_on or all(seen.values())):
        print("every thread ran and was attributed")
    else:
        print(seen, expected)
    sys.stdout.flush()
    os._exit(0)


main(sys.argv[1:])
