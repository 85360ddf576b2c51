"""The one HTTP client: bounded in time and size, patient with servers in trouble, every try accounted for."""

from __future__ import annotations

import email.utils
import http.client
import logging
import random
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
import urllib3

USER_AGENT = "bike-data-flow/0.1 (open history of city bike feeds)"
RETRIABLE_CLIENT_ERRORS = frozenset({408, 429})
LONGEST_WAIT_SECONDS = 60.0
MOST_REDIRECTS = 5
_CHUNK_BYTES = 64 * 1024

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Validators:
    """What a server gave to ask it later whether anything changed (RFC 9110, section 8.8)."""

    etag: str | None = None
    last_modified: str | None = None

    def as_headers(self) -> dict[str, str]:
        headers = {"If-None-Match": self.etag, "If-Modified-Since": self.last_modified}
        return {name: value for name, value in headers.items() if value}


@dataclass(frozen=True)
class Attempt:
    """One try to fetch a URL: what came, or why nothing did."""

    url: str
    number: int
    attempted_at: datetime
    latency_seconds: float
    status: int | None = None
    payload: bytes | None = field(default=None, repr=False)
    response_bytes: int | None = None
    validators: Validators = field(default=Validators())
    retry_after_seconds: float | None = None
    is_not_modified: bool = False
    error: str | None = None
    is_retriable: bool = False

    @property
    def sha256(self) -> str | None:
        return None if self.payload is None else sha256(self.payload).hexdigest()


def fetch(
    url: str,
    *,
    validators: Validators = Validators(),
    timeout_seconds: float = 20,
    max_bytes: int = 32 * 1024 * 1024,
    max_attempts: int = 3,
    first_wait_seconds: float = 1.0,
) -> list[Attempt]:
    """Fetch `url`, retrying what may pass: 408, 429, 5xx and connection errors, with exponential backoff and
    jitter, or as long as the server's `Retry-After` says (at most a minute). Other 4xx are final. Redirects
    are followed on the same host alone, and never from https to http.

    Returns every attempt, the decisive one last; HTTP never raises here. `timeout_seconds` is all that one of
    them takes, from the request to the last byte.
    """
    attempts: list[Attempt] = []
    for number in range(1, max_attempts + 1):
        attempt = _fetch_once(url, number, validators, timeout_seconds, max_bytes)
        attempts.append(attempt)
        if not attempt.is_retriable or number == max_attempts:
            break
        seconds = _wait_seconds(attempt, first_wait_seconds)
        logger.warning("%s. Trying again in %.1f s.", attempt.error, seconds)
        time.sleep(seconds)
    return attempts


def _wait_seconds(attempt: Attempt, first_wait_seconds: float) -> float:
    if attempt.retry_after_seconds is not None:
        return min(attempt.retry_after_seconds, LONGEST_WAIT_SECONDS)
    backoff = first_wait_seconds * 2.0 ** (attempt.number - 1)
    return min(backoff * random.uniform(0.5, 1.5), LONGEST_WAIT_SECONDS)


