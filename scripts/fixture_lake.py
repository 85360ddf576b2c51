"""A small lake of made-up raw data, the same whenever it is written, to try on it what models make of it.

Three UTC days of a small city, asked for every ten minutes, hold what real feeds hold: stations that run
empty or full, one that moves under a new name and one that vanishes, bikes that are ridden, a feed that fails
and then a gap, a payload that comes twice, one that repeats the readings of another, torn lines, names in a
broken encoding, and two files of defects.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from hashlib import sha256
from typing import Any

import pyarrow as pa

from ingestion import bronze, wrm
from ingestion.schemas import BRONZE
from ingestion.settings import Settings
from scripts.simulate_feed import FAILURES_CSV, City, break_encoding

DAYS = (date(2025, 5, 10), date(2025, 5, 11), date(2025, 5, 12))
CADENCE = timedelta(minutes=10)
LATENCY = timedelta(milliseconds=500)
URL = "simulated"
DAMAGED, REPEATED, UNCHANGED = (7, 55, 103), 60, 90  # numbers of a day's polls
FAILING, SILENT = range(78, 80), range(80, 85)  # those of the second day


def write_fixture_lake(settings: Settings) -> None:
    """Load the days into the bronze layer of the settings' lake, which holds nothing yet."""
    pipeline = bronze.open_pipeline(wrm.SOURCE, settings)
    for day in DAYS:
        rows = _bronze_rows(day)
        schemas = BRONZE[wrm.SOURCE]
        tables = {name: [pa.Table.from_pylist(rows[name], schema=schemas[name])] for name in rows}
        bronze.load_day(pipeline, day, tables)


def _bronze_rows(day: date) -> dict[str, list[dict[str, Any]]]:
    """A day's rows of each bronze table."""
    snapshots, attempts = [], []
    before = None
    for moment, text in polls(day):
        payload = None if text is None else text.encode()
        is_unchanged = payload is not None and payload == before
        attempts.append(_attempt_row(moment, payload, is_unchanged))
        if payload is not None and not is_unchanged:
            snapshots.append(wrm.payload_row(payload, URL, None, moment, moment + LATENCY))
            before = payload
    rows = {"station_snapshots": snapshots, "fetch_attempts": attempts}
    return rows if day == DAYS[1] else rows | {"failures": [_failures_row(day)]}


def polls(day: date) -> Iterator[tuple[datetime, str | None]]:
    """Each poll of a day and what the feed says, None where it fails."""
    city = _city(day)
    midnight = datetime(day.year, day.month, day.day, tzinfo=UTC)
    text: str | None = None
    for number in range(int(timedelta(days=1) / CADENCE)):
        moment = midnight + number * CADENCE
        if day == DAYS[1] and number in SILENT:
            continue
        if day == DAYS[1] and number in FAILING:
            yield moment, None
            continue
        if number != UNCHANGED or text is None:
            text = city.snapshot(moment)
        yield moment, _damage(text) if number in DAMAGED else text
        if number == REPEATED:
            yield moment + LATENCY, f"{text}\n"


def _city(day: date) -> City:
    """The city as it is on a day: on the last, one station has moved under a new name and one is gone."""
    city = City(stations=14, free_bikes=10, lively=True)
    if day == DAYS[-1]:
        moved = city.stations[3]
        city.stations[3] = replace(moved, name="Tymczasowa / Żabia 4", latitude=moved.latitude + 0.01)
        del city.stations[-1]
    return city


def _damage(text: str) -> str:
    """Of a snapshot's lines one with a broken name, one that is torn and one with a word for a boolean."""
    lines = text.split("\n")
    lines[2] = break_encoding(lines[2])
    lines[5] = lines[5][: len(lines[5]) // 2]
    lines[9] = lines[9].replace("true", "maybe")
    return "\n".join(lines)


def _failures_row(day: date) -> dict[str, Any]:
    """A day's file of defects; by the last day one of them is mended."""
    moment = datetime(day.year, day.month, day.day, 3, tzinfo=UTC)
    text = FAILURES_CSV.replace(",nowa,", ",usunięta,") if day == DAYS[-1] else FAILURES_CSV
    return wrm.payload_row(text.encode(), URL, None, moment, moment + LATENCY)


def _attempt_row(moment: datetime, payload: bytes | None, is_unchanged: bool) -> dict[str, Any]:
    has_failed = payload is None
    return {
        "resource": "station_snapshots",
        "url": URL,
        "attempted_at": moment,
        "attempt_number": 1,
        "status": 503 if has_failed else 200,
        "response_bytes": 0 if payload is None else len(payload),
        "latency_seconds": LATENCY.total_seconds(),
        "payload_sha256": None if payload is None else sha256(payload).hexdigest(),
        "is_unchanged": is_unchanged,
        "error": "The feed answered 503" if has_failed else None,
    }
