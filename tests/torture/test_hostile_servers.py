"""The HTTP client against servers that mean harm: bounded in time and size, and refused with a reason."""

from __future__ import annotations

import gzip
import itertools
import socket
import ssl
import struct
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trustme
from conftest import Workplace, bronze_rows

from ingestion import wrm
from ingestion.fetch import Attempt, _CutOff, fetch

SECONDS, MOST_BYTES = 1.0, 1_000_000
OK = b"HTTP/1.1 200 OK\r\n"
BODY = b"#id,name\n1,Rynek\n"
Answer = Iterable[bytes]


@pytest.fixture(autouse=True)
def counted(record_property: Callable[[str, object], None]) -> None:
    record_property("hostile_answers", 1)


def drip(first: bytes, again: bytes) -> Answer:
    """Bytes one by one, for ever."""
    yield first
    for byte in itertools.cycle(again):
        threading.Event().wait(0.02)
        yield bytes([byte])


def encrypted(connection: socket.socket, tls: ssl.SSLContext | None) -> socket.socket:
    return tls.wrap_socket(connection, server_side=True) if tls else connection


@contextmanager
def server(
    answer: Callable[[int], Answer], *, is_reset: bool = False, tls: ssl.SSLContext | None = None
) -> Iterator[int]:
    """Answers every connection on loopback with raw bytes, and closes it; its port, which `answer` gets."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:  # the test is over
                    return
                with connection, suppress(OSError), encrypted(connection, tls) as connection:
                    connection.settimeout(5)
                    connection.recv(65536)
                    if is_reset:
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    for part in answer(port):
                        connection.sendall(part)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield port
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()


def answered(answer: Callable[[int], Answer] | Answer, scheme: str = "http", **options: Any) -> Attempt:
    """What one attempt makes of an answer, the port left out of what it says."""
    give = answer if callable(answer) else lambda port: answer
    with server(give, **options) as port:
        [attempt] = fetch(
            f"{scheme}://127.0.0.1:{port}/", timeout_seconds=SECONDS, max_bytes=MOST_BYTES, max_attempts=1
        )
    assert attempt.payload is None or attempt.error is None
    assert attempt.latency_seconds < 10 * SECONDS
    return Attempt(**{**vars(attempt), "error": attempt.error and attempt.error.replace(f":{port}", "")})


def with_head(*headers: str, body: bytes = BODY) -> list[bytes]:
    return [OK + "".join(f"{header}\r\n" for header in headers).encode("latin-1") + b"\r\n", body]


def bomb(level: Callable[[bytes], bytes]) -> bytes:
    """64 MB of nothing, packed."""
    return level(bytes(64 * 1024 * 1024))


OUT_OF_REACH = "The feed is out of reach: {} at http://127.0.0.1/"
TOO_SLOW = OUT_OF_REACH.format("reading timed out")
CUT = OUT_OF_REACH.format("the connection was cut")
TOO_LARGE = f"The body is too large: over {MOST_BYTES} bytes from http://127.0.0.1/"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        pytest.param(drip(b"", b"H"), TOO_SLOW, id="status line that drips"),
        pytest.param(drip(OK + b"X: ", b"x"), TOO_SLOW, id="header that drips"),
        pytest.param(drip(OK, b"X: x\r\n"), TOO_SLOW, id="headers that drip"),
        pytest.param(itertools.repeat(b"HTTP/1.1 100 Continue\r\n\r\n"), TOO_SLOW, id="flood of 100s"),
        pytest.param(
            [OK, *[b"X: x\r\n"] * 200, b"\r\n"],
            OUT_OF_REACH.format("the answer is no HTTP, 'got more than 100 headers'"),
            id="flood of headers",
        ),
        pytest.param(
            [OK, b"X: " + b"x" * 100_000, b"\r\n\r\n"],
            OUT_OF_REACH.format(
                "the answer is no HTTP, 'got more than 65536 bytes when reading header line'"
            ),
            id="endless header",
        ),
        pytest.param(
            [b"SSH-2.0-OpenSSH_9.6\r\n"],
            OUT_OF_REACH.format("the answer is no HTTP, 'SSH-2.0-OpenSSH_9.6\\r\\n'"),
            id="another protocol",
        ),
        pytest.param([], CUT, id="nothing"),
        pytest.param(
            with_head("Transfer-Encoding: chunked", body=b"zz\r\nx\r\n"), CUT, id="garbage for a chunk"
        ),
        pytest.param(with_head("Transfer-Encoding: chunked", body=b"ff\r\nshort"), CUT, id="chunk cut short"),
        pytest.param([OK, b"\r\n", *[b"x" * 65536] * 40], TOO_LARGE, id="endless body"),
        pytest.param(
            with_head("Content-Encoding: gzip", body=bomb(gzip.compress)), TOO_LARGE, id="gzip bomb"
        ),
        pytest.param(
            with_head("Content-Encoding: deflate", body=bomb(zlib.compress)), TOO_LARGE, id="zlib bomb"
        ),
        pytest.param(
            with_head("Content-Encoding: gzip, gzip", body=gzip.compress(bomb(gzip.compress))),
            TOO_LARGE,
            id="bomb in a bomb",
        ),
        pytest.param(
            with_head("Content-Length: 0", body=b""),
            "The body is empty: 0 bytes of data from http://127.0.0.1/",
            id="length of nothing",
        ),
    ],
)
def test_a_hostile_answer_is_refused_with_its_reason(answer: Answer, reason: str) -> None:
    attempt = answered(answer)
    assert (attempt.payload, attempt.error) == (None, reason)


@pytest.mark.parametrize(
    ("headers", "start"),
    [
        (("Content-Encoding: gzip",), "The feed is out of reach: "),
        (("Content-Length: 999",), "The feed is out of reach: the connection was cut"),
        (("Content-Length: 17, 18",), "The feed is out of reach: "),
    ],
)
def test_a_body_that_is_not_what_its_headers_say_is_refused(headers: tuple[str, ...], start: str) -> None:
    attempt = answered(with_head(*headers))
    assert attempt.payload is None and attempt.error is not None
    assert attempt.error.startswith((start, "The body is cut short")), attempt.error


@pytest.mark.parametrize(
    ("header", "payload"),
    [
        ("Content-Length: 8", BODY[:8]),
        ("Content-Length: -5", BODY),
        ("Content-Length: many", BODY),
        ("Content-Length: \u00b2", BODY),
        ("Retry-After: \u00b9", BODY),
        ("Content-Encoding: unheard-of", BODY),
        ("Content-Type: image/png", BODY),
    ],
)
def test_a_header_that_lies_harmlessly_costs_nothing(header: str, payload: bytes) -> None:
    attempt = answered(with_head(header))
    assert (attempt.payload, attempt.error) == (payload, None)


def test_a_body_that_drips_is_refused_even_without_a_length() -> None:
    attempt = answered(drip(OK + b"\r\n", b"#id,name\n"))
    assert attempt.payload is None
    assert attempt.error is not None and attempt.error.startswith("The body is too slow: ")


def test_a_connection_that_is_reset_is_recorded() -> None:
    assert answered([b"HTTP/1.1 2"], is_reset=True).error == CUT


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ([b"HTTP/1.1 400 Bad Request\r\n\r\n"], "TLS failed"),
        (drip(b"", b"\x16\x03\x03\x40\x00" + b"\0" * 9999), "reading timed out"),
    ],
)
def test_a_server_without_tls_is_refused_where_tls_is_meant(answer: Answer, reason: str) -> None:
    attempt = answered(answer, scheme="https")
    assert (attempt.payload, attempt.error) == (
        None,
        f"The feed is out of reach: {reason} at https://127.0.0.1/",
    )


AUTHORITY = trustme.CA()
LONG_AGO = datetime(2001, 1, 1, tzinfo=UTC)


def tls_with(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


def signed_by_itself(folder: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority = trustme.CA()
    (folder / "own.pem").write_bytes(authority.private_key_pem.bytes() + authority.cert_pem.bytes())
    context.load_cert_chain(folder / "own.pem")
    return context


@pytest.fixture
def trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client trusts the authority."""
    AUTHORITY.cert_pem.write_to_path(tmp_path / "authority.pem")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "authority.pem"))


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        pytest.param(
            lambda folder: tls_with(trustme.CA().issue_cert("127.0.0.1")),
            "unable to get local issuer certificate",
            id="unknown authority",
        ),
        pytest.param(signed_by_itself, "self-signed certificate", id="self-signed"),
        pytest.param(
            lambda folder: tls_with(AUTHORITY.issue_cert("127.0.0.1", not_after=LONG_AGO)),
            "certificate has expired",
            id="expired",
        ),
        pytest.param(
            lambda folder: tls_with(AUTHORITY.issue_cert("feed.example")),
            "IP address mismatch, certificate is not valid for '127.0.0.1'",
            id="another host's name",
        ),
    ],
)
def test_a_certificate_that_proves_nothing_is_refused_and_told(
    tmp_path: Path, make: Callable[[Path], ssl.SSLContext], reason: str
) -> None:
    attempt = answered(with_head(), scheme="https", tls=make(tmp_path))
    assert (attempt.status, attempt.payload, attempt.error) == (
        None,
        None,
        f"The feed is out of reach: TLS failed, {reason} at https://127.0.0.1/",
    )


