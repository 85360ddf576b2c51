"""A day's upsert into `bike_stations`: into a table that holds a lot against one that holds nothing.

Case "a day's upsert", under the ways "large table" and "empty table": a full UTC day of the simulated city at
one-minute cadence is landed by the project (`scripts.run_pipeline.export_readings`) and upserted by its dbt
node `bike_stations`, whose execution time, as dbt reports it, is `seconds`.

Both tables are made by dbt, in databases of their own. The large one is then filled with synthetic readings
of the time before, as the project would have left them: every station once a minute, in order, with
time-ordered ids. Its indexes are dropped for that and made again, and it is vacuumed and analyzed. The empty
one is truncated each time. Every repeat brings the next day, to both ways by turns, after a checkpoint.

Further figures: `held_rows` and `held_bytes` (indexes included) of the table before; `rows` upserted;
`landing_seconds` of the node that lands the day; `export_seconds` of all of the exports' dbt, with what it
asks and tests around the upsert.

    python -m scripts.benchmarks.upsert_growth --rows 50000000 --stations 235 --repeats 3
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import date, timedelta
from pathlib import Path

import psycopg2
from tqdm import tqdm

from ingestion import bronze, run_history, wrm
from ingestion.run_history import Step
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
    ratio,
    run_measured,
)
from scripts.command import run_command
from scripts.run_pipeline import export_readings
from scripts.simulate_feed import City
from transform.plugins.lake import listing_only

SCENARIO = "upsert_growth"
CASE = "a day's upsert"
LARGE, EMPTY = "large table", "empty table"
TABLE = "bike_stations"
ROWS = 50_000_000
ROWS_PER_STATEMENT = 1_000_000
BYTES_PER_ROW = 300  # of a filled row at the most, with its share of indexes, their making and the log
MINUTE = timedelta(minutes=1)
FIRST_DAY = date(2025, 6, 1)  # its first snapshot makes the tables; the days after it are upserted

TARGETS = [
    Target(
        "a day's upsert into a table of 50 million rows against an empty one",
        1.3,
        lambda results: ratio(results.median(CASE, LARGE, "seconds"), results.median(CASE, EMPTY, "seconds")),
        "×",
    )
]

# ids as in transform/macros/time_ordered_uuid.sql
FILL = """
with numbers as (
    select
        15001 + number %% %(stations)s as station_id,
        %(start)s + number / %(stations)s * 60000000 + number %% %(stations)s * 131 as microseconds
    from generate_series(%(first)s::bigint, %(last)s) as number
),

moments as (
    select
        *,
        timestamp 'epoch' + microseconds * interval '1 microsecond' as moment,
        md5('wrm:' || station_id) as digest,
        microseconds / 60000000 %% 20 as bikes
    from numbers
)

insert into bike_stations (
    id, station_id, "timestamp", name, bikes, spaces, date, processed_at, timezone_1, timezone_2,
    total_docks, is_over_capacity, has_capacity_mismatch, is_outside_service_area, is_name_mended
)
select
    (
        lpad(to_hex(microseconds / 1000), 12, '0') || '8' || lpad(to_hex(microseconds %% 1000 * 4), 3, '0')
        || substr('89ab', 1 + ascii(digest) %% 4, 1) || substr(digest, 2, 15)
    )::uuid,
    station_id, moment, (%(names)s)[station_id - 15000], bikes, 20 - bikes, moment::date,
    moment + interval '500 milliseconds', -7200, -3600, 20, false, false, false, false
