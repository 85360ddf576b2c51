"""The project through its command line, from feed and archive to PostgreSQL."""

import os
import re
import shutil
import socket
from pathlib import Path

import pytest
from conftest import FEW_BIKES, FEW_STATIONS, bronze_rows, moment, raw_name, small_snapshot

from ingestion.settings import PROJECT_ROOT
from scripts.command import the_only_job
from scripts.start_postgres import running_postgres

SNAPSHOT_LINES = FEW_STATIONS + FEW_BIKES
REAL_SNAPSHOTS = Path(
    os.environ.get("WRM_REAL_SNAPSHOTS") or PROJECT_ROOT.parent / "shared" / "data" / "wrm" / "raw"
)


def readings(place):
    return place.warehouse_rows("select station_id, timestamp, bikes from bike_stations order by 1, 2")


def test_run_brings_live_snapshots_to_postgres_and_an_unchanged_one_adds_nothing(live_workplace, feed):
    first = live_workplace.just("run")
    assert "snapshot taken" in first.stderr
    rows = readings(live_workplace)
    assert len(rows) == FEW_STATIONS
    feed.misbehave("unchanged")
    second = live_workplace.just("run")
    assert "snapshot unchanged" in second.stderr
    assert readings(live_workplace) == rows
    assert live_workplace.warehouse_rows(
        "select snapshots, lines, fetch_attempts, unchanged_fetches from processing_summary"
    ) == [(1, SNAPSHOT_LINES, 2, 1)]


def test_run_survives_a_feed_that_fails_and_recovers(live_workplace, feed):
    live_workplace.finish("run_pipeline", "run")
    feed.misbehave("html")
    failed = live_workplace.just("run", check=False)
    assert failed.returncode == 1
    assert "The body is a page, not a snapshot" in failed.stderr
    assert "scripts/just demo" in failed.stderr and "scripts/just backfill" in failed.stderr
    assert "Traceback" not in failed.stderr
    live_workplace.finish("run_pipeline", "run")
    assert len(readings(live_workplace)) == 2 * FEW_STATIONS
    assert live_workplace.warehouse_rows(
        "select snapshots, fetch_attempts, failed_fetches from processing_summary"
    ) == [(2, 3, 1)]


def test_run_builds_and_exports_what_had_arrived_while_the_feed_is_out_of_reach(workplace, archive):
    folder = archive(**{raw_name("2025-05-12 12:00:00"): small_snapshot(moment("2025-05-12 12:00:00"))})
    empty = workplace.just("run", check=False)
    assert empty.returncode == 1 and "The feed is out of reach" in empty.stderr
    workplace.just("export")  # in a process of its own, of models that have no days yet
    from ingestion import wrm

    wrm.import_archive(workplace.settings, str(folder))
    workplace.finish("run_pipeline", "run", status=1)
    assert len(readings(workplace)) == FEW_STATIONS
    errors = bronze_rows(workplace.settings, "fetch_attempts", "error")
    # the defects are asked for again after an hour only
    assert len(errors) == 3 and all("out of reach" in error for (error,) in errors)


def test_run_carries_on_where_the_dlt_working_directory_was_lost(live_workplace, feed):
    live_workplace.finish("run_pipeline", "run")
    rows = readings(live_workplace)
    shutil.rmtree(live_workplace.settings.data_dir / "dlt")
    feed.misbehave("unchanged")
    assert "snapshot unchanged" in live_workplace.finish("run_pipeline", "run")
    assert readings(live_workplace) == rows


