"""A run that is killed at any moment and run again ends with the rows of an undisturbed run.

KILL_POINTS (default 3) says at how many moments, spread evenly over the length of a run.
"""

import os
import shutil
import subprocess
import time

from conftest import moment, raw_name, small_snapshot

from ingestion.settings import PROJECT_ROOT

POINTS = int(os.environ.get("KILL_POINTS", "3"))
LAKE_QUERIES = [
    f"select * exclude (fetched_at) from (from {model}) order by all"
    for model in (
        "int_wrm__lines_parsed",
        "int_wrm__lines_quarantined",
        "int_wrm__station_readings_deduplicated",
        "int_wrm__free_bike_readings_deduplicated",
    )
] + [
    "select * exclude (last_fetched_at) from fct_daily_processing order by dt",
]
WAREHOUSE_QUERIES = [
    "select id::text, station_id, timestamp, name, bikes, spaces, date from bike_stations order by id",
    "select date, total_records, unique_stations, avg_bikes from stations_data_summary order by 1",
    "select date, activity_rank, station_id, movements from top_stations_daily order by 1, 2",
    "select date, snapshots, lines, station_readings, quarantined from processing_summary order by 1",
]


def start(place, archive):
    return subprocess.Popen(
        ["python", "-m", "scripts.run_pipeline", "backfill", str(archive)],
        env=place.command_environment(),
        cwd=PROJECT_ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def finish(place, archive):
    process = start(place, archive)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()


def rows(place):
    return [place.lake_rows(query) for query in LAKE_QUERIES] + [
        place.warehouse_rows(query) for query in WAREHOUSE_QUERIES
    ]


def forget_everything(place):
    for folder in ("lake", "dlt"):
        shutil.rmtree(place.settings.data_dir / folder, ignore_errors=True)
    from contextlib import closing

    import psycopg2

    with closing(psycopg2.connect(**place.settings.postgres_parameters())) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("drop schema public cascade; create schema public; drop schema landing cascade")


def test_a_killed_run_and_one_more_give_the_rows_of_an_undisturbed_run(workplace, archive):
    texts = {
        raw_name(f"2025-05-{day} {hour:02}:00:00"): small_snapshot(moment(f"2025-05-{day} {hour:02}:00:00"))
        for day in (11, 12, 13)
        for hour in range(0, 24, 6)
    }
    folder = archive(**texts, **{"content_2025-05-12_03-00-00.txt": "#id,name\n1,Rynek\n"})
    started = time.monotonic()
    finish(workplace, folder)
    length = time.monotonic() - started
    expected = rows(workplace)
    assert all(expected)
    killed = 0
    for point in range(1, POINTS + 1):
        forget_everything(workplace)
        process = start(workplace, folder)
        try:
            process.wait(length * point / (POINTS + 1))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed += 1
        finish(workplace, folder)
        assert rows(workplace) == expected, f"killed after {length * point / (POINTS + 1):.2f} s"
    assert killed > 0
