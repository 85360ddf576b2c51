"""One station's month, read from the lake over S3 as any engine would: what part of its bytes that takes.

Cases: "station's month, every minute" and "station's month, every 10 minutes": 30 UTC days of the simulated
city in `silver/int_wrm__station_readings_deduplicated`, built by the project. A plain DuckDB, in a
process of its own, takes every reading of one station from the model's `dt=*/data.parquet`. Ways:

- "few columns": when, how many bikes and how many spaces; "all columns": `select *`; "snapshots and bikes":
  the moment of the snapshot in place of the line's own, which no two lines share, and bikes. All of these
  read the objects as built.
- "few columns, row groups of N": the same rows in the same order, written once more with so many per group;
  one N is the project's own, so that writing takes the same but for the size.
- "few columns, unsorted": the same rows in the order in which they came.

Figures: `read_bytes` that S3 answered to GETs, footers and all, as a counting proxy saw them; `month_bytes`,
the size of the month's objects that a query is about; `read_pct`, the one in percent of the other;
`lake_bytes`, the size of all that the lake keeps of the month so far (raw payloads, parsed lines, readings);
`requests` of every kind; `seconds` of the query; `write_seconds` of writing the month: of the model when dbt
built it, or of copying what it built.

    python -m scripts.benchmarks.station_query --days 30 --cadence 1 --stations 235
"""

from __future__ import annotations

import argparse
import json
import random
import re
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path

import duckdb

from ingestion import bronze, run_history, wrm
from ingestion.lake import Lake
from ingestion.settings import Settings
from scripts.benchmarks.cold_run import evenly, snapshot_tables
from scripts.benchmarks.measurement import (
    Bench,
    BenchmarkError,
    Observation,
    Place,
    Target,
    open_bench,
    python,
    run_measured,
)
from scripts.command import run_command
from scripts.run_dbt import run_dbt
from scripts.server_proxies import S3Counter, counted_s3
from scripts.simulate_feed import City
from scripts.start_s3 import S3Server, running_s3
from transform.plugins.lake import storage_statements

SCENARIO = "station_query"
MODEL = "int_wrm__station_readings_deduplicated"
FIRST_DAY = date(2025, 4, 1)
SPARSE_CADENCE = 10.0  # minutes
BUILT_ROW_GROUP = 122880  # rows: see the macro copy_to in transform/macros/daily_partition.sql
ROW_GROUPS = (16384, 40960, BUILT_ROW_GROUP)
FEW_COLUMNS = "observed_at, bikes_count, spaces_count"
BUILT_WAYS = {
    "few columns": FEW_COLUMNS,
    "snapshots and bikes": "snapshot_observed_at, bikes_count",
    "all columns": "*",
}
SORTED, AS_THEY_CAME = "station_id, observed_at", "snapshot_observed_at, _line_number"


def case(cadence_minutes: float) -> str:
    """The case of a cadence, as the report says it."""
    every = "minute" if cadence_minutes == 1 else f"{cadence_minutes:g} minutes"
    return f"station's month, every {every}"


TARGETS = [
    Target(
        "one station's month over S3: of the month's bytes, at one-minute cadence",
        2,
        lambda results: results.median(case(1), "few columns", "read_pct"),
        "%",
    ),
    Target(
        "one station's month over S3: of the month's bytes, at ten-minute cadence",
        2,
        lambda results: results.median(case(10), "few columns", "read_pct"),
        "%",
    ),
]


@dataclass(frozen=True)
class Way:
    """Objects below the lake, what a query takes of them, and how long they took to write."""

    name: str
    folder: str
    columns: str
    write_seconds: float


