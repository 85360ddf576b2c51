"""`status`, and `backfill` without an archive: the gaps, and days that are rebuilt whatever is killed.

BACKFILL_KILL_POINTS (default 1) says how often, spread evenly over what is to be rebuilt.
"""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from datetime import date, datetime, timedelta

import psycopg2
import pytest
from conftest import FEW_BIKES, FEW_STATIONS, moment, raw_name, small_snapshot
from rich.console import Console

from ingestion import wrm
from ingestion.lake import Lake
from ingestion.settings import PROJECT_ROOT
from scripts import backfill_days, run_pipeline
from scripts.command import the_only_job
from scripts.health import (
    Gap,
    Health,
    LayerHealth,
    RunHealth,
    SourceHealth,
    WarehouseHealth,
    measure_health,
)
from scripts.run_pipeline import Stages, build_and_export
from scripts.show_status import find_troubles, show_screen, to_json, to_markdown

POINTS = int(os.environ.get("BACKFILL_KILL_POINTS", "1"))
SNAPSHOT_LINES = FEW_STATIONS + FEW_BIKES
NOW = moment("2025-05-13 06:03:00")
WELL = Health(
    measured_at=NOW,
    sources=[
        SourceHealth(
            source="wrm",
            last_snapshot_at=moment("2025-05-13 06:00:05"),
            age_seconds=175.0,
            is_stale=False,
            failing_since=None,
            last_error=None,
            coverage_pct=99.31,
            gaps=[],
            quality_day=date(2025, 5, 12),
            quality_score=98.76,
            lines_today=12_600,
            quarantined_today=12,
            quarantine_pct=0.0952,
        )
    ],
    layers=[
        LayerHealth("bronze", 295, 19, 155_990),
        LayerHealth("silver", 1_026_461, 39, 27_500_000),
        LayerHealth("gold", 2_861, 50, 999),
    ],
    warehouse=WarehouseHealth(
        None, {"bike_stations": 11_418, "free_bikes": 1_382}, moment("2025-05-13 06:00:06"), 0.0
    ),
    runs=[
        RunHealth("a", "run", "cron", moment("2025-05-13 06:00:00"), 12.34, "succeeded", None),
        RunHealth("b", "backfill", "manual", moment("2025-05-13 05:00:00"), None, "killed", None),
    ],
    at_work="watch, process 7 on host, since 2025-05-13 00:00:00 UTC",
    next_work={"poll by watch": NOW + timedelta(seconds=60), "nightly": moment("2025-05-14 02:17:00")},
)
ILL = replace(
    WELL,
    sources=[
        replace(
            WELL.sources[0],
            last_snapshot_at=moment("2025-05-13 01:00:00"),
            age_seconds=5 * 3600 + 180.0,
            is_stale=True,
            failing_since=moment("2025-05-13 01:10:00"),
            last_error="The body is a page, not a snapshot: [<html>|x].",
            coverage_pct=70.0,
            gaps=[
                Gap(moment("2025-05-12 20:00:00"), moment("2025-05-12 21:00:00")),
                Gap(moment("2025-05-13 01:00:00"), None),
            ],
            quality_score=84.9,
            quarantine_pct=5.1,
        )
    ],
    warehouse=replace(WELL.warehouse, lag_seconds=1801.0),
    runs=[RunHealth("a", "run", "cron", NOW, 1.0, "failed", "a reason\nthat is long " + "on " * 50)],
    at_work=None,
    next_work={},
)


def screen(settings, health):
    file = io.StringIO()
    console = Console(file=file, width=100, highlight=False)
    show_screen(settings, health, find_troubles(settings, health), console)
    return [line.rstrip() for line in file.getvalue().splitlines()]


