"""Servers that go away, and one that takes alerts, all on loopback."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from scripts.simulate_feed import answering

CHUNK_BYTES = 64 * 1024


class Proxy:
    """Forwards TCP connections to a server on a port of loopback or on a Unix socket.

    While it is cut, connections are refused and those that stood are closed.
    """

    def __init__(self, target: tuple[str, int] | str) -> None:
        self.target = target
        self.listener: socket.socket | None = None
        self.connections: set[socket.socket] = set()
        self.lock = threading.Lock()
        self.port = 0
        self.join()

    def join(self) -> None:
        """Let connections through, on the same port as before."""
        self.listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, args=[self.listener], daemon=True).start()

    def cut(self) -> None:
        """Refuse new connections and close those that stand."""
        if self.listener is not None:
            self.listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
            self.listener.close()
            self.listener = None
        with self.lock:
            for connection in self.connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            self.connections.clear()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # until the listener is closed
            while True:
                client, _ = listener.accept()
                threading.Thread(target=self._connect, args=[client], daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        family = socket.AF_UNIX if isinstance(self.target, str) else socket.AF_INET
        server = socket.socket(family)
        with client, server:
            try:
                server.connect(self.target)
            except OSError:
                return
            with self.lock:
                self.connections |= {client, server}
            back = threading.Thread(target=_forward, args=[server, client], daemon=True)
            back.start()
            _forward(client, server)
            back.join()
            with self.lock:
                self.connections -= {client, server}


def _forward(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while chunk := source.recv(CHUNK_BYTES):
            target.sendall(chunk)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def running_proxy(target: tuple[str, int] | str) -> Iterator[Proxy]:
    """A proxy for the length of a `with` block."""
    proxy = Proxy(target)
    try:
        yield proxy
    finally:
        proxy.cut()


class Receiver(ThreadingHTTPServer):
    """A Slack-compatible incoming webhook; keeps the texts that it was sent, in order."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Hook)
        self.texts: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/services/T0/B0/secret-of-the-webhook"


class _Hook(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.texts.append(json.loads(body)["text"])
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def running_receiver() -> Iterator[Receiver]:
    """A receiver of alerts for the length of a `with` block."""
    with Receiver() as server, answering(server):
        yield server