def measure(bench: Bench) -> Iterator[Observation]:
    """The queries of the bench's days at its own cadence and at ten minutes, way by way, so many times."""
    with running_s3(bench.folder / "query-s3") as s3, counted_s3(s3.endpoint_url) as counter:
        for cadence in dict.fromkeys((bench.cadence_minutes, SPARSE_CADENCE)):
            place = bench.place(f"query-{cadence:g}", s3)
            ways = _write_ways(place, bench.days, cadence, bench.stations)
            sizes = {way: _size(s3, place, way.folder) for way in ways}
            lake_bytes = _size(s3, place, "") - _size(s3, place, "copies")
            snapshots = bench.days * len(evenly(FIRST_DAY, timedelta(minutes=cadence)))
            for repeat in range(1, bench.repeats + 1):
                for way, size in sizes.items():
                    figures = _query(place, counter, way, bench.stations)
                    if figures["rows"] != snapshots:
                        raise BenchmarkError(f"Readings are missing: {way.name} found {figures['rows']:.0f}.")
                    figures |= {"month_bytes": size, "lake_bytes": lake_bytes}
                    figures["write_seconds"] = way.write_seconds
                    figures["read_pct"] = 100 * figures["read_bytes"] / size
                    yield Observation(SCENARIO, case(cadence), way.name, repeat, figures)


def _write_ways(place: Place, days: int, cadence: float, stations: int) -> list[Way]:
    """Build the month, and copy it in other shapes."""
    built, options = f"silver/{MODEL}", ("--days", days, "--cadence", cadence, "--stations", stations)
    seconds = _step(place, "build", *options)["write_seconds"]
    ways = [Way(name, built, columns, seconds) for name, columns in BUILT_WAYS.items()]
    shapes = [(f"row groups of {rows}", SORTED, rows) for rows in ROW_GROUPS]
    for number, (shape, order, rows) in enumerate([*shapes, ("unsorted", AS_THEY_CAME, BUILT_ROW_GROUP)]):
        folder = f"copies/{number}"
        copied = _step(place, "copy", "--folder", folder, "--order", order, "--row-group", rows)
        ways.append(Way(f"few columns, {shape}", folder, FEW_COLUMNS, copied["write_seconds"]))
    return ways


def _step(place: Place, step: str, *options: object) -> dict[str, float]:
    """The figures of a step of this module in a process of its own."""
    command = python(f"scripts.benchmarks.{SCENARIO}", step, *map(str, options))
    return run_measured(command, place.environment).figures


def _size(s3: S3Server, place: Place, folder: str) -> int:
    """Bytes of all objects of a folder of the lake."""
    return int(s3.filesystem().du(f"{place.settings.lake_url}/{folder}"))


def _query(place: Place, counter: S3Counter, way: Way, stations: int) -> dict[str, float]:
    """The figures of one query, asked past the counter."""
    asked = place.with_settings(AWS_ENDPOINT_URL_S3=counter.endpoint_url)
    counter.take()
    figures = _step(asked, "query", "--folder", way.folder, "--columns", way.columns, "--stations", stations)
    calls, answered = counter.take()
    return figures | {"requests": calls.total(), "read_bytes": answered["GET"]}


class UnevenCity(City):
    """The simulated city, whose lines follow each other as unevenly as the real feed's: with the same gap
    after each, their moments would compress to less."""

    def snapshot(self, observed_at: datetime, rhythm_at: datetime | None = None) -> str:
        draw = random.Random(observed_at.timestamp())
        return re.sub(
            r"(?<=,)\d+\.\d{6}(?=\|)",
            lambda found: f"{float(found[0]) + draw.uniform(0, 0.00006):.6f}",
            super().snapshot(observed_at, rhythm_at),
        )


def build(settings: Settings, days: int, cadence: float, stations: int) -> dict[str, float]:
    """Write a month of bronze day by day, and have the project build the model and what it is made from."""
    city = UnevenCity(stations=stations, free_bikes=0)
    pipeline = bronze.open_pipeline(wrm.SOURCE, settings)
    for day in _days(days):
        tables = {"station_snapshots": snapshot_tables(city, _moments(day, cadence))}
        bronze.load_day(pipeline, day, tables)
    steps: list[run_history.Step] = []
    run_history.current_steps.set(steps)
    run_dbt(settings, "transform", "--quiet", "run", "--select", f"+{MODEL}")
    [built] = [step for step in steps if step.name == MODEL]
    return {"write_seconds": (built.ended_at - built.started_at).total_seconds()}