def test_the_screen_shows_every_figure_and_fits(workplace):
    assert screen(workplace.settings, WELL) == [
        "Bike Data Flow (prod, 2025-05-13 06:03:00 UTC): ALL IS WELL",
        "Feeds",
        " source  last snapshot (UTC)  age         polls fail since (UTC)",
        " wrm     2025-05-13 06:00:05  2 min 55 s  they do not",
        "Quality",
        " source  24 hours covered  score               lines today  quarantined today",
        " wrm     99.3 %            98.8 on 2025-05-12  12,600       12 (0.1 %)",
        "Gaps of the last 24 hours: none",
        "Lake",
        " layer   rows           objects  size",
        " bronze  295 snapshots  19       156.0 kB",
        " silver  1,026,461      39       27.5 MB",
        " gold    2,861          50       999 B",
        "PostgreSQL: newest reading 2025-05-13 06:00:06, 0 s behind the lake; rows: bike_stations 11,418,",
        "free_bikes 1,382",
        "Last runs",
        " started (UTC)        job       trigger  seconds  outcome    error",
        " 2025-05-13 06:00:00  run       cron     12.3     succeeded",
        " 2025-05-13 05:00:00  backfill  manual            KILLED",
        "Next work",
        " what           due (UTC)            from now",
        " poll by watch  2025-05-13 06:04:00  within 1 min 0 s",
        " nightly        2025-05-14 02:17:00  in 20 h 14 min",
        "at work now: watch, process 7 on host, since 2025-05-13 00:00:00 UTC",
    ]


def test_the_screen_tells_trouble_by_a_word_and_what_to_do_next(workplace):
    shown = screen(workplace.settings, ILL)
    assert shown[:15] == [
        "Bike Data Flow (prod, 2025-05-13 06:03:00 UTC): TROUBLE",
        "wrm is stale: no snapshot for 5 h 3 min; polls fail since 2025-05-13 01:10 UTC: The body is a page,",
        "not a snapshot: [<html>|x]. See what the feed answers, and WRM_FEED_URL; scripts/just run tries",
        "again.",
        "PostgreSQL is 30 min 1 s behind the lake. Run: scripts/just export",
        "Feeds",
        " source  last snapshot (UTC)  age               polls fail since (UTC)",
        " wrm     2025-05-13 01:00:00  5 h 3 min, STALE  FAILING 2025-05-13 01:10:00",
        "Quality",
        " source  24 hours covered  score                    lines today  quarantined today",
        " wrm     70.0 %, LOW       84.9, LOW on 2025-05-12  12,600       12 (5.1 %, HIGH)",
        'scripts/just query "select * from int_wrm__lines_quarantined where dt = current_date" shows them',
        "Gaps of the last 24 hours",
        " source  from (UTC)           to (UTC)             minutes",
        " wrm     2025-05-12 20:00:00  2025-05-12 21:00:00  60",
    ]
    run = " 2025-05-13 06:03:00  run  cron     1.0      FAILED   a reason that is long on on"
    assert shown[-2].startswith(run)
    assert shown[-1] == "Next work: nothing is scheduled; at work now: nobody"
    assert max(map(len, shown)) <= 100 and len(shown) <= 40
    coloured = io.StringIO()
    console = Console(file=coloured, width=100, force_terminal=True, color_system="standard")
    show_screen(workplace.settings, ILL, find_troubles(workplace.settings, ILL), console)
    for word in ("TROUBLE", "STALE", "LOW", "HIGH", "FAILED"):
        assert re.search(rf"\x1b\[[0-9;]*31m[^\x1b]*{word}", coloured.getvalue())


def test_markdown_holds_the_sections_the_daily_quality_and_no_markup_of_others(workplace):
    quality = [{"dt": date(2025, 5, 12), "quality_score": 98.76, "completeness_pct": None}]
    troubles = find_troubles(workplace.settings, ILL)
    lines = to_markdown(workplace.settings, ILL, troubles, quality).splitlines()
    assert lines[0] == "# Bike Data Flow (prod): TROUBLE"
    assert "not a snapshot: &#91;&lt;html>&#124;x].** See what the feed answers" in lines[2]
    assert [line for line in lines if line.startswith("## ")] == [
        f"## {title}"
        for title in (
            "Feeds",
            "Quality",
            "Gaps of the last 24 hours",
            "Lake",
            "PostgreSQL",
            "Last runs",
            "Next work",
            "Quality of the last 14 days (UTC)",
        )
    ]
    assert lines[-3:] == [
        "| day | score | coverage % |",
        "| --- | --- | --- |",
        "| 2025-05-12 | 98.8 | unknown |",
    ]