@pytest.mark.usefixtures("trusted")
def test_a_certificate_of_a_trusted_authority_is_taken() -> None:
    attempt = answered(with_head(), scheme="https", tls=tls_with(AUTHORITY.issue_cert("127.0.0.1")))
    assert (attempt.status, attempt.payload, attempt.error) == (200, BODY, None)


def test_an_authority_that_nobody_trusts_is_refused() -> None:
    attempt = answered(with_head(), scheme="https", tls=tls_with(AUTHORITY.issue_cert("127.0.0.1")))
    assert (attempt.payload, attempt.error) == (
        None,
        "The feed is out of reach: TLS failed, unable to get local issuer certificate at https://127.0.0.1/",
    )


@pytest.mark.parametrize(
    "location",
    ["file:///etc/passwd", "ftp://127.0.0.1/feed", "http://localhost/", "//localhost/", "gopher://x"],
)
def test_a_redirect_to_elsewhere_is_refused_and_says_what_to_set(location: str) -> None:
    attempt = answered([f"HTTP/1.1 302 Found\r\nLocation: {location}\r\n\r\n".encode()])
    assert (attempt.status, attempt.payload, attempt.is_retriable) == (302, None, False)
    assert attempt.error == (
        f"The server redirects elsewhere: http://127.0.0.1/ to {location}. "
        "Set WRM_FEED_URL or WRM_FAILURES_URL to where the feed is now, if you trust it"
    )


