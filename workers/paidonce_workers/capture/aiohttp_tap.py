"""The tap on ``aiohttp``, which google-genai's asynchronous client prefers if it is installed.

Wraps ``ClientSession._request``, which follows redirects and retries nothing. The
bytes of a response are seen where aiohttp's parser passes them, decompressed, to
the response's ``StreamReader``. Imports nothing of aiohttp: it is given the module
that was imported.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, Final
from urllib.parse import urlsplit

import orjson

from paidonce_workers.capture.capture_errors import Faults
from paidonce_workers.capture.http_tap import HttpTap
from paidonce_workers.capture.observation import Observation
from paidonce_workers.capture.polled_responses import PollObservation

AIOHTTP_METHOD: Final = "_request"


class AiohttpTap:
    """Watches aiohttp's requests for one installation, with the hosts of its ``HttpTap``."""

    def __init__(self, http: HttpTap, faults: Faults) -> None:
        self._http = http
        self._faults = faults

    def sending(self, library: ModuleType) -> Callable[..., Any]:
        """``ClientSession._request``, tapped."""

        async def request(
            call: Callable[..., Any], session: Any, /, method: str, str_or_url: Any, **options: Any
        ) -> Any:
            observation = self._observe(session, method, str_or_url, options)
            if observation is None:
                return await call(method, str_or_url, **options)
            if observation.guard is not None:
                await observation.guard.begin_async()
            try:
                response = await call(method, str_or_url, **options)
            except BaseException as error:
                observation.failed(error)
                raise
            with self._faults.contained("attaching to a response"):
                if observation.answered(response.status, response.headers, None):
                    _tee(library, response.content, observation)
            return response

        return request

    def _observe(
        self, session: Any, method: str, str_or_url: Any, options: dict[str, Any]
    ) -> Observation | PollObservation | None:
        if not self._http.is_wanted():
            return None
        try:
            url = urlsplit(str(session._build_url(str_or_url)))
            port = url.port if url.port is not None else 443 if url.scheme == "https" else 80
            headers = options.get("headers") or {}
            return self._http.observe(
                method.upper(), url.hostname or "", port, url.path, headers, lambda: _body(options)
            )
        except Exception as error:  # noqa: BLE001 - the user's request goes on unseen
            self._faults.tell("reading a request", error)
            return None


def _body(options: dict[str, Any]) -> bytes:
    """The request's body if it is in memory; a streamed body is not read."""
    data = options.get("data")
    if isinstance(data, bytes | bytearray):
        return bytes(data)
    if isinstance(data, str):
        return data.encode()
    return b"" if options.get("json") is None else orjson.dumps(options["json"])


def _tee(library: ModuleType, content: Any, observation: Observation | PollObservation) -> None:
    """Show the observation what the reader already holds, and all that it will be fed."""
    reader: Any = library.StreamReader
    if type(content) is not reader:  # a response without a body
        observation.finished()
        return
    for piece in content._buffer:
        observation.feed(piece)
    if content.is_eof():
        observation.finished()
        return

    class TeedReader(reader):  # type: ignore[misc]  # the class is the library's that was imported
        """The same reader; a subclass, because its instances take no attributes."""

        __slots__ = ()

        def feed_data(self, data: bytes, *size: int) -> Any:
            observation.feed(data)
            return super().feed_data(data, *size)

        def feed_eof(self) -> None:
            observation.finished()
            super().feed_eof()

        def set_exception(self, *error: Any, **cause: Any) -> None:
            observation.broke_off()
            super().set_exception(*error, **cause)

    content.__class__ = TeedReader