def test_status_ends_with_one_where_something_is_stale_and_with_zero_where_nothing_is(live_workplace, feed):
    before = sorted(live_workplace.settings.data_dir.rglob("*"))
    with the_only_job(live_workplace.settings, "backfill"):
        empty = live_workplace.just("status", check=False)
        made = {path.name for path in {*live_workplace.settings.data_dir.rglob("*")} - {*before}}
    assert made <= {"pipeline.lock", "lake", "_lease.json"}  # the job's
    assert empty.returncode == 1
    assert "wrm has no snapshot yet. Nobody polls it" in empty.stdout
    assert f"at work now: backfill, process {os.getpid()}" in empty.stdout

    wrm.take_snapshot(live_workplace.settings)
    settings = live_workplace.settings
    not_exported = find_troubles(settings, measure_health(settings))
    assert [trouble.what for trouble in not_exported] == ["PostgreSQL holds no readings, the lake does"]
    build_and_export(settings, Stages())
    well = live_workplace.just("status", "--json")
    told = json.loads(well.stdout)
    measured_at = datetime.fromisoformat(told["measured_at"])
    assert well.stdout == to_json(measure_health(settings, with_sizes=True, measured_at=measured_at)) + "\n"
    assert told["sources"][0]["lines_today"] == SNAPSHOT_LINES
    assert told["warehouse"]["rows"]["bike_stations"] == FEW_STATIONS
    assert told["warehouse"]["lag_seconds"] == 0.0

    feed.misbehave("html")
    wrm.take_snapshot(settings)
    assert find_troubles(settings, measure_health(settings)) == []  # not yet
    live_workplace.configure(
        ALERT_STALE_MINUTES="0.001", POSTGRES_URL="postgresql://postgres:planted@127.0.0.1:9/postgres"
    )
    stale = live_workplace.just("status", "--markdown", check=False)
    assert stale.returncode == 1
    assert "wrm is stale: no snapshot for " in stale.stdout and "polls fail since" in stale.stdout
    assert "PostgreSQL cannot be asked: connection to server" in stale.stdout
    assert "Traceback" not in stale.stderr and "planted" not in stale.stdout + stale.stderr


def test_backfill_without_an_archive_lists_every_gap_the_newest_last(workplace, archive, capsys):
    moments = [f"2025-05-12 00:{minute}:00" for minute in ("00", "10", "40", "50")]
    backfill_days.show_gaps(workplace.settings)
    assert capsys.readouterr().out.startswith("No gaps")
    texts = {raw_name(each): small_snapshot(moment(each)) for each in moments}
    wrm.import_archive(workplace.settings, str(archive(**texts)))
    listed = workplace.just("backfill")
    built, lasting = cells(listed)
    assert built == ["2025-05-12 00:10:00", "2025-05-12 00:40:00", "30", "2"]
    assert lasting[:2] == ["2025-05-12 00:50:00", "goes on"]
    assert "scripts/just backfill PATH_OR_URL" in listed.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("/archive --to 2025-05-12", "an archive and days cannot go together: /archive. Import it first"),
        ("--from 2025-02-30", "argument --from: malformed: '2025-02-30'. Give a day such as 2025-05-12."),
        ("--from 2025-05-13 --to 2025-05-12", "days run backwards: --from 2025-05-13 --to 2025-05-12."),
    ],
)
def test_backfill_refuses_days_that_make_no_sense(monkeypatch, capsys, arguments, said):
    monkeypatch.setattr(sys, "argv", ["run_pipeline", "backfill", *arguments.split()])
    with pytest.raises(SystemExit) as ended:
        run_pipeline.main()
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def load(workplace, archive, *days):
    """Days of one snapshot each, through every layer."""
    texts = {raw_name(f"{day} 12:00:00"): small_snapshot(moment(f"{day} 12:00:00")) for day in days}
    wrm.import_archive(workplace.settings, str(archive(**texts)))
    build_and_export(workplace.settings, Stages())


def objects(workplace):
    """When each day of each model was written."""
    found = workplace.lake_folder.glob("*/*/dt=*/data.parquet")
    return {(path.parent.parent.name, path.parent.name[3:]): path.stat().st_mtime_ns for path in found}


