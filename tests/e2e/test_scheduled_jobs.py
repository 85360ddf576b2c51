"""Jobs that run by a schedule: polling for some minutes, the full check, and meeting `watch`."""

import signal
import subprocess
import sys
import time
from contextlib import closing

import duckdb
import psycopg2
from conftest import bronze_rows, moment, raw_name, small_snapshot

from ingestion.settings import PROJECT_ROOT
from scripts.command import the_only_job
from scripts.run_pipeline import backfill
from scripts.verify_lake import CHECKS, verify


def test_polling_goes_on_after_errors_and_fails_where_no_poll_succeeds(live_workplace, feed):
    live_workplace.configure(WATCH_POLL_SECONDS="0.1")
    feed.misbehave("500")
    done = live_workplace.just("ingest", "wrm", "--minutes", "0.03")
    errors = bronze_rows(live_workplace.settings, "fetch_attempts", "attempted_at, error")
    errors = [error for _, error in errors]
    assert "poll failed: The server refused: HTTP 500" in done.stderr
    assert "500" in errors[0] and len(errors) > 2 and set(errors[1:]) == {None}
    polls = len(errors) - 1  # the defects are asked for once
    assert f"{polls - 1} of {polls} polls succeeded" in done.stderr
    feed.misbehave("500", 1000)
    failed = live_workplace.just("ingest", "wrm", "--minutes", "0.01", check=False)
    assert failed.returncode == 1 and "\nFailed. The server refused: HTTP 500" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_a_storage_that_is_away_ends_polling_with_its_name_once_the_time_is_over(live_workplace):
    live_workplace.configure(WATCH_POLL_SECONDS="0.1")
    live_workplace.lake_folder.mkdir(parents=True)
    (live_workplace.lake_folder / "bronze").write_text("a file where a folder should be")
    failed = live_workplace.just("ingest", "wrm", "--minutes", "0.01", check=False)
    assert failed.stderr.count("poll failed: ") > 1
    assert failed.returncode == 1 and "Storage or PostgreSQL could not be used" in failed.stderr


def test_sigterm_ends_polling_after_the_poll_under_way(live_workplace, feed):
    command = [sys.executable, "-m", "scripts.run_pipeline", "ingest", "wrm", "--minutes", "10"]
    process = subprocess.Popen(
        command,
        env=live_workplace.command_environment(),
        cwd=PROJECT_ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not feed.requests and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 0 and "1 of 1 polls succeeded" in told
    assert len(bronze_rows(live_workplace.settings, "station_snapshots")) == 1
    assert "left pending" not in live_workplace.just("ingest").stderr


def test_a_schedules_job_leaves_to_watch_what_watch_does(live_workplace, feed):
    live_workplace.configure(GITHUB_EVENT_NAME="schedule")
    with the_only_job(live_workplace.settings, "watch"):
        left = live_workplace.just("ingest")
        not_its_work = live_workplace.just("verify", check=False)
        live_workplace.configure(GITHUB_EVENT_NAME="workflow_dispatch")
        asked_for = live_workplace.just("ingest", check=False)
    assert "Nothing to do: watch, process " in left.stderr
    assert left.stderr.endswith(" UTC, does the work of ingest on this lake.\n")
    live_workplace.configure(GITHUB_EVENT_NAME="schedule")
    with the_only_job(live_workplace.settings, "backfill"):
        other = live_workplace.just("ingest", check=False)
    for refused in (not_its_work, asked_for, other):
        assert refused.returncode == 1 and "Another job is at work: " in refused.stderr
    assert feed.requests == []


def test_verify_tests_and_reconciles_days_that_no_job_touched(workplace, archive):
    moments = ("2025-05-12 12:00:00", "2025-05-13 12:00:00")
    folder = archive(**{raw_name(text): small_snapshot(moment(text)) for text in moments})
    assert backfill(workplace.settings, str(folder)) is None
    old = workplace.lake_folder / "gold/fct_daily_processing/dt=2025-05-12/data.parquet"
    duckdb.sql(f"select * replace (lines_count + 1 as lines_count) from '{old}'").write_parquet(f"{old}.new")
    old.with_name("data.parquet.new").replace(old)
    with closing(psycopg2.connect(**workplace.settings.postgres_parameters())) as connection:
        connection.autocommit = True
        connection.cursor().execute("update bike_stations set bikes = 999 where date = '2025-05-12'")
        connection.cursor().execute(
            "update stations_data_summary set total_records = 7 where date = '2025-05-12'"
        )
    told = verify(workplace.settings)
    failed = ["data tests of the lake", "data tests of PostgreSQL", "reconciliation of lake and PostgreSQL"]
    assert told.startswith(f"Of {len(CHECKS)} checks 3 failed: {', '.join(failed)}.\n")
    for test in (
        "every_line_received_is_kept_or_a_duplicate_or_quarantined",
        "no_summary_counts_more_readings_than_stand",
        "postgres_holds_the_readings_of_the_lake",
    ):
        assert f"\n  {test}: " in told