def _fetch_once(
    url: str,
    number: int,
    validators: Validators,
    timeout_seconds: float,
    max_bytes: int,
) -> Attempt:
    attempted_at = datetime.now(UTC)
    started = time.monotonic()
    deadline = started + timeout_seconds

    def outcome(**what: object) -> Attempt:
        seconds = time.monotonic() - started
        return Attempt(url, number, attempted_at, seconds, **what)  # type: ignore[arg-type]

    found: dict[str, object] = {}
    try:
        with (
            _session(timeout_seconds) as session,
            _get(session, url, validators.as_headers(), timeout_seconds) as response,
        ):
            if time.monotonic() >= deadline:  # headers that were cut off look like headers that have ended
                raise requests.ReadTimeout
            found = _describe(response)
            if response.status_code == 304:
                return outcome(**found, is_not_modified=True)
            if response.status_code != 200:
                return outcome(
                    **found,
                    error=f"The server refused: HTTP {response.status_code} from {url}",
                    is_retriable=response.status_code >= 500
                    or response.status_code in RETRIABLE_CLIENT_ERRORS,
                )
            payload = b"".join(_read(response, deadline, max_bytes))
    except RedirectRefused as refusal:
        return outcome(**_describe(refusal.response), error=str(refusal))
    except PayloadRefused as refusal:
        return outcome(
            **found,
            response_bytes=refusal.received,
            error=f"{refusal} from {url}",
            is_retriable=refusal.is_retriable,
        )
    except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:
        # a ValueError is of a header that makes no sense
        reason = "reading timed out" if _is_cut_off(error, deadline) else _reason(error)
        return outcome(**found, error=f"The feed is out of reach: {reason} at {url}", is_retriable=True)
    fault = _not_a_snapshot(payload)
    if fault:
        return outcome(**found, response_bytes=len(payload), error=f"{fault} from {url}")
    return outcome(**found, payload=payload, response_bytes=len(payload))


class _Session(requests.Session):
    """Follows no redirect, and does not look at one: to do so, requests reads its body whole."""

    def resolve_redirects(self, *arguments: Any, **options: Any) -> Iterator[requests.Response]:
        yield from ()


class _CutOff(requests.adapters.HTTPAdapter):
    """Cuts its connections when the time is up, whatever they are at: a socket's own timeout begins anew with
    every byte of a handshake, a header or a body."""

    def __init__(self) -> None:
        super().__init__()
        self.sockets: list[socket.socket] = []
        self.is_cut = False

    def get_connection_with_tls_context(self, *arguments: Any, **options: Any) -> Any:
        pool = super().get_connection_with_tls_context(*arguments, **options)
        make = type(pool).ConnectionCls  # type: ignore[attr-defined]

        def connection(**given: Any) -> Any:
            made = make(**given)
            connect = made._new_conn
            made._new_conn = lambda: self._remembered(connect())
            return made

        pool.ConnectionCls = connection  # type: ignore[attr-defined]
        return pool

    def _remembered(self, connected: socket.socket) -> socket.socket:
        self.sockets.append(connected.dup())  # TLS takes the socket itself away
        if self.is_cut:  # it connected when the time was up already
            self.cut()
        return connected

    def cut(self) -> None:
        self.is_cut = True
        for connected in self.sockets:
            with suppress(OSError):  # closed by the server
                connected.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        super().close()
        for connected in self.sockets:
            connected.close()


@contextmanager
def _session(seconds: float) -> Iterator[requests.Session]:
    """A session that lasts no longer, names the project and knows HTTP alone."""
    adapter = _CutOff()
    timer = threading.Timer(seconds, adapter.cut)
    with _Session() as session:
        session.headers["User-Agent"] = USER_AGENT
        for scheme in ("http://", "https://"):
            session.mount(scheme, adapter)
        timer.start()
        try:
            yield session
        finally:
            timer.cancel()
            timer.join()


class RedirectRefused(Exception):
    """A redirect that is not followed: to elsewhere, or without end."""

    def __init__(self, reason: str, response: requests.Response) -> None:
        super().__init__(reason)
        self.response = response


def _get(
    session: requests.Session, url: str, headers: dict[str, str], timeout_seconds: float
) -> requests.Response:
    """The answer, its body unread. Raises `RedirectRefused`."""
    here = url
    for _ in range(MOST_REDIRECTS + 1):
        response = session.get(
            here, headers=headers, timeout=timeout_seconds, stream=True, allow_redirects=False
        )
        location = session.get_redirect_target(response)
        if location is None:
            return response
        response.close()
        if not _is_same_place(here, location):
            raise RedirectRefused(
                f"The server redirects elsewhere: {url} to {location[:200]}. "
                "Set WRM_FEED_URL or WRM_FAILURES_URL to where the feed is now, if you trust it",
                response,
            )
        here = urljoin(here, location)
    raise RedirectRefused(
        f"The server redirects without end: over {MOST_REDIRECTS} times from {url}", response
    )


