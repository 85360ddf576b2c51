"""Recipes for people: questions to the lake, pages of documentation, days built anew."""

import csv
import json
import os
import shutil
import subprocess
from contextlib import closing

import psycopg2
from conftest import FEW_BIKES, FEW_STATIONS, moment, raw_name, small_snapshot

from ingestion import schemas
from ingestion.settings import PROJECT_ROOT
from scripts.command import the_only_job

SNAPSHOT_LINES = FEW_STATIONS + FEW_BIKES
MODELS = sorted(path.stem for path in PROJECT_ROOT.glob("transform/models/[im]*/*/*.sql"))
SEEDS = sorted(path.stem for path in PROJECT_ROOT.glob("transform/seeds/*.csv"))
BRONZE = [f"{source}__{table}" for source, tables in schemas.BRONZE.items() for table in tables]


def answer(place, sql):
    """Rows of a query, as the recipe prints them."""
    done = place.just("query", "-json", sql)
    assert done.stderr == ""
    return json.loads(done.stdout)


def two_days(archive):
    """An archive of one snapshot on each of two days."""
    moments = ("2025-05-12 12:00:00", "2025-05-13 12:00:00")
    return str(archive(**{raw_name(text): small_snapshot(moment(text)) for text in moments}))


def readings(place):
    return place.warehouse_rows(
        "select date::text, station_id, timestamp, bikes from bike_stations order by 1, 2, 3"
    )


def damage(place, sql):
    with closing(psycopg2.connect(**place.settings.postgres_parameters())) as connection:
        connection.autocommit = True
        connection.cursor().execute(sql)


def run(place, project, script, *arguments):
    """What a script of a copy of the project prints."""
    return place.command("python", "-m", f"scripts.{script}", *arguments, folder=project)


def day_objects(place, day):
    """A day's objects of bronze and of what is made of this day alone, and when each was written."""
    alone = ("bronze/*", "silver/int_wrm__*lines*", "silver/int_wrm__*deduplicated")
    return {
        path: path.stat().st_mtime_ns
        for pattern in alone
        for path in place.lake_folder.glob(f"{pattern}/**/dt={day}/*")
    }


