"""What `measure_health` says of a feed, a lake and a PostgreSQL in every state they may be in."""

from contextlib import closing
from dataclasses import replace
from datetime import date, timedelta

import psycopg2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import FEW_BIKES, FEW_STATIONS, moment, raw_name, small_snapshot

import scripts.health
from ingestion import wrm
from ingestion.lake import Lake
from ingestion.settings import PROJECT_ROOT
from scripts.backfill_days import forget_days
from scripts.health import (
    Gap,
    Health,
    LayerHealth,
    RunHealth,
    SourceHealth,
    WarehouseHealth,
    daily_quality,
    list_gaps,
    measure_health,
)
from scripts.lake_reader import read_states
from scripts.lease import Holder, held_lease
from scripts.run_pipeline import Stages, build_and_export
from scripts.schedules import next_runs
from scripts.show_status import find_troubles

LINES = FEW_STATIONS + FEW_BIKES
NOTHING_YET = SourceHealth(
    source="wrm",
    last_snapshot_at=None,
    age_seconds=None,
    is_stale=True,
    failing_since=None,
    last_error=None,
    coverage_pct=None,
    gaps=[],
    quality_day=None,
    quality_score=None,
    lines_today=0,
    quarantined_today=0,
    quarantine_pct=0.0,
)
RUNS = pa.schema(
    [("run_id", pa.string()), ("job", pa.string()), ("trigger", pa.string())]
    + [(name, pa.timestamp("us", tz="UTC")) for name in ("started_at", "ended_at")]
    + [("outcome", pa.string()), ("error", pa.string())]
)


def at(day, *times):
    return [f"2025-05-{day} {time}:00" for time in times]


def every_ten_minutes(day, hours):
    return at(day, *(f"{hour:02}:{minute:02}" for hour in hours for minute in range(0, 60, 10)))


def texts(moments):
    return {raw_name(each): small_snapshot(moment(each)) for each in moments}


def test_a_lake_of_which_nothing_is_there_is_stale_and_unknown(workplace):
    health = measure_health(workplace.settings, with_sizes=True, measured_at=moment("2025-05-13 06:03:00"))
    assert health == Health(
        measured_at=moment("2025-05-13 06:03:00"),
        sources=[NOTHING_YET],
        layers=[LayerHealth(layer, 0, 0, 0) for layer in ("bronze", "silver", "gold")],
        warehouse=WarehouseHealth(None, {}, None, None),
        runs=[],
        at_work=None,
        next_work=next_runs(moment("2025-05-13 06:03:00")),
    )
    assert list_gaps(workplace.settings, moment("2025-05-13 06:03:00")) == []
    assert daily_quality(workplace.settings, 14, date(2025, 5, 13)) == []
    assert not workplace.lake_folder.exists()