def _days(count: int) -> list[date]:
    return [FIRST_DAY + timedelta(days=number) for number in range(count)]


def _moments(day: date, cadence: float) -> list[datetime]:
    """When a day's snapshots came: no feed is asked at the very second, and microseconds that repeat every
    day would compress to nothing."""
    draw = random.Random(day.toordinal())
    return [
        moment + timedelta(microseconds=draw.randrange(1_000_000))
        for moment in evenly(day, timedelta(minutes=cadence))
    ]


def copy(settings: Settings, folder: str, order: str, row_group: int) -> dict[str, float]:
    """Write every day of the model once more, in another order and with other row groups."""
    connection, lake = _connect(settings), Lake.of(settings)
    days = connection.execute(f"from glob('{lake.root}/silver/{MODEL}/dt=*/data.parquet')").fetchall()
    started = time.perf_counter()
    for (path,) in days:
        target = f"{lake.root}/{folder}/{path.split('/')[-2]}/data.parquet"
        connection.execute(
            f"copy (select * from read_parquet('{path}', hive_partitioning = false) order by {order}) "
            f"to '{target}' "
            f"(format parquet, compression zstd, row_group_size {row_group})"
        )
    return {"write_seconds": time.perf_counter() - started}


def query(settings: Settings, folder: str, columns: str, stations: int) -> dict[str, float]:
    """Take all readings of a station in the middle of the city."""
    connection, lake = _connect(settings), Lake.of(settings)
    started = time.perf_counter()
    rows = connection.execute(
        f"select {columns} from read_parquet('{lake.root}/{folder}/dt=*/data.parquet') where station_id = ?",
        [City(stations=stations).stations[stations // 2].id],
    ).fetchall()
    return {"seconds": time.perf_counter() - started, "rows": len(rows)}


def _connect(settings: Settings) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    for statement in storage_statements(Lake.of(settings)):
        connection.execute(statement)
    return connection


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    _add_sizes(parser, days=30, cadence=1.0, stations=235)
    parser.add_argument("--repeats", type=int, default=3)
    _add_steps(parser)
    given = parser.parse_args()
    if given.step:
        run_command(lambda settings: print(json.dumps(given.step(settings, given))))
        return
    sizes = {"days": given.days, "cadence_minutes": given.cadence, "stations": given.stations}
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        open_bench(Path(folder), **sizes, free_bikes=0, error_share=0.0, repeats=given.repeats) as bench,
    ):
        for one in measure(bench):
            print(one)


def _add_sizes(parser: argparse.ArgumentParser, **defaults: float) -> None:
    parser.add_argument("--days", type=int)
    parser.add_argument("--cadence", type=float, help="minutes between snapshots")
    parser.add_argument("--stations", type=int)
    parser.set_defaults(**defaults)


def _add_steps(parser: argparse.ArgumentParser) -> None:
    """What runs in processes of its own."""
    parser.set_defaults(step=None)
    steps = parser.add_subparsers(title="steps, each for a process of its own")
    building, copying, querying = (steps.add_parser(name) for name in ("build", "copy", "query"))
    _add_sizes(building)
    building.set_defaults(step=lambda s, given: build(s, given.days, given.cadence, given.stations))
    for step in (copying, querying):
        step.add_argument("--folder", required=True)
    copying.add_argument("--order", required=True)
    copying.add_argument("--row-group", type=int, required=True)
    copying.set_defaults(step=lambda s, given: copy(s, given.folder, given.order, given.row_group))
    querying.add_argument("--columns", required=True)
    querying.add_argument("--stations", type=int, required=True)
    querying.set_defaults(step=lambda s, given: query(s, given.folder, given.columns, given.stations))


if __name__ == "__main__":
    main()
