"""An OpenAI-compatible stand-in model server that counts its requests.

    POST /v1/chat/completions   tool calls, usage, streaming (SSE, include_usage)
    GET  /v1/models             the models it answers for
    GET  /requests              every completion request it has received, in order

A separate process (`python -m examples.model_server --latency 2`), so that its count
survives whatever happens to a worker. Imports nothing of Paidonce: its count is evidence
about Paidonce, not Paidonce's opinion. `model_requests` refuses invalid requests,
`model_answers` decides what to respond; this module owns the wire.
"""

import json
import select
import socket
import time
from functools import partial

from examples.json_http import JsonHandler, JsonServer, argument_parser, serve_until_stopped
from examples.model_answers import Answer, answer, input_tokens, output_tokens
from examples.model_log import Received, RequestLog
from examples.model_requests import ChatRequest, Refused, parse
from examples.model_wire import chunks, completion, identity, model

MODELS = ("gpt-5-mini", "gpt-5-nano", "gpt-4o-mini", "gpt-4.1-mini")
STEP_HEADER = "X-Step"


class ModelHandler(JsonHandler):
    """Speaks the part of OpenAI's API that chat completions need."""

    def __init__(
        self,
        request: socket.socket,
        client_address: tuple[str, int],
        server: JsonServer,
        log: RequestLog,
        latency_seconds: float,
    ) -> None:
        """Take what is shared before the base class handles the request."""
        self._log = log
        self._latency_seconds = latency_seconds
        super().__init__(request, client_address, server)

    def do_GET(self) -> None:
        """Respond with the list of models, one model, or the request log."""
        if self.path == "/requests":
            self.answer(200, self._log.snapshot())
        elif self.path == "/v1/models":
            self.answer(200, {"object": "list", "data": [model(name) for name in MODELS]})
        elif self.path.removeprefix("/v1/models/") in MODELS:
            self.answer(200, model(self.path.removeprefix("/v1/models/")))
        else:
            self._refuse(_unknown_address("GET", self.path))

    def do_POST(self) -> None:
        """Respond to a chat completion, or refuse it as the real API would."""
        body = self.body()
        if self.path != "/v1/chat/completions":
            self._refuse(_unknown_address("POST", self.path))
            return
        entry = self._log.open(self.headers.get(STEP_HEADER), body or b"")
        try:
            if not self.headers.get("Authorization", "").startswith("Bearer "):
                raise Refused("You didn't provide an API key.", status=401)
            request = parse(body or b"", MODELS)
        except Refused as refused:
            self._refuse(refused)
            self._log.close(entry, status=refused.status, delivered=True)
            return
        delivered = False
        try:
            delivered = self._complete(request, entry)
        finally:
            self._log.close(entry, status=200, delivered=delivered)

    def _complete(self, request: ChatRequest, entry: Received) -> bool:
        """Make the response, take the time that a model takes, and send it if the client still waits."""
        given = answer(request)
        entry.model = request.model
        entry.input_tokens = input_tokens(request)
        entry.output_tokens = output_tokens(given)
        time.sleep(self._latency_seconds)
        if self._client_is_gone():
            self.close_connection = True
            return False
        try:
            if request.stream:
                self._stream(request, given, entry)
            else:
                self.answer(200, completion(request, given, entry), headers=identity(entry))
        except ConnectionError:
            self.close_connection = True
            return False
        return True

    def _client_is_gone(self) -> bool:
        """True when the client has closed the connection: end of file is readable."""
        readable, _, _ = select.select([self.connection], [], [], 0)
        if not readable:
            return False
        try:
            return len(self.connection.recv(1, socket.MSG_PEEK)) == 0
        except ConnectionError:
            return True

    def _stream(self, request: ChatRequest, given: Answer, entry: Received) -> None:
        """Send the response as server-sent events in chunks."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        for name, value in identity(entry).items():
            self.send_header(name, value)
        self.end_headers()
        for chunk in chunks(request, given, entry):
            self._send_event(json.dumps(chunk, ensure_ascii=False))
        self._send_event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def _send_event(self, text: str) -> None:
        event = f"data: {text}\n\n".encode()
        self.wfile.write(f"{len(event):x}\r\n".encode() + event + b"\r\n")

    def _refuse(self, refused: Refused) -> None:
        self.answer(refused.status, {"error": refused.error})


def _unknown_address(method: str, path: str) -> Refused:
    return Refused(f"Invalid URL ({method} {path})", status=404)


def create_server(host: str = "127.0.0.1", port: int = 0, *, latency_seconds: float = 0.0) -> JsonServer:
    """A model server bound to its port but not yet serving."""
    handler = partial(ModelHandler, log=RequestLog(), latency_seconds=latency_seconds)
    return JsonServer((host, port), handler)


def main() -> None:
    """Serve until SIGTERM or Ctrl-C."""
    parser = argument_parser("An OpenAI-compatible stand-in that counts its requests.")
    parser.add_argument("--latency", type=float, default=0.0, metavar="SECONDS", help="before each answer")
    options = parser.parse_args()
    serve_until_stopped(create_server(options.host, options.port, latency_seconds=options.latency))


if __name__ == "__main__":
    main()
