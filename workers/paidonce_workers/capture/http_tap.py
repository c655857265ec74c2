"""The tap on ``httpx`` and ``httpx2``: wraps the one method of each that sends a single HTTP request.

Both libraries have the same ``Client._send_single_request`` (redirects,
authentication and retries are above it, transports below), so that an SDK's
hidden retry appears here as a separate request. Outside a step, and for every
request that is no paid call of a model, the tap costs one look at a context variable.
Imports neither library: it is given the module that was imported.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any, Final

from paidonce.policies.attempt_policies import attempt_policies
from paidonce.usage.call_recorder import current_recorder, tool_stack
from paidonce_workers.bodies.forked_bodies import tell_unseen
from paidonce_workers.capture.capture_errors import Faults
from paidonce_workers.capture.observation import Decode, Observation
from paidonce_workers.capture.polled_responses import PollObservation
from paidonce_workers.capture.provider_endpoints import HostTable
from paidonce_workers.capture.retries import HiddenRetries, Retries

METHOD: Final = "_send_single_request"


class HttpTap:
    """Taps requests for one installation."""

    def __init__(self, hosts: HostTable, faults: Faults) -> None:
        self.hosts = hosts
        self.is_on = True
        self._faults = faults
        self._retries = Retries()
        self._hidden_retries = HiddenRetries()
        self._has_told = False

    def sending(self, library: ModuleType) -> Callable[..., Any]:
        """``Client._send_single_request``, tapped."""
        teed = _teed_stream(library)

        def send(call: Callable[..., Any], client: Any, /, request: Any) -> Any:
            observation = self._observe(request)
            if observation is None:
                return call(request)
            if observation.guard is not None:
                observation.guard.begin()
            try:
                response = call(request)
            except BaseException as error:
                observation.failed(error)
                raise
            self._attach(library, response, observation, teed)
            return response

        return send

    def sending_async(self, library: ModuleType) -> Callable[..., Any]:
        """``AsyncClient._send_single_request``, tapped."""
        teed = _teed_async_stream(library)

        async def send(call: Callable[..., Any], client: Any, /, request: Any) -> Any:
            observation = self._observe(request)
            if observation is None:
                return await call(request)
            if observation.guard is not None:
                await observation.guard.begin_async()
            # A transport over aiohttp sends the same request through the other tap.
            token = current_recorder.set(None)
            try:
                response = await call(request)
            except BaseException as error:
                observation.failed(error)
                raise
            finally:
                current_recorder.reset(token)
            self._attach(library, response, observation, teed)
            return response

        return send

    def tell(self, call: Callable[..., Any], client: Any, /, request: Any) -> Any:
        """In a forked child of a step, for both kinds of clients: call through, and log once which provider is paid."""
        with self._faults.contained("reading a request"):
            url = request.url
            port = url.port if url.port is not None else 443 if url.scheme == "https" else 80
            endpoint = self.hosts.find(request.method, url.host, port, url.path)
            if endpoint is not None and not self._has_told:
                self._has_told = True
                tell_unseen(endpoint.provider)
        return call(request)

    def is_wanted(self) -> bool:
        """Whether this is a step's body and the capture is on."""
        return current_recorder.get() is not None and self.is_on

    def observe(
        self,
        method: str,
        host: str,
        port: int,
        path: str,
        headers: Mapping[str, str],
        body: Callable[[], bytes],
    ) -> Observation | PollObservation | None:
        """The observation of a request that is a paid call or a poll; ``body`` is called for a paid call only."""
        recorder = current_recorder.get()
        if recorder is None:
            return None
        if recorder.is_awaiting:
            poll = self.hosts.find_poll(method, host, port, path)
            if poll is not None and recorder.awaits(poll.id):
                return PollObservation(recorder=recorder, poll=poll, faults=self._faults)
        endpoint = self.hosts.find(method, host, port, path)
        if endpoint is None:
            return None
        tools = tool_stack.get()
        policies = attempt_policies.get()
        observation = Observation(
            recorder=recorder,
            endpoint=endpoint,
            tool=tools[-1] if tools else None,
            faults=self._faults,
            retries=self._retries,
            path=path,
            request_headers=headers,
            content=body(),
            guard=None if policies is None else policies.request(endpoint.provider),
        )
        if observation.http_retry:
            self._hidden_retries.tell(endpoint.provider)
        return observation

    def _observe(self, request: Any) -> Observation | PollObservation | None:
        if not self.is_wanted():
            return None
        try:
            url = request.url
            port = url.port if url.port is not None else 443 if url.scheme == "https" else 80
            # A streamed body is not read.
            return self.observe(
                request.method, url.host, port, url.path, request.headers, lambda: getattr(request, "_content", b"")
            )
        except Exception as error:  # noqa: BLE001 - the user's request goes on unseen
            self._faults.tell("reading a request", error)
            return None

    def _attach(
        self, library: ModuleType, response: Any, observation: Observation | PollObservation, teed: Any
    ) -> None:
        with self._faults.contained("attaching to a response"):
            is_read = hasattr(response, "_content")  # made in memory by a mock, never streamed
            decode = None if is_read else _decoder_of(library, response)
            if not observation.answered(response.status_code, response.headers, decode):
                return
            if is_read:
                observation.feed(response.content)
                observation.finished()
            else:
                response.stream = teed(response.stream, observation)


def _decoder_of(library: ModuleType, response: Any) -> Decode | None:
    """Our own decoder for the response's content encoding, taken from the library; ``None`` for plain bytes."""
    encoding = response.headers.get("content-encoding")
    if not encoding or encoding.strip().lower() == "identity":
        return None
    decoder: Any = library.Response(200, headers={"content-encoding": encoding})._get_content_decoder()

    def decode(data: bytes) -> Iterable[bytes]:
        decoded: bytes | Iterable[bytes] = decoder.decode(data)  # httpx: all at once, httpx2: in bounded pieces
        return (decoded,) if isinstance(decoded, bytes) else decoded

    return decode


def _teed_stream(library: ModuleType) -> Any:
    base: Any = library.SyncByteStream

    class TeedStream(base):  # type: ignore[misc]  # the class is the library's that was imported
        """Passes a response's bytes through and shows them to the observation."""

        def __init__(self, inner: Any, observation: Observation | PollObservation) -> None:
            self._inner = inner
            self._observation = observation

        def __iter__(self) -> Iterator[bytes]:
            feed = self._observation.feed
            try:
                for data in self._inner:
                    feed(data)
                    yield data
            except BaseException:
                self._observation.broke_off()
                raise
            self._observation.finished()

        def close(self) -> None:
            try:
                self._inner.close()
            finally:
                self._observation.broke_off()

        def __del__(self) -> None:
            self._observation.broke_off()

    return TeedStream


def _teed_async_stream(library: ModuleType) -> Any:
    base: Any = library.AsyncByteStream

    class TeedAsyncStream(base):  # type: ignore[misc]  # as above
        """Passes a response's bytes through and shows them to the observation."""

        def __init__(self, inner: Any, observation: Observation | PollObservation) -> None:
            self._inner = inner
            self._observation = observation

        async def __aiter__(self) -> AsyncIterator[bytes]:
            feed = self._observation.feed
            try:
                async for data in self._inner:
                    feed(data)
                    yield data
            except BaseException:
                self._observation.broke_off()
                raise
            self._observation.finished()

        async def aclose(self) -> None:
            try:
                await self._inner.aclose()
            finally:
                self._observation.broke_off()

        def __del__(self) -> None:
            self._observation.broke_off()

    return TeedAsyncStream