def test_figures_of_built_days_and_of_what_came_or_failed_to_come_since(workplace, archive, s3_server):
    first = [*every_ten_minutes(12, (22, 23)), *every_ten_minutes(13, (0, 1, 3, 4, 5))]
    bad = {raw_name("2025-05-13 05:30:00"): "#id,name\n1,Rynek\n"}
    wrm.import_archive(workplace.settings, str(archive(**texts(first) | bad)))
    build_and_export(workplace.settings, Stages())
    now = moment("2025-05-13 06:03:00")
    health = measure_health(workplace.settings, with_sizes=True, measured_at=now)

    [(score,)] = workplace.lake_rows(
        "select quality_score from fct_daily_data_quality where dt = '2025-05-12'"
    )
    gap = Gap(moment("2025-05-13 01:50:00"), moment("2025-05-13 03:00:00"))
    source = SourceHealth(
        source="wrm",
        last_snapshot_at=moment("2025-05-13 05:50:00"),
        age_seconds=13 * 60.0,
        is_stale=False,
        failing_since=None,
        last_error=None,
        # eight hours without six snapshots, and the next with the three tenths of one that is not late yet
        coverage_pct=pytest.approx(100 * 43.3 / 49.3),
        gaps=[gap],
        quality_day=date(2025, 5, 12),
        quality_score=score,
        lines_today=29 * LINES + 1,
        quarantined_today=1,
        quarantine_pct=100 / (29 * LINES + 1),
    )
    assert health.sources == [source]
    assert health.layers == layers_of(workplace)
    [(newest,)] = workplace.warehouse_rows('select max("timestamp") from bike_stations')
    counts = {table: rows_of(workplace, table) for table in public_tables()}
    assert health.warehouse == WarehouseHealth(None, counts, moment(str(newest)), 0.0)
    assert counts["bike_stations"] == 41 * FEW_STATIONS
    assert list_gaps(workplace.settings, now) == [gap]
    quality = daily_quality(workplace.settings, 1, date(2025, 5, 12))
    assert [(day["dt"], day["quality_score"]) for day in quality] == [(date(2025, 5, 12), score)]

    def measured(text):
        return measure_health(workplace.settings, measured_at=moment(text)).sources[0]

    # five hours of silence, in which thirty-one snapshots were due
    silent = measured("2025-05-13 11:05:00")
    assert (silent.is_stale, silent.gaps) == (True, [gap, Gap(moment("2025-05-13 05:50:00"), None)])
    assert silent.coverage_pct == pytest.approx(100 * 42.5 / 79.5)
    # a whole day of it, on which there is nothing to build
    lost = measured("2025-05-15 08:00:00")
    assert (lost.coverage_pct, lost.lines_today, lost.quality_day) == (0.0, 0, date(2025, 5, 13))
    # a job at work that has taken the newest days in hand
    lake = Lake.of(workplace.settings)
    for state in read_states(lake).values():
        forget_days(lake, state, [date(2025, 5, 12), date(2025, 5, 13)])
    assert measure_health(workplace.settings, with_sizes=True, measured_at=now).sources == [source]

    later = {raw_name(each): small_snapshot(moment(each)) for each in at(13, "10:30", "10:40")}
    wrm.import_archive(workplace.settings, str(archive("later", **later)))
    not_built = measure_health(workplace.settings, measured_at=moment("2025-05-13 10:45:00"))
    assert not_built.sources == [
        replace(
            source,
            last_snapshot_at=moment("2025-05-13 10:40:00"),
            age_seconds=300.0,
            coverage_pct=pytest.approx(100 * 44.5 / 77.5),
            gaps=[gap, Gap(moment("2025-05-13 05:50:00"), moment("2025-05-13 10:30:00"))],
        )
    ]
    behind = moment("2025-05-13 10:40:00") - moment(str(newest))
    assert not_built.warehouse.lag_seconds == behind.total_seconds()
    assert [(layer.objects, layer.bytes) for layer in not_built.layers] == [(None, None)] * 3

    in_files = measure_health(workplace.settings, with_sizes=True, measured_at=now)
    workplace.configure(**s3_server.environment | {"LAKE_URL": "s3://bike-data-flow/health"})
    lake = Lake.of(workplace.settings)
    lake.filesystem().put(f"{workplace.lake_folder}/", f"{lake.root}/", recursive=True)
    assert measure_health(workplace.settings, with_sizes=True, measured_at=now) == in_files


def layers_of(workplace):
    """What the layers hold, counted without their states and on the disk."""
    rows = {"bronze": workplace.lake_rows("select count(*) from int_wrm__snapshots_received")[0][0]}
    for layer in ("silver", "gold"):
        models = [path.parent.name for path in workplace.lake_folder.glob(f"{layer}/*/_state.parquet")]
        rows[layer] = sum(workplace.lake_rows(f"select count(*) from {model}")[0][0] for model in models)
    files = {
        layer: [path for path in (workplace.lake_folder / layer).rglob("*") if path.is_file()]
        for layer in rows
    }
    return [
        LayerHealth(layer, rows[layer], len(files[layer]), sum(path.stat().st_size for path in files[layer]))
        for layer in rows
    ]


def public_tables():
    return sorted(path.stem for path in PROJECT_ROOT.glob("exports/models/*/*.sql"))


def rows_of(workplace, table):
    return workplace.warehouse_rows(f"select count(*) from {table}")[0][0]