def cells(printed):
    """The rows of the tables in what was printed."""
    lines = [line for line in printed.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


def test_query_opens_an_empty_lake_and_says_what_to_do(workplace):
    done = workplace.just("query", "-csv", "select count(*) as n, max(dt) as newest from wrm__fetch_attempts")
    assert done.stdout == "n,newest\n0,NULL\n"
    assert "Nothing is built yet: file:///" in done.stderr and "Run: scripts/just run" in done.stderr
    assert not workplace.lake_folder.exists()


def test_query_finds_models_seeds_and_bronze_and_leaves_the_users_own_shell_out(live_workplace, tmp_path):
    live_workplace.finish("run_pipeline", "run")
    (tmp_path / ".duckdbrc").write_text("select 'from duckdbrc';")
    live_workplace.configure(HOME=str(tmp_path), TZ="America/New_York")
    assert [row["name"] for row in answer(live_workplace, "show tables")] == sorted(MODELS + SEEDS + BRONZE)
    query = """
        with raw as (
            select max(dt) as dt, sum(octet_length(payload) - payload_bytes)::integer as lost_bytes,
            from wrm__station_snapshots
        ),
        parsed as (select max(dt) as dt, count(*) as lines from int_wrm__lines_parsed)
        select getvariable('lake') as lake, current_setting('timezone') as zone, lines, lost_bytes,
            raw.dt = parsed.dt as is_same_day
        from raw, parsed"""
    lake = str(live_workplace.lake_folder)
    expected = {"lake": lake, "zone": "UTC", "lines": SNAPSHOT_LINES, "lost_bytes": 0, "is_same_day": True}
    assert answer(live_workplace, query) == [expected]
    table = live_workplace.just("query", "select station_id from int_wrm__station_readings_deduplicated")
    assert "│ station_id │" in table.stdout and table.stdout.count("\n") == FEW_STATIONS + 5
    assert "duckdbrc" not in table.stdout + table.stderr


def test_query_ends_badly_with_the_engines_message(workplace):
    wrong = workplace.just("query", "select 1 from no_such_table", check=False)
    assert wrong.returncode == 1
    assert "Table with name no_such_table does not exist" in wrong.stderr
    workplace.configure(LAKE_URL="s3://bike-data-flow/lake", AWS_ENDPOINT_URL_S3="http://127.0.0.1:9")
    workplace.configure(AWS_ACCESS_KEY_ID="planted-id", AWS_SECRET_ACCESS_KEY="planted-key")
    no_lake = workplace.just("query", "select 1", check=False)
    assert no_lake.returncode == 1 and "The lake is out of reach: s3://" in no_lake.stderr
    for failed in (wrong, no_lake):
        assert "Traceback" not in failed.stderr and "planted" not in failed.stderr


def test_query_reads_a_lake_on_s3_and_no_secret_is_in_the_process_list(workplace, archive, s3_server):
    workplace.configure(**s3_server.environment | {"LAKE_URL": "s3://bike-data-flow/queried"})
    workplace.finish("run_pipeline", "backfill", two_days(archive))
    shell = subprocess.Popen(
        ["just", "--justfile", PROJECT_ROOT / "justfile", "query", "-csv"],
        env=workplace.command_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert shell.stdin is not None and shell.stdout is not None
    shell.stdin.write("select dt, count(*) as n from int_wrm__lines_parsed group by dt order by dt;\n")
    shell.stdin.write("select count(*) as n from wrm__station_snapshots;\n")
    shell.stdin.flush()
    rows = [next(csv.reader([shell.stdout.readline()])) for _ in range(5)]
    assert rows == [["dt", "n"], ["2025-05-12", "9"], ["2025-05-13", "9"], ["n"], ["2"]]
    processes = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert "duckdb_cli" in processes
    assert s3_server.secret_access_key not in processes
    shell.communicate(".quit\n", timeout=60)
    assert shell.returncode == 0


def test_docs_describe_every_table_of_an_empty_and_of_a_filled_lake(live_workplace):
    docs = live_workplace.settings.data_dir / "docs"
    pages = [docs / "index.html", docs / "transform" / "index.html", docs / "exports" / "index.html"]
    printed = "".join(f"{page.as_uri()}\n" for page in pages)
    assert live_workplace.just("docs").stdout == printed
    live_workplace.finish("run_pipeline", "run")
    assert live_workplace.just("docs").stdout == printed
    index, transform, exports = (page.read_text() for page in pages)
    assert 'href="transform/index.html"' in index and 'href="exports/index.html"' in index
    for page, described in (
        (transform, MODELS),
        (exports, ["bike_stations", "demo_report", "city_analysts"]),
    ):
        assert all(f'"name": "{name}"' in page for name in described)
        assert '"send_anonymous_usage_stats": false' in page  # or it would load a tracker
    types = {
        project: json.loads((docs.parent / "dbt" / project / "catalog.json").read_text())["nodes"]
        for project in ("transform", "exports")
    }
    marts = types["transform"]["model.transform.fct_daily_processing"]["columns"]
    assert marts["kept_pct"]["type"] == "DOUBLE"
    public = types["exports"]["model.exports.bike_stations"]["columns"]
    assert public["timestamp"]["type"] == "timestamp without time zone"


def test_rebuild_drives_the_given_day_again_through_lake_and_warehouse_and_shows_what_moved(
    workplace, archive, tmp_path
):
    project = tmp_path / "project"
    shutil.copytree(PROJECT_ROOT, project, ignore=shutil.ignore_patterns(".venv", "data", ".git", "tests"))
    run(workplace, project, "run_pipeline", "backfill", two_days(archive))
    rows = readings(workplace)
    first, second = ([row for row in rows if row[0] == day] for day in ("2025-05-12", "2025-05-13"))
    limit = sorted(bikes for *_, bikes in first)[FEW_STATIONS // 2]
    kept = [row for row in first if row[-1] <= limit]
    rejected = len(first) - len(kept)
    assert kept and rejected and all(len(day) == FEW_STATIONS for day in (first, second))

    rules = project / "transform/models/staging/wrm/stg_wrm__station_lines.sql"
    original = rules.read_text()
    assert original.count("bikes_count between 0 and 10000") == 1
    rules.write_text(
        original.replace("bikes_count between 0 and 10000", f"bikes_count between 0 and {limit}")
    )
    untouched = day_objects(workplace, "2025-05-13")
    stricter = run(workplace, project, "rebuild_days", "2025-05-12")
    assert cells(stricter) == [
        ["2025-05-12", f"{SNAPSHOT_LINES} → {SNAPSHOT_LINES - rejected}", "0", f"0 → {rejected}"],
        ["2025-05-12", str(rejected), "into quarantine", "implausible_count"],
    ]
    assert day_objects(workplace, "2025-05-13") == untouched
    assert readings(workplace) == kept + second
    assert workplace.warehouse_rows("select date::text, quarantined from processing_summary order by 1") == [
        ("2025-05-12", rejected),
        ("2025-05-13", 0),
    ]

    rules.write_text(original)
    mended = run(workplace, project, "rebuild_days", "2025-05-01..2025-05-12")
    assert cells(mended) == [
        ["2025-05-12", f"{SNAPSHOT_LINES - rejected} → {SNAPSHOT_LINES}", "0", f"{rejected} → 0"],
        ["2025-05-12", str(rejected), "out of quarantine", "implausible_count"],
    ]
    assert readings(workplace) == rows
    assert day_objects(workplace, "2025-05-13") == untouched

    damage(workplace, "update bike_stations set bikes = 999; update processing_summary set lines = 999")
    unchanged = workplace.just("rebuild", "2025-05-13")
    assert "models built days: " in unchanged.stderr
    assert "lake and PostgreSQL agree" in unchanged.stderr
    assert "Nothing moved between kept and quarantined." in unchanged.stdout
    assert readings(workplace) == [(*row[:-1], 999) for row in first] + second
    lines = workplace.warehouse_rows("select lines from processing_summary order by date")
    assert lines == [(999,), (SNAPSHOT_LINES,)]


def test_rebuild_refuses_days_that_it_cannot_build_and_touches_nothing(workplace, archive):
    empty = workplace.just("rebuild", "2025-05-12", check=False)
    assert "The lake holds none of these days: 2025-05-12. It holds nothing yet" in empty.stderr
    workplace.just("ingest", check=False)  # the feed is out of reach: a day with an attempt and nothing else
    before = workplace.lake_objects()
    refused = {
        days: workplace.just("rebuild", *days.split(), check=False)
        for days in ("yesterday", "2025-05-12 2025-02-30", "2025-05-13..2025-05-12", "2025-05-12..2025-05-13")
    }
    with the_only_job(workplace.settings, "backfill"):
        locked = workplace.just("rebuild", "2025-05-12", check=False)
    assert {days: done.stderr.strip().splitlines()[0] for days, done in refused.items()} == {
        "yesterday": "Failed. DAYS are malformed: 'yesterday'. "
        "Give days such as 2025-05-12 or 2025-05-01..2025-05-31.",
        "2025-05-12 2025-02-30": "Failed. DAYS are malformed: '2025-02-30'. "
        "Give days such as 2025-05-12 or 2025-05-01..2025-05-31.",
        "2025-05-13..2025-05-12": "Failed. DAYS run backwards: '2025-05-13..2025-05-12'. "
        "Give the earlier day first: 2025-05-12..2025-05-13.",
        "2025-05-12..2025-05-13": refused["2025-05-12..2025-05-13"].stderr.strip(),
    }
    assert "holds none of these days: 2025-05-12..2025-05-13. It holds days from 20" in (
        refused["2025-05-12..2025-05-13"].stderr
    )
    assert f"Another job is at work: backfill, process {os.getpid()}" in locked.stderr
    assert {done.returncode for done in (empty, locked, *refused.values())} == {1}
    assert workplace.lake_objects() == before