def test_the_body_of_a_redirect_is_not_read() -> None:
    head = b"HTTP/1.1 302 Found\r\nLocation: http://localhost/\r\n\r\n"
    attempt = answered(itertools.chain([head], itertools.repeat(bytes(65536))))
    assert attempt.error is not None and attempt.error.startswith("The server redirects elsewhere: ")


def test_a_connection_that_is_made_when_the_time_is_up_is_cut() -> None:
    adapter = _CutOff()
    adapter.cut()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(5)
        adapter._remembered(ours)
        assert theirs.recv(1) == b""
    adapter.close()


def test_a_redirect_to_what_is_no_url_is_refused() -> None:
    attempt = answered([b"HTTP/1.1 302 Found\r\nLocation: http://[\r\n\r\n"])
    assert attempt.payload is None and attempt.error is not None
    assert attempt.error.startswith("The server redirects elsewhere: http://127.0.0.1/ to http://[. ")


def test_redirects_without_end_are_refused() -> None:
    attempt = answered([b"HTTP/1.1 302 Found\r\nLocation: /again\r\nConnection: close\r\n\r\n"])
    assert attempt.error == "The server redirects without end: over 5 times from http://127.0.0.1/"


def test_a_redirect_on_the_same_host_is_followed() -> None:
    answers = iter([[b"HTTP/1.1 301 Moved\r\nLocation: /there\r\n\r\n"], with_head()])
    assert answered(lambda port: next(answers)).payload == BODY


def test_a_redirect_to_tls_on_the_same_host_is_followed() -> None:
    attempt = answered(
        lambda port: [f"HTTP/1.1 301 Moved\r\nLocation: https://127.0.0.1:{port}/\r\n\r\n".encode()]
    )
    assert attempt.error == OUT_OF_REACH.format("TLS failed")  # it was tried


@pytest.mark.parametrize("value", ["\u00b2", "-1", "nan", "1e9", "Mon, 99 Foo 2025", ""])
def test_a_retry_after_of_no_sense_is_passed_over(value: str) -> None:
    attempt = answered(with_head(f"Retry-After: {value}"))
    assert (attempt.payload, attempt.error, attempt.retry_after_seconds) == (BODY, None, None)


def test_hostile_answers_are_rows_of_bronze_with_their_reasons(workplace: Workplace) -> None:
    authority = tls_with(AUTHORITY.issue_cert("127.0.0.1"))
    elsewhere = [b"HTTP/1.1 302 Found\r\nLocation: http://localhost/\r\n\r\n"]
    polls: list[tuple[str, Answer, ssl.SSLContext | None, int | None, str]] = [
        ("http", [OK, b"\r\n", *[b"x" * 65536] * 40], None, 200, "The body is too large: "),
        ("http", elsewhere, None, 302, "The server redirects elsewhere: "),
        ("https", with_head(), authority, None, "The feed is out of reach: TLS failed, "),
    ]
    expected = []
    for scheme, answer, tls, status, reason in polls:
        with server(lambda port, answer=answer: answer, tls=tls) as port:  # type: ignore[misc]
            url = f"{scheme}://127.0.0.1:{port}/wrm"
            workplace.configure(WRM_FEED_URL=url, FETCH_MAX_BYTES=str(MOST_BYTES))
            outcome = wrm.take_snapshot(workplace.settings)
        assert not outcome.is_taken and outcome.error is not None and outcome.error.startswith(reason)
        expected.append(("station_snapshots", url, status, outcome.error))
    rows = bronze_rows(workplace.settings, "fetch_attempts", "resource, url, status, error")
    assert [row for row in rows if row[0] == "station_snapshots"] == sorted(expected, key=lambda row: row[1])
    assert bronze_rows(workplace.settings, "station_snapshots") == []