from moments
"""


def measure(bench: Bench, rows: int = ROWS) -> Iterator[Observation]:
    """Upserts of a day into both tables, by turns, so many times."""
    if shutil.disk_usage(bench.folder).free < rows * BYTES_PER_ROW:
        raise BenchmarkError(f"Too little disk for {rows} rows: {bench.folder}. Give fewer, or another disk.")
    large = bench.place("upsert-large")
    empty = bench.place("upsert-empty", LAKE_URL=large.settings.lake_url)
    _step(large, "bronze", "--days", bench.repeats, "--stations", bench.stations)
    for place in (large, empty):
        _step(place, "upsert", "--day", FIRST_DAY)
    _fill(large.settings, City(stations=bench.stations), rows)
    for repeat in range(1, bench.repeats + 1):
        for way, place in ((LARGE, large), (EMPTY, empty)):
            figures = _upsert(place, FIRST_DAY + timedelta(days=repeat), is_emptied=way == EMPTY)
            if figures["rows"] != bench.stations * len(evenly(FIRST_DAY, MINUTE)):
                raise BenchmarkError(f"A day's readings were upserted in part: {figures['rows']:.0f} rows.")
            yield Observation(SCENARIO, CASE, way, repeat, figures)


def _step(place: Place, step: str, *options: object) -> dict[str, float]:
    """The figures of a step of this module in a process of its own."""
    command = python(f"scripts.benchmarks.{SCENARIO}", step, *map(str, options))
    return run_measured(command, place.environment).figures


def _fill(settings: Settings, city: City, rows: int) -> None:
    """Fill the table with readings of the minutes before the first day, the oldest first."""
    stations = len(city.stations)
    first_day = evenly(FIRST_DAY, MINUTE)[0]
    start = first_day - MINUTE * math.ceil(rows / stations)
    values = {
        "stations": stations,
        "start": int(start.timestamp()) * 1_000_000 + 947_606,
        "names": [station.name for station in city.stations],
    }
    with _cursor(settings) as cursor:
        cursor.execute("set synchronous_commit = off")
        cursor.execute("set maintenance_work_mem = '512MB'")
        with _without_indexes(cursor):
            for first in tqdm(range(0, rows, ROWS_PER_STATEMENT), desc="filling", disable=None, leave=False):
                last = min(first + ROWS_PER_STATEMENT, rows) - 1
                cursor.execute(FILL, values | {"first": first, "last": last})
        cursor.execute(f"vacuum (analyze) {TABLE}")


@contextmanager
def _cursor(settings: Settings) -> Iterator[psycopg2.extensions.cursor]:
    """A cursor whose statements are transactions of their own, for the length of a `with` block."""
    with closing(psycopg2.connect(**settings.postgres_parameters())) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            yield cursor


@contextmanager
def _without_indexes(cursor: psycopg2.extensions.cursor) -> Iterator[None]:
    """Have the table without keys and indexes for the length of a `with` block, after which they are made
    again: filling them row by row takes several times as long."""
    cursor.execute(
        "select conname, pg_get_constraintdef(oid) from pg_constraint "
        "where conrelid = %s::regclass and contype in ('p', 'u')",
        [TABLE],
    )
    keys = cursor.fetchall()
    for name, _ in keys:
        cursor.execute(f'alter table {TABLE} drop constraint "{name}"')
    cursor.execute("select indexname, indexdef from pg_indexes where tablename = %s", [TABLE])
    indexes = cursor.fetchall()
    for name, _ in indexes:
        cursor.execute(f'drop index "{name}"')
    yield
    for name, definition in keys:
        cursor.execute(f'alter table {TABLE} add constraint "{name}" {definition}')
    for _, definition in indexes:
        cursor.execute(definition)


def _upsert(place: Place, day: date, is_emptied: bool) -> dict[str, float]:
    """The figures of a day's upsert, and of the table before it."""
    with _cursor(place.settings) as cursor:
        if is_emptied:
            cursor.execute(f"truncate {TABLE}")
        cursor.execute(f"select count(*), pg_total_relation_size('{TABLE}') from {TABLE}")
        [(held_rows, held_bytes)] = cursor.fetchall()
        cursor.execute("checkpoint")
    return _step(place, "upsert", "--day", day) | {"held_rows": held_rows, "held_bytes": held_bytes}


def write_bronze(settings: Settings, days: int, stations: int) -> dict[str, float]:
    """A snapshot of the first day, and every minute of so many days after it."""
    city = City(stations=stations, free_bikes=0)
    pipeline = bronze.open_pipeline(wrm.SOURCE, settings)
    for number in range(days + 1):
        day = FIRST_DAY + timedelta(days=number)
        moments = evenly(day, MINUTE)[: None if number else 1]
        bronze.load_day(pipeline, day, {"station_snapshots": snapshot_tables(city, moments)})
    return {}


def upsert(settings: Settings, day: date) -> dict[str, float]:
    """Export the readings of a day, and of no other."""
    steps: list[Step] = []
    run_history.current_steps.set(steps)
    with listing_only([day]):
        export_readings(settings)
    [upserted] = [step for step in steps if step.name == TABLE]
    [landed] = [step for step in steps if step.name == f"landing_wrm__{TABLE}"]
    [exported] = [step for step in steps if (step.kind, step.project) == ("dbt_invocation", "exports")]
    return {
        "seconds": _seconds(upserted),
        "rows": upserted.rows_count or 0,
        "landing_seconds": _seconds(landed),
        "export_seconds": _seconds(exported),
    }


def _seconds(step: Step) -> float:
    return (step.ended_at - step.started_at).total_seconds()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=ROWS, help="that the large table holds before")
    parser.add_argument("--stations", type=int, default=235)
    parser.add_argument("--repeats", type=int, default=3)
    _add_steps(parser)
    given = parser.parse_args()
    if given.step:
        run_command(lambda settings: print(json.dumps(given.step(settings, given))))
        return
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        open_bench(
            Path(folder),
            days=1,
            cadence_minutes=1.0,
            stations=given.stations,
            free_bikes=0,
            error_share=0.0,
            repeats=given.repeats,
        ) as bench,
    ):
        for one in measure(bench, given.rows):
            print(one)


def _add_steps(parser: argparse.ArgumentParser) -> None:
    """What runs in processes of its own."""
    parser.set_defaults(step=None)
    steps = parser.add_subparsers(title="steps, each for a process of its own")
    writing, upserting = steps.add_parser("bronze"), steps.add_parser("upsert")
    for option in ("--days", "--stations"):
        writing.add_argument(option, type=int, required=True)
    writing.set_defaults(step=lambda s, given: write_bronze(s, given.days, given.stations))
    upserting.add_argument("--day", type=date.fromisoformat, required=True)
    upserting.set_defaults(step=lambda s, given: upsert(s, given.day))


if __name__ == "__main__":
    main()
