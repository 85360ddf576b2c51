"""A job that is killed at any moment and run again ends with the rows of an undisturbed one.

KILL_POINTS (default 2) says at how many moments, spread evenly over the length of a job.
"""

import os
import shutil
import signal
import subprocess
import time
from contextlib import closing

import psycopg2
from conftest import FEW_BIKES, FEW_STATIONS, moment, raw_name, small_snapshot

from ingestion.settings import PROJECT_ROOT

POINTS = int(os.environ.get("KILL_POINTS", "2"))
LAKE_QUERIES = [
    f"select * exclude (fetched_at) from (from {model}) order by all"
    for model in (
        "int_wrm__lines_parsed",
        "int_wrm__lines_quarantined",
        "int_wrm__station_readings_deduplicated",
        "int_wrm__free_bike_readings_deduplicated",
    )
] + [
    "select * exclude (last_fetched_at, silver_seconds) from fct_daily_processing order by dt",
    *(
        f"from {mart} order by all"
        for mart in (
            "dim_bike_stations",
            "fct_hourly_station_availability",
            "fct_daily_network",
            "fct_free_bike_idle_spells",
            "fct_free_bike_trips",
            "fct_hourly_coverage",
            "fct_coverage_gaps",
            "fct_daily_data_quality",
        )
    ),
]
WAREHOUSE_QUERIES = [
    "select id::text, station_id, timestamp, name, bikes, spaces, date from bike_stations order by id",
    "select date, total_records, unique_stations, avg_bikes from stations_data_summary order by 1",
    "select date, activity_rank, station_id, movements from top_stations_daily order by 1, 2",
    "select date, snapshots, lines, station_readings, quarantined from processing_summary order by 1",
    "select id::text, bike_id, timestamp, latitude, battery_pct, date from free_bikes order by id",
    "select * from station_history order by station_id, valid_from",
    "select * from hourly_station_availability order by hour_started_at, station_id",
    "select date, quality_score from daily_data_quality order by date",
]


def start(place, job):
    """A recipe in a process group of its own."""
    return subprocess.Popen(
        ["just", "--justfile", PROJECT_ROOT / "justfile", *job],
        env=place.command_environment(),
        cwd=PROJECT_ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def finish(place, job):
    process = start(place, job)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()


def forget_everything(place):
    for folder in ("lake", "dlt"):
        shutil.rmtree(place.settings.data_dir / folder, ignore_errors=True)
    with closing(psycopg2.connect(**place.settings.postgres_parameters())) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("drop schema public cascade; create schema public; drop schema landing cascade")


def kill_and_finish(place, job, rows):
    """Kill the job at every point, finish it, and compare what `rows` gives with an undisturbed run's."""
    started = time.monotonic()
    finish(place, job)
    length = time.monotonic() - started
    expected = rows(place)
    assert all(expected)
    killed = 0
    for point in range(1, POINTS + 1):
        forget_everything(place)
        seconds = length * point / (POINTS + 1)
        process = start(place, job)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            killed += 1
        finish(place, job)
        assert rows(place) == expected, f"killed after {seconds:.2f} s of {length:.2f}"
    assert killed > 0


def test_a_killed_backfill_and_one_more_give_the_rows_of_an_undisturbed_one(workplace, archive):
    texts = {
        raw_name(f"2025-05-{day} {hour:02}:00:00"): small_snapshot(moment(f"2025-05-{day} {hour:02}:00:00"))
        for day in (11, 12, 13)
        for hour in range(0, 24, 6)
    }
    folder = archive(**texts, **{"content_2025-05-12_03-00-00.txt": "#id,name\n1,Rynek\n"})

    def rows(place):
        in_lake = [place.lake_rows(query) for query in LAKE_QUERIES]
        return in_lake + [place.warehouse_rows(query) for query in WAREHOUSE_QUERIES]

    kill_and_finish(workplace, ("backfill", str(folder)), rows)


def test_a_killed_run_and_one_more_hold_the_snapshot_once(live_workplace, feed):
    feed.last_text = feed.city.snapshot(moment("2026-01-01 12:00:00"))
    feed.misbehave("unchanged", 10_000)  # the same payload for every run

    def rows(place):
        return [
            place.lake_rows("select kind, id, observed_at, name from int_wrm__lines_parsed order by all"),
            place.lake_rows(
                "select lines_count, duplicates_count, snapshots_count from fct_daily_processing"
            ),
            place.warehouse_rows("select id::text, timestamp, bikes, spaces from bike_stations order by id"),
            place.warehouse_rows("select snapshots, lines, station_readings from processing_summary"),
        ]

    kill_and_finish(live_workplace, ("run",), rows)
    assert rows(live_workplace)[1] == [(FEW_STATIONS + FEW_BIKES, 0, 1)]
