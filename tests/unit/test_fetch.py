"""The HTTP client against a real server that misbehaves."""

import socket
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from ingestion.fetch import USER_AGENT, Validators, fetch, parse_retry_after

FAST = {"timeout_seconds": 1.0, "first_wait_seconds": 0.01}


def test_fetch_takes_a_payload_and_names_the_project(feed):
    [attempt] = fetch(f"{feed.url}/wrm")
    assert (attempt.status, attempt.error, attempt.number) == (200, None, 1)
    assert attempt.payload is not None and attempt.payload.startswith(b"#id,timestamp|")
    assert attempt.response_bytes == len(attempt.payload)
    assert 0 < attempt.latency_seconds < 60
    assert feed.requests[0][1]["User-Agent"] == USER_AGENT


@pytest.mark.parametrize("kind", ["500", "503", "507", "429", "truncated"])
def test_fetch_tries_again_what_may_pass_and_records_every_try(feed, kind):
    feed.misbehave(kind)
    first, second = fetch(f"{feed.url}/wrm", **FAST)
    assert first.error is not None and first.payload is None
    assert (second.number, second.error) == (2, None)


def test_fetch_waits_as_long_as_the_server_says(feed):
    feed.misbehave("503")
    started = time.monotonic()
    attempts = fetch(f"{feed.url}/wrm", **FAST)
    assert attempts[0].retry_after_seconds == 1.0
    assert time.monotonic() - started >= 1.0


def test_fetch_gives_up_after_the_last_attempt(feed):
    feed.misbehave("500", 5)
    attempts = fetch(f"{feed.url}/wrm", max_attempts=3, **FAST)
    assert [attempt.status for attempt in attempts] == [500, 500, 500]
    assert attempts[-1].error == f"The server refused: HTTP 500 from {feed.url}/wrm"


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("404", "The server refused: HTTP 404"),
        ("html", "The body is a page, not a snapshot: '<!doctype html>"),
        ("empty", "The body is empty"),
    ],
)
def test_fetch_does_not_try_again_what_will_not_pass(feed, kind, reason):
    feed.misbehave(kind)
    [attempt] = fetch(f"{feed.url}/wrm", **FAST)
    assert attempt.payload is None
    assert attempt.error is not None and attempt.error.startswith(reason)


def test_fetch_judges_the_body_and_not_the_type_that_the_server_gives_it(feed):
    feed.misbehave("csv_as_html")
    [attempt] = fetch(f"{feed.url}/wrm", **FAST)
    assert attempt.error is None and attempt.payload is not None


def test_fetch_bounds_the_size_of_a_body(feed):
    feed.misbehave("large")
    [attempt] = fetch(f"{feed.url}/wrm", max_bytes=1_000_000, timeout_seconds=20)
    assert attempt.payload is None
    assert attempt.error == f"The body is too large: over 1000000 bytes from {feed.url}/wrm"
    assert attempt.status == 200 and (attempt.response_bytes or 0) > 1_000_000


def test_fetch_bounds_the_wait_for_an_answer(feed):
    feed.misbehave("timeout")
    [attempt] = fetch(f"{feed.url}/wrm", timeout_seconds=0.3, max_attempts=1)
    assert attempt.error == f"The feed is out of reach: reading timed out at {feed.url}/wrm"


@contextmanager
def dripping_server():
    """Sends one byte every 50 ms, for ever."""
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip():
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/csv\r\n\r\n")
                while not stop.wait(0.05):
                    try:
                        connection.sendall(b"x")
                    except OSError:
                        return

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/"
        stop.set()
        thread.join()


def test_fetch_bounds_an_endless_body():
    with dripping_server() as url:
        [attempt] = fetch(url, timeout_seconds=0.5, max_attempts=1)
    assert attempt.error is not None and attempt.error.startswith("The body is too slow")
    assert attempt.latency_seconds < 5


def test_fetch_records_a_server_that_is_not_there():
    [attempt] = fetch("http://127.0.0.1:9/", max_attempts=1)
    assert attempt.error == "The feed is out of reach: no connection at http://127.0.0.1:9/"
    assert attempt.status is None


def test_fetch_asks_conditionally_and_understands_not_modified(feed):
    feed.offers_etag = True
    [first] = fetch(f"{feed.url}/failures")
    [second] = fetch(f"{feed.url}/failures", validators=first.validators)
    assert first.validators.etag is not None
    assert (second.status, second.is_not_modified, second.payload) == (304, True, None)


def test_validators_become_conditional_headers():
    assert Validators('"a"', None).as_headers() == {"If-None-Match": '"a"'}


def test_retry_after_is_read_in_seconds_and_as_a_date():
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert parse_retry_after("120") == 120.0
    assert 25 < (parse_retry_after(soon) or 0) <= 30
    assert parse_retry_after("soon") is None
    assert parse_retry_after(None) is None
