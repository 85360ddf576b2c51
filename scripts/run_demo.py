"""The whole way on simulated data, from feed to PostgreSQL, on embedded defaults: scripts/just demo [--fresh]

It keeps lake, warehouse and dlt state of its own under data/demo, so it never mixes with real data. Running
it again adds only what is new; --fresh starts over.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import time
from datetime import UTC, datetime, timedelta

import psycopg2
from rich.console import Console
from rich.table import Table

from ingestion.settings import PROJECT_ROOT, Settings
from scripts.command import run_command, the_only_job
from scripts.run_pipeline import Stages, build_and_export, import_archive, take_snapshot
from scripts.simulate_feed import City, FeedServer, running_feed, write_archive
from scripts.start_postgres import running_postgres, stop_postgres

DAYS = 2
CADENCE = timedelta(minutes=10)
LIVE_SNAPSHOTS = 5
SECONDS_BETWEEN = 1.0
SPEED = 1200.0  # of the city's daily rhythm: bikes move between two live snapshots

_LAST_FULL_DAY = (
    "(select max(date) from daily_network where last_observed_at - first_observed_at > interval '20 hours' "
    "and date < (now() at time zone 'Europe/Warsaw')::date)"
)

logger = logging.getLogger("bike-data-flow")


def use_demo_settings() -> None:
    """Point every setting at the demo's own places, whatever .env and the environment say."""
    folder = PROJECT_ROOT / "data" / "demo"
    embedded = ["ENVIRONMENT", "LAKE_URL", "POSTGRES_URL", "POSTGRES_SCHEMA"]
    embedded += ["EXPORT_RETENTION_DAYS", "DLT_DATA_DIR"]
    os.environ.update(dict.fromkeys(embedded, ""), DATA_DIR=str(folder), NO_PROXY="127.0.0.1,localhost")


def start_over(settings: Settings) -> None:
    """Remove all that earlier demos left."""
    stop_postgres(settings)  # one that a killed run left
    for path in settings.data_dir.iterdir():
        if path.is_dir():  # the lock of this very job is a file
            shutil.rmtree(path)


def demo(settings: Settings, feed: FeedServer) -> str | None:
    """Import the simulated archive, take live snapshots, build, export and report; gives the last error."""
    error = None
    stages = Stages()
    console = Console(highlight=False)
    console.print("[bold]Simulated data:[/bold] stations, bikes and readings are made up.\n")
    archive = settings.data_dir / "archive"
    with stages.timed("simulating an archive"):
        today = datetime.now(UTC).date()
        days = [today - timedelta(days=back) for back in range(DAYS, 0, -1)]
        written = write_archive(archive, days, CADENCE, feed.city)
        logger.info("simulate: %d archive files written for %s and %s", written, *days)
    with running_postgres(settings):
        with stages.timed("archive to bronze"):
            import_archive(settings, str(archive))
        with stages.timed(f"{LIVE_SNAPSHOTS} live snapshots to bronze"):
            for number in range(LIVE_SNAPSHOTS):
                time.sleep(SECONDS_BETWEEN if number else 0)
                error = take_snapshot(settings).error or error
        build_and_export(settings, stages)
        report(settings, stages, console)
    return error


def report(settings: Settings, stages: Stages, console: Console) -> None:
    """What came in, what became of it, what stands in PostgreSQL, and how long it took."""
    connection = psycopg2.connect(**settings.postgres_parameters())
    try:
        with connection.cursor() as cursor:
            console.print(_accounting(cursor))
            _print_reasons(cursor, console)
            console.print(_busiest(cursor))
            console.print(_emptiest(cursor))
            _print_network(cursor, console)
            cursor.execute("select count(*), count(distinct station_id) from bike_stations")
            [(rows, stations)] = cursor.fetchall()
    finally:
        connection.close()
    console.print(f"In PostgreSQL: bike_stations holds {rows:,} readings of {stations} stations.\n")
    took = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in stages.seconds.items())
    console.print(f"Took: {took}.\n", soft_wrap=True)
    shown = settings.data_dir.relative_to(PROJECT_ROOT)
    console.print(
        "All of this is [bold]simulated[/bold] and lives in "
        f"{shown}. What to type next:\n"
        f'  DATA_DIR={shown} scripts/just psql -c "select * from stations_data_summary"\n'
        "  scripts/just demo            again: only what is new is added\n"
        "  scripts/just run             one snapshot of the real feed\n"
        "  scripts/just                 every recipe",
        soft_wrap=True,
    )


