"""Places where `watch` can be measured: a feed and an S3 proxy in processes of their own, and a lake whose
day is long under way.

The processes that a place needs:

    python -m scripts.benchmarks.watched_place feed --stations 235 --free-bikes 115
    python -m scripts.benchmarks.watched_place proxy URL LOG --delay 0.02
    python -m scripts.benchmarks.watched_place prepare --stations 235 --free-bikes 115 --snapshots 1439
"""

from __future__ import annotations

import argparse
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg2
import pyarrow as pa
from psycopg2 import sql

from ingestion import bronze, wrm
from ingestion.schemas import FETCH_ATTEMPTS, STATION_SNAPSHOTS
from ingestion.settings import PROJECT_ROOT, Settings
from scripts.benchmarks.measurement import Bench, BenchmarkError, Place, python
from scripts.command import run_command
from scripts.foreground import wait_until_stopped
from scripts.server_proxies import Call, Fault, Script, s3_proxy
from scripts.simulate_feed import City, running_feed
from scripts.start_s3 import S3Server

MODULE = "scripts.benchmarks.watched_place"
URL = "simulated"
LATENCY = timedelta(milliseconds=50)
# what `watch` leaves of a day: an object per hour that compaction has folded, and one per poll since then
ROWS_PER_HOUR = 60
LIVE_OBJECTS = 59
# whoever drives `watch` says what is due
WATCH_SETTINGS = {
    "WATCH_POLL_SECONDS": "86400",
    "WATCH_EXPORT_SECONDS": "86400",
    "METRICS_ADDRESS": "127.0.0.1:0",
}


@contextmanager
def watched_place(bench: Bench, name: str, snapshots: int, s3: S3Server | None = None) -> Iterator[Place]:
    """A place for the length of a `with` block whose feed answers and whose lake holds so many snapshots of
    today (UTC), and a whole day before it; nothing is built yet. Every statement is in PostgreSQL's log."""
    city = ("--stations", str(bench.stations), "--free-bikes", str(bench.free_bikes))
    with _helper("feed", *city) as url:
        place = bench.place(name, s3, **WATCH_SETTINGS).with_settings(
            WRM_FEED_URL=f"{url}/wrm", WRM_FAILURES_URL=f"{url}/failures"
        )
        command = [str(word) for word in python(MODULE, "prepare", *city, "--snapshots", str(snapshots))]
        subprocess.run(command, cwd=PROJECT_ROOT, env=place.environment, check=True)
        _log_statements(bench, place)
        yield place


@contextmanager
def within_one_day() -> Iterator[None]:
    """Raise `BenchmarkError` where midnight came while a `with` block was at work."""
    today = datetime.now(UTC).date()
    yield
    if datetime.now(UTC).date() != today:
        raise BenchmarkError("The UTC day ended meanwhile, and the next begins empty. Measure again.")


def _log_statements(bench: Bench, place: Place) -> None:
    """Counted there, statements need no proxy, whose time would be in every one of them."""
    database = place.settings.postgres_parameters()["dbname"]
    with closing(psycopg2.connect(**bench.postgres.postgres_parameters())) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            name = sql.Identifier(database)
            cursor.execute(sql.SQL("alter database {} set log_statement = 'all'").format(name))


@contextmanager
def slow_s3(place: Place, log: Path, delay_seconds: float) -> Iterator[Place]:
    """The same place for the length of a `with` block, with time added to every request to S3, each of which
    is a line of the log."""
    url = place.environment["AWS_ENDPOINT_URL_S3"]
    with _helper("proxy", url, log, "--delay", str(delay_seconds)) as proxy:
        yield place.with_settings(AWS_ENDPOINT_URL_S3=proxy)


