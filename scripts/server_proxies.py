"""Proxies in front of the real S3 server and of PostgreSQL that see every call and can spoil any of them.

python -m scripts.server_proxies URL     counts what goes through to an S3 server, until standard input ends

It prints its own URL and then, for each line on standard input, what went through since the last one.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import re
import socket
import struct
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import parse_qs, unquote, urlsplit

from scripts.simulate_feed import answering

When = Literal["before", "halfway", "after"]
HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "expect"})
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
SSL_REQUEST, GSS_REQUEST = 80877103, 80877104
WAIT_SECONDS = 30
# statements that change nothing, behind dbt's comment where it writes one
READS = re.compile(
    r"\s*(/\*.*?\*/)?\s*"
    r"(select|with|show|set|begin|rollback|discard|copy\s*\(\s*select)\b[^;]*;?\s*$",
    re.DOTALL | re.IGNORECASE,
)


@dataclass(frozen=True)
class Call:
    """One call of a job to a server.

    `verb` is S3's GET, HEAD, PUT, POST, DELETE or LIST, `what` the object's key or the prefix listed; or
    PostgreSQL's QUERY (a statement), DATA (first rows of a COPY) or DONE (the end of it), `what` the
    statement; or COMMIT, `what` the last statement of the transaction that was no query, or nothing.
    """

    number: int  # of all calls, from 1
    server: Literal["s3", "postgres"]
    verb: str
    what: str
    size: int  # bytes of the request's body or message


@dataclass(frozen=True)
class Fault:
    """What goes wrong with a call: before it reaches the server; halfway through its body, or through the
    answer's where it has none; or after the server has done it, before its answer arrives.

    First `act` is called, then S3 answers `status` itself, or shows the listing that it last gave, or the
    connection is reset, or closed as if all were said; where none of these is set, the call goes on.
    """

    when: When = "before"
    act: Callable[[], object] = lambda: None
    status: int | None = None
    is_stale: bool = False
    is_reset: bool = False
    is_closed: bool = False


@dataclass
class Script:
    """Keeps the calls of all proxies in order and says what befalls each of them: `fault(call)`."""

    fault: Callable[[Call], Fault | None] = lambda call: None
    calls: list[Call] = field(default_factory=list)
    answered: Counter[str] = field(default_factory=Counter)  # bytes of S3's answers, by verb
    lock: threading.Lock = field(default_factory=threading.Lock)

    def meet(self, server: Literal["s3", "postgres"], verb: str, what: str, size: int) -> Fault | None:
        """Note a call; what goes wrong with it."""
        with self.lock:
            call = Call(len(self.calls) + 1, server, verb, what, size)
            self.calls.append(call)
            return self.fault(call)

    def note_answer(self, verb: str, size: int) -> None:
        """Count the bytes of an answer of S3."""
        with self.lock:
            self.answered[verb] += size


class S3Proxy(ThreadingHTTPServer):
    """Passes S3's requests on, unchanged, so that their signatures hold."""

    daemon_threads = True

    def __init__(self, target_url: str, script: Script) -> None:
        super().__init__(("127.0.0.1", 0), _S3Handler)
        self.target = urlsplit(target_url).netloc
        self.script = script
        self.listings: dict[str, tuple[int, list[tuple[str, str]], bytes]] = {}

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that are killed leave as they like."""


class _S3Handler(BaseHTTPRequestHandler):
    server: S3Proxy
    protocol_version = "HTTP/1.1"

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        verb, what = self._call()
        fault = self.server.script.meet("s3", verb, what, len(body))
        if fault and fault.when == "before" and self._befall(fault):
            return
        if fault and fault.when == "halfway" and body:
            self._send_half(body)
            if self._befall(fault):
                return
        answer = self._ask(body)
        if verb == "LIST":
            answer = self._listing(answer, fault)
        self.server.script.note_answer(verb, len(answer[2]))
        if fault and fault.when == "after" and self._befall(fault):
            return
        self._answer(*answer, half=fault if fault and fault.when == "halfway" and not body else None)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass_on

    def _call(self) -> tuple[str, str]:
        url = urlsplit(self.path)
        query = parse_qs(url.query, keep_blank_values=True)
        key = unquote(url.path).lstrip("/").partition("/")[2]
        is_listing = self.command == "GET" and (not key or "list-type" in query)
        return ("LIST", query.get("prefix", [""])[0]) if is_listing else (self.command, key)

    def _befall(self, fault: Fault) -> bool:
        """Have it happen; whether that was all of the call."""
        fault.act()
        if fault.is_reset or fault.is_closed:
            self._hang_up(fault.is_reset)
        elif fault.status is not None:
            code = {500: "InternalError", 503: "SlowDown"}[fault.status]
            message = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code}</Message></Error>"
            self._answer(fault.status, [("Content-Type", "application/xml")], message.encode())
        return fault.is_reset or fault.is_closed or fault.status is not None

    def _hang_up(self, is_reset: bool) -> None:
        self.close_connection = True
        if is_reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            os.close(self.connection.detach())
        else:
            self.connection.shutdown(socket.SHUT_WR)

    def _request(self, connection: http.client.HTTPConnection, size: int) -> None:
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in HOP_BY_HOP:
                connection.putheader(name, value)
        if size or self.command in ("PUT", "POST"):
            connection.putheader("Content-Length", str(size))
        connection.endheaders()

    def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(self.server.target, timeout=WAIT_SECONDS)
        with contextlib.closing(connection):
            self._request(connection, len(body))
            if body:
                connection.send(body)
            response = connection.getresponse()
            headers = [
                (name, value) for name, value in response.getheaders() if name.lower() not in HOP_BY_HOP
            ]
            if self.command == "HEAD":
                headers.append(("Content-Length", response.headers.get("Content-Length", "0")))
            return response.status, headers, response.read()

    def _send_half(self, body: bytes) -> None:
        connection = http.client.HTTPConnection(self.server.target, timeout=WAIT_SECONDS)
        with contextlib.closing(connection):
            self._request(connection, len(body))
            connection.send(body[: len(body) // 2])

    def _listing(
        self, answer: tuple[int, list[tuple[str, str]], bytes], fault: Fault | None
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        """What the server says, or what it said before."""
        known = self.server.listings.get(self.path, answer)
        self.server.listings[self.path] = answer
        return known if fault and fault.is_stale else answer

    def _answer(
        self, status: int, headers: list[tuple[str, str]], body: bytes, half: Fault | None = None
    ) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        if self.command != "HEAD" and status not in (204, 304):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if half else body)
        if half and not self._befall(half):
            self.wfile.write(body[len(body) // 2 :])

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def s3_proxy(target_url: str, script: Script) -> Iterator[S3Proxy]:
    """A proxy of an S3 server for the length of a `with` block."""
    with S3Proxy(target_url, script) as proxy, answering(proxy):
        yield proxy


@dataclass(frozen=True)
class S3Counter:
    """A proxy in a process of its own, whose work so takes nothing from the process that asks it."""

    endpoint_url: str
    process: subprocess.Popen[str]

    def take(self) -> tuple[Counter[str], Counter[str]]:
        """What went through since this was last asked: the calls, and the bytes of their answers, by verb."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        calls, answered = json.loads(self.process.stdout.readline())
        return Counter(calls), Counter(answered)