def test_a_lake_that_began_just_before_the_hour_is_covered(workplace, archive):
    observed = moment("2025-05-13 05:56:00")
    wrm.import_archive(workplace.settings, str(archive(**texts(["2025-05-13 05:56:00"]))))
    build_and_export(workplace.settings, Stages())
    for minutes in (1, 6, 14):
        health = measure_health(workplace.settings, measured_at=observed + timedelta(minutes=minutes))
        assert (health.sources[0].coverage_pct, health.sources[0].gaps) == (100.0, [])
    silent = measure_health(workplace.settings, measured_at=observed + timedelta(minutes=30)).sources[0]
    assert silent.coverage_pct == pytest.approx(100 * 2 / 4)  # the one now due is not late yet


def test_polls_that_fail_and_payloads_that_repeat_are_told_before_anything_is_built(live_workplace, feed):
    wrm.take_snapshot(live_workplace.settings)
    feed.misbehave("unchanged")
    wrm.take_snapshot(live_workplace.settings)
    [good] = [poll for poll in attempts(live_workplace) if poll["is_unchanged"]]
    seen = measure_health(live_workplace.settings).sources[0]
    assert seen.last_snapshot_at == good["attempted_at"]
    assert (seen.is_stale, seen.failing_since, seen.last_error, seen.gaps) == (False, None, None, [])
    assert seen.coverage_pct == pytest.approx(100)

    feed.misbehave("html", 2)
    wrm.take_snapshot(live_workplace.settings)
    wrm.take_snapshot(live_workplace.settings)
    bad = [poll for poll in attempts(live_workplace) if poll["error"]]
    failing = measure_health(live_workplace.settings).sources[0]
    assert (failing.failing_since, failing.last_error) == (bad[0]["attempted_at"], bad[1]["error"])
    assert (failing.last_snapshot_at, failing.is_stale) == (good["attempted_at"], False)

    later = good["attempted_at"] + timedelta(minutes=31)
    assert measure_health(live_workplace.settings, measured_at=later).sources[0].is_stale
    wrm.take_snapshot(live_workplace.settings)
    mended = measure_health(live_workplace.settings).sources[0]
    assert (mended.failing_since, mended.last_error) == (None, None)
    assert mended.last_snapshot_at > good["attempted_at"]


def attempts(workplace):
    files = workplace.lake_folder.glob("bronze/wrm/fetch_attempts/dt=*/*.parquet")
    rows = [row for file in files for row in pq.ParquetFile(file).read().to_pylist()]
    snapshots = [row for row in rows if row["resource"] == "station_snapshots"]
    return sorted(snapshots, key=lambda row: row["attempted_at"])


def test_a_refused_file_of_an_archive_is_no_failing_poll(workplace, archive):
    wrm.import_archive(workplace.settings, str(archive(**{"content_2025-05-12_12-10-00.txt.gz": b"no"})))
    health = measure_health(workplace.settings, measured_at=moment("2025-05-12 12:20:00"))
    assert health.sources == [NOTHING_YET]


def test_postgres_out_of_reach_is_told_with_its_reason_and_without_the_password(workplace):
    workplace.configure(POSTGRES_URL="postgresql://postgres:planted@127.0.0.1:9/postgres")
    away = measure_health(workplace.settings).warehouse
    workplace.configure(POSTGRES_URL="")
    never_made = measure_health(workplace.settings).warehouse
    assert "Connection refused" in away.error and "planted" not in away.error
    assert (away.rows, away.newest_reading_at, away.lag_seconds) == ({}, None, None)
    assert never_made == WarehouseHealth("there is no embedded PostgreSQL yet", {}, None, None)
    assert not workplace.settings.postgres_data_dir.exists()


def test_large_tables_are_estimated_and_small_ones_counted(workplace):
    with closing(psycopg2.connect(**workplace.settings.postgres_parameters())) as connection:
        connection.autocommit = True
        cursor = connection.cursor()
        tables = {"free_bikes": 600_000, "pipeline_runs": 600_000, "bike_failures": 3, "somebody_elses": 3}
        for table, rows in tables.items():
            cursor.execute(f"create table {table} as select generate_series(1, {rows}) as number")
        cursor.execute("analyze free_bikes")  # and pipeline_runs never
        cursor.execute("delete from free_bikes where number <= 100_000")
    estimated, by_size = pytest.approx(600_000, rel=0.01), pytest.approx(600_000, rel=0.2)
    assert measure_health(workplace.settings).warehouse == WarehouseHealth(
        None, {"bike_failures": 3, "free_bikes": estimated, "pipeline_runs": by_size}, None, None
    )