def test_backfill_takes_only_what_is_new_also_an_old_day_dropped_in_late(workplace, archive):
    folder = archive(
        **{
            f"dt=2025-05-12__{raw_name('2025-05-12 12:00:00')}": small_snapshot(
                moment("2025-05-12 12:00:00")
            ),
            "station_data_20250513_120000.txt": small_snapshot(moment("2025-05-13 12:00:00")),
        }
    )
    first = workplace.just("backfill", str(folder))
    assert "2 new" in first.stderr
    before = workplace.lake_objects()
    rows = readings(workplace)
    second = workplace.just("backfill", str(folder))
    assert "0 new" in second.stderr
    assert (workplace.lake_objects(), readings(workplace)) == (before, rows)
    archive(**{"content_2025-05-01_12-00-00.txt": small_snapshot(moment("2025-05-01 12:00:00"))})
    workplace.finish("run_pipeline", "backfill", str(folder))
    after = workplace.lake_objects()
    # what is made of its own days alone is left alone; what compares with the day before is not
    alone = ("bronze/wrm/station_snapshots/", "silver/int_wrm__lines", "gold/fct_daily_station_availability/")
    untouched = [path for path in before if path.startswith(alone) and path.endswith("/data.parquet")]
    assert len(untouched) == 6
    assert [path for path in untouched if before[path] != after[path]] == []
    assert len(readings(workplace)) == 3 * FEW_STATIONS
    assert workplace.warehouse_rows("select date::text from stations_data_summary order by 1") == [
        ("2025-05-01",),
        ("2025-05-12",),
        ("2025-05-13",),
    ]


def test_backfill_ends_badly_but_completely_when_a_file_is_refused(workplace, archive):
    folder = archive(
        **{
            raw_name("2025-05-12 12:00:00"): small_snapshot(moment("2025-05-12 12:00:00")),
            "content_2025-05-12_12-10-00.txt.gz": b"not gzip",
        }
    )
    done = workplace.just("backfill", str(folder), check=False)
    assert done.returncode == 1
    assert "File cannot be read" in done.stderr and "1 files were refused" in done.stderr
    assert len(readings(workplace)) == FEW_STATIONS


def test_commands_report_bad_settings_and_missing_archives_without_a_traceback(workplace):
    missing = workplace.just("backfill", "/nowhere/at/all", check=False)
    workplace.configure(LAKE_URL="ftp://host", FETCH_ATTEMPTS="many")
    malformed = workplace.just("run", check=False)
    assert (missing.returncode, malformed.returncode) == (1, 1)
    assert "No archive found: /nowhere/at/all. Give a folder" in missing.stderr
    assert "LAKE_URL is malformed: 'ftp://host'" in malformed.stderr
    assert "FETCH_ATTEMPTS is malformed: 'many'" in malformed.stderr
    assert "Traceback" not in missing.stderr + malformed.stderr
    lake = Path(workplace.environment["DATA_DIR"]) / "lake"
    assert [path.name for path in lake.glob("*/*")] == ["pipeline"]  # that it was tried