@contextlib.contextmanager
def counted_s3(target_url: str) -> Iterator[S3Counter]:
    """Have a process count what goes through it to an S3 server, for the length of a `with` block."""
    command = [sys.executable, "-m", "scripts.server_proxies", target_url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None  # leaving the block closes both, which ends the process
        yield S3Counter(process.stdout.readline().strip(), process)


class PostgresProxy:
    """Passes the frontend/backend protocol of PostgreSQL on, message by message, to a Unix socket.

    A call is each statement, the first rows of each COPY, and the end of each COPY.
    """

    def __init__(self, target: str, script: Script) -> None:
        self.target = target
        self.script = script
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.connections: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Refuse new connections and close those that stand."""
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self.listener.close()
        for connection in [*self.connections]:
            _close(connection)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # until the listener is closed
            while True:
                client, _ = self.listener.accept()
                threading.Thread(target=_Session(self, client).run, daemon=True).start()


class _Session:
    """One client's connection to PostgreSQL."""

    def __init__(self, proxy: PostgresProxy, client: socket.socket) -> None:
        self.proxy = proxy
        self.client = client
        self.server = socket.socket(socket.AF_UNIX)
        self.statement = ""
        self.work = ""
        self.is_copying = False
        self.passes_back = threading.Event()
        self.passes_back.set()
        self.has_answered = threading.Event()

    def run(self) -> None:
        both = {self.client, self.server}
        self.proxy.connections |= both
        try:
            self.server.connect(self.proxy.target)
            threading.Thread(target=self._pass_back, daemon=True).start()
            self._greet()
            while header := _read(self.client, 5):
                kind, (size,) = header[:1], struct.unpack("!I", header[1:])
                if not self._pass(kind, header + _read(self.client, size - 4)):
                    return
        except OSError:
            return
        finally:
            for connection in both:
                _close(connection)
            self.proxy.connections -= both

    def _greet(self) -> None:
        while True:
            header = _read(self.client, 8)
            if not header:
                return
            size, code = struct.unpack("!II", header)
            self.server.sendall(header + _read(self.client, size - 8))
            if code not in (SSL_REQUEST, GSS_REQUEST):
                return

    def _pass(self, kind: bytes, message: bytes) -> bool:
        """One message of the client; whether the connection stands."""
        fault = self._meet(kind, message)
        if fault is None:
            self.server.sendall(message)
            return True
        if fault.when == "after":
            self.passes_back.clear()
            self.has_answered.clear()
            self.server.sendall(message)
            self.has_answered.wait(WAIT_SECONDS)
        elif fault.when == "halfway":
            self.server.sendall(message[: len(message) // 2])
        fault.act()
        if fault.is_reset or fault.is_closed:
            if fault.is_reset:
                self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            return False
        if fault.when != "after":
            self.server.sendall(message[len(message) // 2 :] if fault.when == "halfway" else message)
        self.passes_back.set()
        return True

    def _meet(self, kind: bytes, message: bytes) -> Fault | None:
        meet = self.proxy.script.meet
        if kind in (b"Q", b"P"):
            text = message[5:] if kind == b"Q" else message[5:].partition(b"\0")[2]
            self.statement = text.partition(b"\0")[0].decode(errors="replace")
            self.is_copying = False
            if self.statement.strip("; ").upper() == "COMMIT":
                work, self.work = self.work, ""
                return meet("postgres", "COMMIT", work, len(message))
            if not READS.match(self.statement):
                self.work = self.statement
            return meet("postgres", "QUERY", self.statement, len(message))
        if kind == b"d" and not self.is_copying:
            self.is_copying = True
            return meet("postgres", "DATA", self.statement, len(message))
        if kind == b"c":
            return meet("postgres", "DONE", self.statement, len(message))
        return None

    def _pass_back(self) -> None:
        with contextlib.suppress(OSError):
            while chunk := self.server.recv(65536):
                self.has_answered.set()
                self.passes_back.wait()
                self.client.sendall(chunk)
        self.passes_back.set()
        _close(self.client)


def _read(connection: socket.socket, size: int) -> bytes:
    """Exactly so many bytes, or none at the end of the stream."""
    parts = bytearray()
    while len(parts) < size:
        chunk = connection.recv(size - len(parts))
        if not chunk:
            return b""
        parts += chunk
    return bytes(parts)


def _close(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


@contextlib.contextmanager
def postgres_proxy(target: str, script: Script) -> Iterator[PostgresProxy]:
    """A proxy of a PostgreSQL, given its Unix socket, for the length of a `with` block."""
    proxy = PostgresProxy(target, script)
    try:
        yield proxy
    finally:
        proxy.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("url", help="of the S3 server")
    script = Script()
    with s3_proxy(parser.parse_args().url, script) as proxy:
        print(proxy.endpoint_url, flush=True)
        for _ in sys.stdin:
            print(json.dumps(_taken(script)), flush=True)


def _taken(script: Script) -> tuple[Counter[str], Counter[str]]:
    """Calls and answered bytes by verb, which begin anew."""
    with script.lock:
        taken = Counter(call.verb for call in script.calls), Counter(script.answered)
        script.calls.clear()
        script.answered.clear()
    return taken


if __name__ == "__main__":
    main()