def _is_same_place(url: str, location: str) -> bool:
    """Whether a redirect stays on the host, and does not leave TLS."""
    try:
        here, there = urlsplit(url), urlsplit(urljoin(url, location))
        return there.hostname == here.hostname and there.scheme in (here.scheme, "https")
    except ValueError:  # no URL
        return False


class PayloadRefused(Exception):
    """A body that cannot be taken: too large, too slow or cut short."""

    def __init__(self, reason: str, received: int, is_retriable: bool) -> None:
        super().__init__(reason)
        self.received = received
        self.is_retriable = is_retriable


def _read(response: requests.Response, deadline: float, max_bytes: int) -> Iterator[bytes]:
    received = 0
    # read1 returns what one recv gave: a server that drips single bytes meets the deadline too
    while chunk := response.raw.read1(_CHUNK_BYTES, decode_content=True):
        received += len(chunk)
        if received > max_bytes:
            raise PayloadRefused(f"The body is too large: over {max_bytes} bytes", received, False)
        if time.monotonic() >= deadline:
            break
        yield chunk
    if time.monotonic() >= deadline:  # a connection that was cut off looks like one that has ended
        raise PayloadRefused(f"The body is too slow: {received} bytes by the time limit", received, True)
    expected = response.headers.get("Content-Length", "")
    if expected.isdecimal() and response.raw.tell() < int(expected):
        raise PayloadRefused(f"The body is cut short: {received} of {expected} bytes", received, True)


def _describe(response: requests.Response) -> dict[str, object]:
    return {
        "status": response.status_code,
        "validators": Validators(response.headers.get("ETag"), response.headers.get("Last-Modified")),
        "retry_after_seconds": parse_retry_after(response.headers.get("Retry-After")),
    }


def parse_retry_after(value: str | None) -> float | None:
    """Seconds to wait by a `Retry-After` header, given in seconds or as a date (RFC 9110, section 10.2.3);
    None without one or with one that cannot be read."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        moment = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (moment - datetime.now(UTC)).total_seconds()) if moment.tzinfo else None


def _not_a_snapshot(payload: bytes) -> str | None:
    """Why a 200 answer is no data: servers in trouble answer with nothing, or with a page for people. The
    body decides, not the Content-Type, which scripts often leave at text/html."""
    start = payload.lstrip(b"\xef\xbb\xbf \t\r\n")[:256].lower()
    if not start:
        return "The body is empty: 0 bytes of data"
    if start.startswith(b"<"):
        return f"The body is a page, not a snapshot: {start[:40].decode('utf-8', 'replace')!r}"
    return None


def _is_cut_off(error: Exception, deadline: float) -> bool:
    return time.monotonic() >= deadline and not isinstance(error, requests.ConnectTimeout)


def _reason(error: Exception) -> str:
    told = next((part for part in error.args if isinstance(part, urllib3.exceptions.ProtocolError)), error)
    cause = told.args[-1] if told.args else None
    if isinstance(cause, http.client.HTTPException) and not isinstance(
        cause, http.client.RemoteDisconnected | http.client.IncompleteRead
    ):
        return f"the answer is no HTTP, {str(cause)[:100]!r}"
    if told is not error:
        return "the connection was cut"
    refused = next((part for part in _causes(error) if isinstance(part, ssl.SSLCertVerificationError)), None)
    if refused is not None:
        return f"TLS failed, {refused.verify_message.rstrip('.')}"
    kind = {
        requests.ConnectTimeout: "connecting timed out",
        requests.ReadTimeout: "reading timed out",
        urllib3.exceptions.ReadTimeoutError: "reading timed out",
        requests.exceptions.SSLError: "TLS failed",
        requests.ConnectionError: "no connection",
        urllib3.exceptions.ProtocolError: "the connection was cut",
    }
    return next((word for cls, word in kind.items() if isinstance(error, cls)), str(error))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