def test_a_changed_rule_moves_rows_to_quarantine_and_back(workplace, archive, tmp_path):
    project = tmp_path / "project"
    ignored = shutil.ignore_patterns(".venv", "data", ".git", "target", "logs", "tests")
    shutil.copytree(PROJECT_ROOT, project, ignore=ignored)
    text = small_snapshot(moment("2025-05-12 12:00:00"))
    workplace.just("backfill", str(archive(**{raw_name("2025-05-12 12:00:00"): text})), project=project)
    rows = readings(workplace)
    limit = sorted(bikes for _, _, bikes in rows)[FEW_STATIONS // 2]
    kept = [row for row in rows if row[2] <= limit]
    assert 0 < len(kept) < len(rows)

    rules = project / "transform/models/staging/wrm/stg_wrm__station_lines.sql"
    original = rules.read_text()
    assert original.count("bikes_count between 0 and 10000") == 1
    rules.write_text(
        original.replace("bikes_count between 0 and 10000", f"bikes_count between 0 and {limit}")
    )
    workplace.just("transform", project=project)
    workplace.just("export", project=project)
    assert readings(workplace) == kept
    rejected = len(rows) - len(kept)
    assert (
        workplace.lake_rows("select rejection_reasons from int_wrm__lines_quarantined")
        == [(["implausible_count"],)] * rejected
    )
    assert workplace.warehouse_rows("select station_readings, quarantined from processing_summary") == [
        (len(kept), rejected)
    ]

    rules.write_text(original)
    workplace.just("transform", project=project)
    workplace.just("export", project=project)
    assert readings(workplace) == rows
    assert workplace.lake_rows("select count(*) from int_wrm__lines_quarantined") == [(0,)]


def test_a_day_that_fails_a_test_is_built_and_tested_until_it_passes(workplace, archive, tmp_path):
    project = tmp_path / "project"
    shutil.copytree(PROJECT_ROOT, project, ignore=shutil.ignore_patterns(".venv", "data", ".git", "tests"))
    failing = project / "transform/data_tests/there_are_no_readings.sql"
    failing.write_text("select dt from {{ ref('int_wrm__station_readings_deduplicated') }}")
    text = small_snapshot(moment("2025-05-12 12:00:00"))
    folder = archive(**{raw_name("2025-05-12 12:00:00"): text})
    first = workplace.just("backfill", str(folder), project=project, check=False)
    again = workplace.just("transform", project=project, check=False)
    for failed in (first, again):
        assert failed.returncode == 1 and "there_are_no_readings" in failed.stderr
    failing.unlink()
    mended = workplace.just("transform", project=project)
    assert (
        "int_wrm__station_readings_deduplicated built days: 1" in mended.stderr
        or "models built" in mended.stderr
    )
    assert workplace.lake_rows("select readings_count from fct_daily_station_readings") == [(FEW_STATIONS,)]


def test_a_second_job_says_who_is_at_work(workplace):
    with the_only_job(workplace.settings, "backfill"):
        second = workplace.just("run", check=False)
    assert second.returncode == 1
    assert (
        f"Another job is at work: backfill, process {os.getpid()} on {socket.gethostname()}, since"
        in second.stderr
    )


def test_storage_and_servers_out_of_reach_are_told_without_a_traceback(workplace):
    workplace.configure(POSTGRES_URL="postgresql://postgres:planted@127.0.0.1:9/postgres")
    no_postgres = workplace.just("export", check=False)
    workplace.configure(
        LAKE_URL="s3://bike-data-flow/lake",
        AWS_ENDPOINT_URL_S3="http://127.0.0.1:9",
        AWS_ACCESS_KEY_ID="planted-id",
        AWS_SECRET_ACCESS_KEY="planted-key",
    )
    no_lake = [workplace.just(job, check=False) for job in ("ingest", "transform")]
    for failed in (no_postgres, *no_lake):
        assert failed.returncode == 1
        assert "Traceback" not in failed.stderr, failed.stderr
        assert "Failed. " in failed.stderr
        assert "planted" not in failed.stderr + failed.stdout
    assert "Check LAKE_URL" in no_lake[0].stderr and "Check LAKE_URL" in no_lake[1].stderr


def test_a_lake_moves_from_files_to_s3(live_workplace, archive, s3_server):
    folder = archive(**{raw_name("2025-05-12 12:00:00"): small_snapshot(moment("2025-05-12 12:00:00"))})
    live_workplace.finish("run_pipeline", "backfill", str(folder))
    in_files = live_workplace.lake_rows("from int_wrm__lines_parsed order by all")
    rows = readings(live_workplace)
    live_workplace.configure(**s3_server.environment | {"LAKE_URL": "s3://bike-data-flow/moved"})
    live_workplace.finish("run_pipeline", "backfill", str(folder))
    query = "select * exclude (fetched_at) from (from int_wrm__lines_parsed) order by all"
    in_s3 = live_workplace.lake_rows(query)
    live_workplace.configure(LAKE_URL="")
    assert live_workplace.lake_rows(query) == in_s3
    assert len(in_s3) == len(in_files) == SNAPSHOT_LINES
    assert readings(live_workplace) == rows
    live_workplace.configure(LAKE_URL="s3://bike-data-flow/moved")
    live_workplace.finish("run_pipeline", "run")
    assert len(readings(live_workplace)) == 2 * FEW_STATIONS
    again = live_workplace.finish("run_pipeline", "backfill", str(folder))
    assert "0 new" in again and again.count("nothing new") == 5


def test_dlt_and_dbt_work_as_their_users_expect(live_workplace):
    live_workplace.finish("run_pipeline", "run")
    info = live_workplace.command("dlt", "pipeline", "wrm", "info")
    assert "dataset_name: wrm" in info and str(live_workplace.settings.data_dir) in info
    assert "Run started at" in live_workplace.command("dlt", "pipeline", "wrm", "trace")
    for project in ("transform", "exports"):
        built = live_workplace.command("dbt", "build", folder=PROJECT_ROOT / project)
        assert re.search(r"PASS=[1-9]\d* WARN=0 ERROR=0", built)
        live_workplace.command("dbt", "docs", "generate", folder=PROJECT_ROOT / project)
    shown = live_workplace.command(
        "dbt", "show", "--inline", "select count(*) as n from {{ ref('int_wrm__lines_parsed') }}",
        folder=PROJECT_ROOT / "transform",
    )  # fmt: skip
    assert re.search(rf"\| +{SNAPSHOT_LINES} \|", shown)


def test_dbt_in_exports_finds_the_embedded_server(live_workplace):
    live_workplace.configure(POSTGRES_URL="")
    with running_postgres(live_workplace.settings):
        live_workplace.finish("run_pipeline", "run")
        built = live_workplace.command("dbt", "build", folder=PROJECT_ROOT / "exports")
        assert re.search(r"PASS=[1-9]\d* WARN=0 ERROR=0", built)


def test_psql_opens_on_the_warehouse_and_the_recipe_passes_arguments_on(live_workplace):
    live_workplace.finish("run_pipeline", "run")
    done = live_workplace.just("psql", "-Atc", "select count(*), 'two words' from bike_stations")
    assert done.stdout == f"{FEW_STATIONS}|two words\n"


def test_the_embedded_server_starts_when_needed_in_a_deep_folder_and_is_left_tidy(live_workplace, tmp_path):
    deep = tmp_path / "/".join(["a_rather_long_name_for_a_folder"] * 4)
    live_workplace.configure(POSTGRES_URL="", DATA_DIR=str(deep))
    live_workplace.just("run")
    assert not (deep / "postgres" / "postmaster.pid").exists()
    assert not live_workplace.settings.postgres_socket_dir.exists()
    done = live_workplace.just("psql", "-Atc", "select count(*) from bike_stations")
    assert done.stdout == f"{FEW_STATIONS}\n"


@pytest.mark.skipif(not REAL_SNAPSHOTS.exists(), reason="real snapshots are not here: set WRM_REAL_SNAPSHOTS")
def test_every_line_of_the_real_snapshots_is_accounted_for(workplace):
    workplace.just("backfill", str(REAL_SNAPSHOTS))
    assert workplace.warehouse_rows(
        "select snapshots, lines, station_readings, free_bike_readings, duplicates, quarantined "
        "from processing_summary"
    ) == [(3, 1050, 705, 345, 0, 0)]
    assert len(readings(workplace)) == 705
    tables = [path.stem for path in PROJECT_ROOT.glob("exports/models/wrm/*.sql")]
    counts = {table: workplace.warehouse_rows(f"select count(*) from {table}")[0][0] for table in tables}
    assert {table for table, count in counts.items() if count == 0} == {"bike_failures"}  # a feed of its own
    assert (counts["free_bikes"], counts["station_history"], counts["free_bike_trips"]) == (345, 235, 1)
    before = workplace.lake_objects()
    workplace.just("backfill", str(REAL_SNAPSHOTS))
    assert workplace.lake_objects() == before