def _accounting(cursor: psycopg2.extensions.cursor) -> Table:
    columns = {
        "snapshots": "snapshots",
        "lines received": "lines",
        "kept as station readings": "station_readings",
        "kept as free-bike readings": "free_bike_readings",
        "duplicates": "duplicates",
        "quarantined": "quarantined",
        "names mended": "mended_names",
    }
    cursor.execute(
        f"select date, {', '.join(columns.values())} from processing_summary order by date desc limit 4"
    )
    days = cursor.fetchall()[::-1]
    table = Table(title="What came in, and what became of it (UTC days)", title_justify="left")
    table.add_column("")
    for day in days:
        table.add_column(str(day[0]), justify="right")
    for number, label in enumerate(columns, start=1):
        table.add_row(label, *(f"{day[number]:,}" for day in days))
    return table


def _print_reasons(cursor: psycopg2.extensions.cursor, console: Console) -> None:
    cursor.execute("select quarantined_by_reason from processing_summary")
    totals: dict[str, int] = {}
    for (reasons,) in cursor.fetchall():
        for reason, count in json.loads(reasons).items():
            totals[reason] = totals.get(reason, 0) + count
    listed = ", ".join(f"{reason} {count}" for reason, count in sorted(totals.items()))
    console.print(f"Quarantined because of: {listed or 'nothing'}.\n")


def _busiest(cursor: psycopg2.extensions.cursor) -> Table:
    cursor.execute(
        "select date, activity_rank, name, movements, round(avg_bikes::numeric, 1) from top_stations_daily "
        f"where date = {_LAST_FULL_DAY} and activity_rank <= 5 order by activity_rank"
    )
    rows = cursor.fetchall()
    day = rows[0][0] if rows else "no full day yet"
    table = Table(title=f"The five busiest stations of {day}", title_justify="left")
    for heading in ("", "station", "bikes taken or returned", "mean bikes"):
        table.add_column(heading, justify="left" if heading == "station" else "right")
    for _, rank, name, movements, average in rows:
        table.add_row(str(rank), name, f"{movements:,}", str(average))
    return table


def _emptiest(cursor: psycopg2.extensions.cursor) -> Table:
    cursor.execute(
        "select date, name, empty_minutes, full_minutes, turnover from daily_station_availability "
        f"where date = {_LAST_FULL_DAY} order by empty_minutes desc, station_id limit 5"
    )
    rows = cursor.fetchall()
    day = rows[0][0] if rows else "no full day yet"
    table = Table(title=f"The five stations that stood empty longest on {day}", title_justify="left")
    for heading in ("station", "minutes empty", "minutes full", "turnover"):
        table.add_column(heading, justify="left" if heading == "station" else "right")
    for _, name, empty, full, turnover in rows:
        table.add_row(name, f"{empty:,.0f}", f"{full:,.0f}", f"{turnover:.1f}")
    return table


def _print_network(cursor: psycopg2.extensions.cursor, console: Console) -> None:
    cursor.execute(
        "select date, departures_count, to_char(peak_hour_started_at_warsaw, 'HH24:MI'), "
        "stations_empty_at_peak_pct, average_free_bikes, quality_score, "
        "(select count(*) from free_bike_trips where free_bike_trips.date = daily_network.date) "
        f"from daily_network join daily_data_quality using (date) where date = {_LAST_FULL_DAY}"
    )
    for day, departures, peak, empty, free, score, trips in cursor.fetchall():
        console.print(
            f"The city on {day}: at least {departures:,} bikes taken, most at {peak} when {empty:.0f} % of "
            f"the stations were empty; {free:.0f} free bikes stood about and made {trips} trips (inferred). "
            f"Data quality: {score:.1f} of 100.\n",
            soft_wrap=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--fresh", action="store_true", help="remove what earlier demos left, then run")
    given = parser.parse_args()
    use_demo_settings()
    with running_feed(city=City(lively=True), speed=SPEED) as feed:
        os.environ |= {"WRM_FEED_URL": f"{feed.url}/wrm", "WRM_FAILURES_URL": f"{feed.url}/failures"}

        def job(settings: Settings) -> str | None:
            with the_only_job(settings, "demo"):
                if given.fresh:
                    start_over(settings)
                return demo(settings, feed)

        run_command(job)


if __name__ == "__main__":
    main()