@contextmanager
def _helper(*arguments: str | Path) -> Iterator[str]:
    """A helper for the length of a `with` block; gives the line that it says when it is ready."""
    command = [str(word) for word in python(MODULE, *arguments)]
    with subprocess.Popen(command, cwd=PROJECT_ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            said = process.stdout.readline().strip()
            if not said:
                raise BenchmarkError(f"A helper did not come up: {' '.join(command)}. See what it printed.")
            yield said
        finally:
            process.terminate()


def serve_feed(city: City) -> None:
    with running_feed(city=city) as server:
        print(server.url, flush=True)
        wait_until_stopped()


def serve_proxy(url: str, log: Path, delay_seconds: float) -> None:
    """Pass requests on; the delay comes once a request is done and before its answer, as does its line of
    the log: <Unix seconds> <verb> <key>."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def answered(call: Call) -> None:
        time.sleep(delay_seconds)
        os.write(handle, f"{time.time():.6f} {call.verb} {call.what}\n".encode())

    script = Script(lambda call: Fault("after", act=lambda: answered(call)))
    with s3_proxy(url, script) as proxy:
        print(proxy.endpoint_url, flush=True)
        wait_until_stopped()


def prepare(settings: Settings, city: City, snapshots: int) -> None:
    """Load a whole UTC day, a snapshot every ten minutes, and so many snapshots of today, spread evenly over
    the part of it that has passed."""
    now = datetime.now(UTC)
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    before = [today - timedelta(days=1) + number * timedelta(minutes=10) for number in range(144)]
    # a snapshot's lines are of the second after it was asked for
    cadence = (now - timedelta(seconds=2) - today) / max(snapshots, 1)
    live = [today + number * cadence for number in range(snapshots)]
    folded = max(snapshots - LIVE_OBJECTS, 0)
    pipeline = bronze.open_pipeline(wrm.SOURCE, settings)
    for moments in (*_hours(before), *_hours(live[:folded]), *([moment] for moment in live[folded:])):
        rows = [_snapshot_row(city, moment) for moment in moments]
        tables = {
            "station_snapshots": [pa.Table.from_pylist(rows, schema=STATION_SNAPSHOTS)],
            "fetch_attempts": [pa.Table.from_pylist(list(map(_attempt_row, rows)), schema=FETCH_ATTEMPTS)],
        }
        bronze.load_day(pipeline, moments[0].date(), tables)


def _hours(moments: list[datetime]) -> list[list[datetime]]:
    return [moments[first : first + ROWS_PER_HOUR] for first in range(0, len(moments), ROWS_PER_HOUR)]


def _snapshot_row(city: City, moment: datetime) -> dict[str, Any]:
    return wrm.payload_row(city.snapshot(moment).encode(), URL, None, moment, moment + LATENCY)


def _attempt_row(snapshot: dict[str, Any]) -> dict[str, Any]:
    return {
        "resource": "station_snapshots",
        "url": URL,
        "attempted_at": snapshot["observed_at"],
        "attempt_number": 1,
        "status": 200,
        "response_bytes": snapshot["payload_bytes"],
        "latency_seconds": LATENCY.total_seconds(),
        "payload_sha256": snapshot["payload_sha256"],
        "is_unchanged": False,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    helpers = parser.add_subparsers(dest="helper", required=True)
    feed, prepared = helpers.add_parser("feed"), helpers.add_parser("prepare")
    for one in (feed, prepared):
        one.add_argument("--stations", type=int, required=True)
        one.add_argument("--free-bikes", type=int, required=True)
    prepared.add_argument("--snapshots", type=int, required=True)
    proxy = helpers.add_parser("proxy")
    proxy.add_argument("url")
    proxy.add_argument("log", type=Path)
    proxy.add_argument("--delay", type=float, required=True, help="seconds")
    given = parser.parse_args()
    if given.helper == "feed":
        serve_feed(City(stations=given.stations, free_bikes=given.free_bikes))
    elif given.helper == "proxy":
        serve_proxy(given.url, given.log, given.delay)
    else:
        city = City(stations=given.stations, free_bikes=given.free_bikes)
        run_command(lambda settings: prepare(settings, city, given.snapshots))


if __name__ == "__main__":
    main()