def readings(workplace):
    return workplace.warehouse_rows("select station_id, timestamp, bikes from bike_stations order by 1, 2")


def test_a_killed_backfill_of_days_goes_on_with_what_is_left(workplace, archive):
    load(workplace, archive, "2025-05-11", "2025-05-12")
    lake, command = Lake.of(workplace.settings), ("backfill", "--from", "2025-05-12")
    rows, lines = readings(workplace), workplace.lake_rows("from int_wrm__lines_parsed order by all")
    with closing(psycopg2.connect(**workplace.settings.postgres_parameters())) as connection:
        connection.autocommit = True
        connection.cursor().execute("update bike_stations set bikes = 999 where date = '2025-05-12'")
    before = objects(workplace)

    for point in range(1, POINTS + 1):
        process = subprocess.Popen(
            [sys.executable, "-m", "scripts.run_pipeline", *command],
            env=workplace.command_environment(),
            cwd=PROJECT_ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        while process.poll() is None and not is_down_to(lake, 1 - point / (POINTS + 1)):
            time.sleep(0.1)
        assert process.poll() is None, "it ended before it could be killed"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    journal = backfill_days._read_journal(lake, "2025-05-12..")
    left = {(model, str(day)) for model, days in journal.left(lake).items() for day in days}
    marked = {(model, str(day)) for model, days in journal.marked.items() for day in days}
    killed = objects(workplace)

    done = workplace.just(*command)
    counts = f"{len(left)} of {len(marked)} model-days left"
    assert re.search(rf"Going on with 2025-05-12\.\. of .* UTC: {counts}", done.stderr)
    after = objects(workplace)
    assert {each for each in after if after[each] != killed[each]} == left
    assert {each for each in after if after[each] != before[each]} == marked
    assert {day for _, day in marked} == {"2025-05-12", "2025-05-13"}  # a local day reads two of UTC
    assert {("int_wrm__lines_parsed", "2025-05-12"), ("fct_daily_network", "2025-05-13")} <= marked
    assert cells(done) == [["2025-05-12", "rebuilt, as before", str(SNAPSHOT_LINES), "0", "0"]]
    assert readings(workplace) == rows
    assert workplace.lake_rows("from int_wrm__lines_parsed order by all") == lines
    assert list((workplace.lake_folder / "_backfill").iterdir()) == []


def is_down_to(lake, share_left):
    journal = backfill_days._read_journal(lake, "2025-05-12..")
    if journal is None:
        return False
    total, left = (sum(map(len, days.values())) for days in (journal.marked, journal.left(lake)))
    return left <= share_left * total


def cells(done):
    rows = [line for line in done.stdout.splitlines() if "│" in line]
    return [[cell.strip() for cell in row.split("│")[1:-1]] for row in rows]


def test_days_that_fail_are_reported_and_made_good_by_the_same_command(workplace, archive, tmp_path):
    project = tmp_path / "project"
    shutil.copytree(PROJECT_ROOT, project, ignore=shutil.ignore_patterns(".venv", "data", ".git", "tests"))
    load(workplace, archive, "2025-05-12")
    failing = project / "transform/data_tests/the_twelfth_has_no_lines.sql"
    failing.write_text("select dt from {{ ref('int_wrm__lines_parsed') }} where dt = '2025-05-12'")
    command = ("backfill", "--to", "2025-05-12")
    failed = workplace.just(*command, project=project, check=False)
    assert failed.returncode == 1
    assert [row[:2] for row in cells(failed)] == [["2025-05-12", "failed"], ["2025-05-13", "waiting"]]
    assert "2025-05-12 failed: the_twelfth_has_no_lines: " in failed.stdout
    assert re.search(r"2025-05-13 waiting: \d+ models were not reached, such as \w+", failed.stdout)
    assert "2 days are not whole, see above" in failed.stderr and "Traceback" not in failed.stderr

    failing.unlink()
    mended = workplace.just(*command, project=project)
    assert "Going on with ..2025-05-12 of " in mended.stderr
    assert cells(mended) == [["2025-05-12", "rebuilt, as before", str(SNAPSHOT_LINES), "0", "0"]]
