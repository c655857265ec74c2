"""A TCP proxy on a free port that can be cut, so that one side reaches a server and another does not."""

from __future__ import annotations

import selectors
import socket
import threading


class CuttingProxy:
    """Forwards to a port of this machine until it is cut: then it refuses, or says nothing. A context manager."""

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._is_cut = False
        self._is_silent = False
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> CuttingProxy:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopping.set()
        self._thread.join()
        self._drop_all()
        self._listener.close()
        self._selector.close()

    def cut(self, *, silent: bool) -> None:
        """End every connection and refuse new ones; ``silent``: keep them, and forward nothing any more."""
        with self._lock:
            self._is_cut, self._is_silent = True, silent
        if not silent:
            self._drop_all()

    def mend(self) -> None:
        """Forward again; what was under way in silence goes on."""
        with self._lock:
            self._is_cut = False

    def _serve(self) -> None:
        while not self._stopping.is_set():
            for key, _ in self._selector.select(0.02):
                with self._lock:
                    source = key.fileobj
                    assert isinstance(source, socket.socket)
                    if source is self._listener:
                        self._accept()
                    elif source in self._pairs and not self._is_cut:
                        self._forward(source)
            if self._is_cut and self._is_silent:
                self._stopping.wait(0.02)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        if self._is_cut and not self._is_silent:
            client.close()
            return
        try:
            server = socket.create_connection(("127.0.0.1", self._server_port), timeout=5)
        except OSError:
            client.close()
            return
        for one, other in ((client, server), (server, client)):
            self._pairs[one] = other
            self._selector.register(one, selectors.EVENT_READ)

    def _forward(self, source: socket.socket) -> None:
        target = self._pairs[source]
        try:
            data = source.recv(65536)
            if data:
                target.sendall(data)
        except OSError:
            data = b""
        if not data:
            self._drop(source)

    def _drop(self, source: socket.socket) -> None:
        for end in (source, self._pairs.pop(source)):
            self._pairs.pop(end, None)
            self._selector.unregister(end)
            end.close()

    def _drop_all(self) -> None:
        with self._lock:
            while self._pairs:
                self._drop(next(iter(self._pairs)))