def test_a_postgres_that_answers_too_late_is_slow_and_not_out_of_reach(workplace, monkeypatch):
    monkeypatch.setattr(scripts.health, "STATEMENT_SECONDS", 1)
    with (
        closing(psycopg2.connect(**workplace.settings.postgres_parameters())) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("create table bike_stations as select now() as timestamp")
        connection.commit()
        cursor.execute("lock table bike_stations")
        health = measure_health(workplace.settings)
    assert health.warehouse == WarehouseHealth(None, {}, None, None, is_slow=True)
    assert [
        trouble for trouble in find_troubles(workplace.settings, health) if "Postgre" in trouble.what
    ] == []


def run_row(text, outcome, minutes=1, error=None):
    started_at = moment(text)
    ended_at = None if outcome == "killed" else started_at + timedelta(minutes=minutes)
    return (text, "run", "cron", started_at, ended_at, outcome, error)


def test_the_last_runs_come_from_the_newest_days(workplace):
    rows = [
        run_row("2025-05-10 01:00:00", "succeeded"),
        run_row("2025-05-11 01:00:00", "failed", 2, "no feed"),
        run_row("2025-05-11 02:00:00", "killed"),
        run_row("2025-05-12 01:00:00", "interrupted", 3),
    ]
    for row in rows:
        folder = workplace.lake_folder / "bronze/pipeline/runs" / f"dt={row[3].date()}"
        folder.mkdir(parents=True, exist_ok=True)
        table = pa.Table.from_pylist([dict(zip(RUNS.names, row, strict=True))], RUNS)
        pq.write_table(table, folder / f"{row[3]:%H}.parquet")
    told = [
        RunHealth("2025-05-12 01:00:00", "run", "cron", rows[3][3], 180.0, "interrupted", None),
        RunHealth("2025-05-11 02:00:00", "run", "cron", rows[2][3], None, "killed", None),
        RunHealth("2025-05-11 01:00:00", "run", "cron", rows[1][3], 120.0, "failed", "no feed"),
    ]
    assert measure_health(workplace.settings, runs=3).runs == told
    assert [run.run_id for run in measure_health(workplace.settings).runs] == [row[0] for row in rows[::-1]]


def test_a_watch_at_work_is_told_and_when_it_polls_and_exports_at_the_latest(workplace):
    now = moment("2025-05-13 06:03:00")
    holder = Holder("watch", "20250513T060000-3f9a1c")
    workplace.configure(ENVIRONMENT="dev", WATCH_POLL_SECONDS="30")
    with held_lease(Lake.of(workplace.settings), holder):
        health = measure_health(workplace.settings, measured_at=now)
    assert health.at_work == str(holder)
    assert health.next_work == {
        "poll by watch": moment("2025-05-13 06:03:30"),
        "export by watch": moment("2025-05-13 06:05:00"),
    }
    assert measure_health(workplace.settings, measured_at=now).at_work is None


def test_schedules_are_those_of_the_workflows_the_soonest_first(tmp_path):
    schedules = {
        "nightly": ["17 2 * * *"],
        "collect": ["7 * * * *", "37 * * * *"],
        "torture": ["10 7 * * *"],  # works on no lake
    }
    for name, crons in schedules.items():
        listed = "".join(f"    - cron: '{cron}'\n" for cron in crons)
        (tmp_path / f"{name}.yml").write_text(
            f"name: {name}\non:\n  schedule:\n{listed}  workflow_dispatch:\n"
            f"concurrency:\n  group: {'torture' if name == 'torture' else 'lake-prod'}\n"
        )
    (tmp_path / "ci.yml").write_text("name: ci\non:\n  push:\n    branches: [main]\n")
    (tmp_path / "bare.yml").write_text("name: bare\non: push\n")
    assert list(next_runs(moment("2025-05-13 06:10:00"), tmp_path).items()) == [
        ("collect", moment("2025-05-13 06:37:00")),
        ("nightly", moment("2025-05-14 02:17:00")),
    ]
